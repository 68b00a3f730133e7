"""The three published recipes: tokens a second, share of peak, memory, with and without the compiler.

On a GPU at full size, on a CPU in their small profiles. Tokens are random, so that no text is needed; a step is forward,
backward, the recipe's own optimizers and what its blocks do afterwards. Peak is the best rate of a square matrix product on the
same device in the same dtype, measured in the same run; FLOPs are those that ``show`` prints.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

import torch

import zoo
from benchmarks.harness import Call, Figure, Settings, Timings, alternate, megabytes, peak_memory, tokens_per_second
from zoo.core.wires import noise_key
from zoo.cost import cost
from zoo.model import Model, ModelConfig
from zoo.recipe import Recipe
from zoo.train import build_optimizers

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = ("deepseek_24L", "deepseek_12L", "compact_10L")
SQUARE = {"cpu": 2048, "cuda": 8192}  # side of the product whose rate is the peak
VOCABULARY = 1024  # where only a text would tell


def figures(settings: Settings) -> list[Figure]:
    """Each recipe as it is and compiled layer by layer, then its peak memory."""
    peak = peak_rate(settings)
    rows = [Figure("square product, the peak", f"{peak / 1e12:,.3g} TFLOP/s")]
    names = NAMES[-1:] if settings.quick else NAMES
    for name in names:
        rows += _recipe(name, peak, settings)
    return rows


def _recipe(name: str, peak: float, settings: Settings) -> list[Figure]:
    recipe, config = model_of(name, settings)
    tokens = recipe.train.batch * config.context
    steps = {"eager": step(name, settings, False)}
    if settings.device.startswith("cuda") or name == NAMES[-1]:  # a CPU takes minutes to compile 24 layers
        steps["compiled"] = step(name, settings, True)
    timings = alternate(steps, settings.rounds(7), 3, settings.device)
    flops = cost(config).flops_per_token * tokens
    what = f"{name}: width {config.dim}, {config.n_layers} layers, {recipe.train.batch} x {config.context}"
    rows = [
        Figure(
            f"{what}, {way}", tokens_per_second(tokens, timings.median(way)), remark=_share(flops, timings, way, peak)
        )
        for way in steps
    ]
    memory = peak_memory(step, (name, settings, False), settings)
    return [*rows, Figure(f"{what}, peak memory", f"{megabytes(memory.allocated)} in tensors", remark="eager")]


def _share(flops: float, timings: Timings, way: str, peak: float) -> str:
    return f"{flops / timings.median(way) / peak:.0%} of peak"


def model_of(name: str, settings: Settings) -> tuple[Recipe, ModelConfig]:
    """A recipe and its model, the vocabulary guessed where only a text would tell."""
    profile = "full" if settings.device.startswith("cuda") else "cpu"
    recipe = zoo.load(RECIPES / f"{name}.toml", profile)
    if recipe.model.vocab_size is not None:
        return recipe, recipe.model
    size = getattr(recipe.data.tokenizer, "vocab_size", None) or VOCABULARY
    return recipe, recipe.model.model_copy(update={"vocab_size": size})


def step(name: str, settings: Settings, compiled: bool) -> Call:
    """One update of a recipe's model, on random tokens."""
    recipe, config = model_of(name, settings)
    model = Model(config, stream=settings.dtype).to(settings.device).train()
    model.recompute = recipe.train.recompute == "layers"
    if compiled:
        model.compile_stages()
    optimizers, numbers = build_optimizers(model, recipe.optim), count(1)
    shape = (recipe.train.batch, config.context + 1)
    drawn = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(settings.device)

    def update() -> None:
        number = next(numbers)
        out = model(drawn[:, :-1], drawn[:, 1:], noise=noise_key(0, number))
        sum(out.losses.values(), out.nll.mean()).backward()
        for optimizer in optimizers.values():
            optimizer.step(1.0, number)
        model.zero_grad(set_to_none=True)
        model.after_step(out.stats)

    return update


def peak_rate(settings: Settings) -> float:
    """FLOP/s of the best of several square products."""
    side = 512 if settings.quick else SQUARE[settings.device.partition(":")[0]]
    a, b = (torch.randn(side, side, dtype=settings.dtype, device=settings.device) for _ in range(2))
    timings = alternate({"product": lambda: a @ b}, settings.rounds(9), 3, settings.device)
    return 2.0 * side**3 / min(timings.seconds["product"])

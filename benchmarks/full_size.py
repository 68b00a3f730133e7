"""The three published recipes: tokens a second, share of peak, memory; compiled or not, recorded or call by call.

On a GPU at full size, on a CPU in their small profiles. Tokens are random, so that no text is needed; a step is forward,
backward, the recipe's own optimizers and what its blocks do afterwards. Peak is the best rate of a square matrix product on the
same device in the same dtype, measured in the same run; FLOPs are those that ``show`` prints.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch

import zoo
from benchmarks.harness import (
    Call,
    Figure,
    Settings,
    alternate,
    megabytes,
    milliseconds,
    peak_allocated,
    synchronise,
    tokens_per_second,
)
from zoo import machine
from zoo.core.wires import noise_key
from zoo.cost import cost
from zoo.graphs import WARM, Given, Graphs, Said
from zoo.model import Model, ModelConfig
from zoo.optim.build import build_optimizers
from zoo.recipe import Recipe

RECIPES = Path(__file__).parent.parent / "recipes"
NAMES = ("deepseek_24L", "deepseek_12L", "compact_10L")
SQUARE = {"cpu": 2048, "cuda": 8192}  # side of the product whose rate is the peak
VOCABULARY = 1024  # where only a text would tell


def figures(settings: Settings) -> Iterator[Figure]:
    """Each recipe in each way that its step can be asked for, with its peak memory."""
    peak = peak_rate(settings)
    yield Figure("square product, the peak", f"{peak / 1e12:,.3g} TFLOP/s")
    names = NAMES[-1:] if settings.quick else NAMES
    for name in names:
        for way in ways(name, settings):
            yield _row(name, way, peak, settings)
            machine.release_memory()


class Way(NamedTuple):
    """How the kernels of a step are made and asked for."""

    compiled: bool = False
    recorded: bool = False

    def __str__(self) -> str:
        return f"{'compiled' if self.compiled else 'eager'}, {'recorded' if self.recorded else 'call by call'}"


def ways(name: str, settings: Settings) -> list[Way]:
    """All of them on a GPU; on a CPU nothing is recorded, and to compile 24 layers takes minutes."""
    if settings.device.startswith("cuda"):
        return [Way(), Way(recorded=True), Way(compiled=True), Way(True, True)]
    return [Way(), Way(compiled=True)] if name == NAMES[-1] else [Way()]


def _row(name: str, way: Way, peak: float, settings: Settings) -> Figure:
    recipe, config = model_of(name, settings)
    tokens = recipe.train.batch * config.context
    memory = machine.PeakMemory(settings.device)
    call = step(name, settings, way)
    began = time.perf_counter()
    for _ in range(WARM + 2):  # compiles, then records
        call()
    synchronise(settings.device)
    ready = time.perf_counter() - began
    seconds = alternate({"step": call}, settings.rounds(15), 1, settings.device).median("step")
    share = cost(config).flops_per_token * tokens / seconds / peak
    return Figure(
        f"{name}: width {config.dim}, {config.n_layers} layers, {recipe.train.batch} x {config.context}, {way}",
        tokens_per_second(tokens, seconds),
        remark=f"{milliseconds(seconds)} a step, {share:.1%} of peak{_at_most(name, way, memory, settings)}; "
        f"the first {WARM + 2} took {ready:.1f} s",
    )


def _at_most(name: str, way: Way, seen: machine.PeakMemory, settings: Settings) -> str:
    """The peak memory of a step in words; on a CPU of its tensors in a fresh process, so not where that has to compile."""
    if settings.device.startswith("cuda"):
        return f", {megabytes(seen.read())} at most"
    if way.compiled:
        return ""
    return f", {megabytes(peak_allocated(step, (name, settings, way), settings))} at most"


def model_of(name: str, settings: Settings) -> tuple[Recipe, ModelConfig]:
    """A recipe and its model, the vocabulary guessed where only a text would tell."""
    profile = "full" if settings.device.startswith("cuda") else "cpu"
    recipe = zoo.load(RECIPES / f"{name}.toml", profile)
    if recipe.model.vocab_size is not None:
        return recipe, recipe.model
    size = getattr(recipe.data.tokenizer, "vocab_size", None) or VOCABULARY
    return recipe, recipe.model.model_copy(update={"vocab_size": size})


def step(name: str, settings: Settings, way: Way) -> Call:
    """One update of a recipe's model, on random tokens."""
    recipe, config = model_of(name, settings)
    model = Model(config, stream=settings.dtype).to(settings.device).train()
    model.recompute = recipe.train.recompute == "layers"
    if way.compiled:
        model.compile_stages()
    optimizers, numbers = build_optimizers(model, recipe.optim), count(1)
    shape = (recipe.train.batch, config.context + 1)
    drawn = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(settings.device)

    def compute(given: Given) -> Said:
        out = model(given.tokens, given.targets, noise=given.noise)
        sum(out.losses.values(), out.nll.mean()).backward()
        return Said(out.nll.detach().mean(), {}, out.stats)

    graphs = Graphs(model, compute) if way.recorded else None

    def update() -> None:
        number = next(numbers)
        key = noise_key(0, number).to(settings.device)
        given = Given(drawn[:, :-1], drawn[:, 1:], None, key, 1.0)
        said = compute(given) if graphs is None else graphs(given, True)
        if graphs is not None and graphs.refused:
            raise RuntimeError(graphs.refused)
        for optimizer in optimizers.values():
            optimizer.step(1.0, number)
        model.zero_grad(set_to_none=True)
        model.after_step(said.stats)

    return update


def peak_rate(settings: Settings) -> float:
    """FLOP/s of the best of several square products."""
    side = 512 if settings.quick else SQUARE[settings.device.partition(":")[0]]
    a, b = (torch.randn(side, side, dtype=settings.dtype, device=settings.device) for _ in range(2))
    timings = alternate({"product": lambda: a @ b}, settings.rounds(9), 3, settings.device)
    return 2.0 * side**3 / min(timings.seconds["product"])

"""A Muon step on the matrices of the compact 10-layer model, full size, against torch.optim.Muon and AdamW.

torch.optim.Muon always iterates in bfloat16, which a CPU without AVX512-BF16 or AMX only emulates. Where ours iterates in fp32
for that reason, it is compared with torch's own step iterating in fp32, and the step as it ships is timed on one small matrix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import _muon as theirs

import zoo
from benchmarks.harness import Figure, Settings, Wanted, alternate, median_ratio, milliseconds, same, spread
from zoo.core.params import Role, roles
from zoo.model import Model
from zoo.optim.muon import ns_dtype
from zoo.optim.slots import Optimizer

RECIPE = Path(__file__).parents[1] / "recipes" / "compact_10L.toml"
LR, DECAY, MOMENTUM = 0.02, 0.1, 0.95
WANTED = Wanted("at least", 1.5)
Shapes = list[tuple[int, ...]]


def figures(settings: Settings) -> list[Figure]:
    """All matrices, then the large and the small ones by themselves, then AdamW on the same."""
    shapes = compact_shapes()
    small = [s for s in shapes if min(s) < 512]
    sets = {"all matrices of compact_10L": shapes, "only 512 x 1536": [s for s in shapes if max(s) > 512]}
    sets |= {"only 512 x 512": [s for s in shapes if s == (512, 512)], "only the rest": small}
    if settings.quick:
        sets = {"the small matrices": small[:4]}
    dtype = ns_dtype("auto", torch.empty(0, device=settings.device))
    rows = []
    for name, chosen in sets.items():
        prove(chosen[:2] + chosen[-2:], settings, dtype)
        rows += compared(name, chosen, settings, dtype)
    if dtype != torch.bfloat16:
        rows.append(as_shipped(small[:1], settings))
    return rows


def compact_shapes() -> Shapes:
    """The shapes of the matrices that Muon moves in the full-size recipe."""
    with torch.device("meta"):
        model = Model(zoo.load(RECIPE, profile="full").model.model_copy(update={"vocab_size": 1024}), seed=None)
    found = roles(model)
    return [tuple(p.shape) for name, p in model.named_parameters() if found[name] is Role.MATRIX]


def compared(name: str, shapes: Shapes, settings: Settings, dtype: torch.dtype) -> list[Figure]:
    """Ours, torch's and AdamW's step on parameters of these shapes."""
    steps = {"ours": ours(shapes, settings, "muon"), "torch": torchs(shapes, settings, dtype)}
    steps["adamw"] = ours(shapes, settings, "adamw")
    calls = {key: step for key, (step, _) in steps.items()}
    timings = alternate(calls, settings.rounds(5), 1, settings.device)
    count = ", ".join(f"{n} of {' x '.join(map(str, shape))}" for shape, n in Counter(shapes).items())
    flops = sum(map(newton_schulz_flops, shapes))
    peak = peak_flops(settings, dtype)
    floor = f"floor: {flops / 1e9:.0f} GFLOP of products as torch has them take {1e3 * flops / peak:.0f} ms at "
    floor += f"{peak / 1e9:.0f} GFLOP/s, the peak measured on products of 2048; {spread(timings, 'torch', 'ours')}"
    mine, its = (milliseconds(timings.median(key)) for key in ("ours", "torch"))
    wanted = WANTED if name.startswith("all") else None
    title = f"{name} ({count}), {str(dtype)[6:]}"
    rows = [Figure(title, mine, f"{its}, torch.optim.Muon", median_ratio(timings, "torch", "ours"), wanted, floor)]
    if wanted is not None:
        adamw = milliseconds(timings.median("adamw"))
        rows.append(Figure("the same against AdamW, fused", mine, adamw, median_ratio(timings, "ours", "adamw")))
    return rows


def parameters(shapes: Shapes, settings: Settings) -> list[tuple[str, nn.Parameter]]:
    """Named fp32 matrices with gradients of fast-falling singular values, as trained models have them."""
    generator, found = torch.Generator().manual_seed(0), []
    for i, shape in enumerate(shapes):
        p = nn.Parameter(0.02 * torch.randn(shape, generator=generator).to(settings.device))
        grad = torch.randn(shape, generator=generator) * torch.logspace(0, -2, shape[-1])
        p.grad = grad.to(settings.device)
        found.append((f"matrix{i}", p))
    return found


Stepper = tuple[Callable[[], None], list[nn.Parameter]]


def ours(shapes: Shapes, settings: Settings, kind: str) -> Stepper:
    """The zoo's optimizer of that kind, with torch.optim.Muon's arithmetic."""
    knobs: dict[str, object] = {"kind": kind, "lr": LR, "weight_decay": DECAY}
    if kind == "muon":
        knobs |= {"momentum": MOMENTUM, "accumulate": "lerp"}
    named = parameters(shapes, settings)
    optimizer = Optimizer.parse(knobs).build(named)
    return lambda: optimizer.step(1.0, 1), [p for _, p in named]


def torchs(shapes: Shapes, settings: Settings, dtype: torch.dtype) -> Stepper:
    """torch.optim.Muon, its iteration in ``dtype``."""
    moved = [p for _, p in parameters(shapes, settings)]
    optimizer = torch.optim.Muon(moved, lr=LR, weight_decay=DECAY, momentum=MOMENTUM)

    def step() -> None:
        with iterating_in(dtype):
            optimizer.step()

    return step, moved


@contextmanager
def iterating_in(dtype: torch.dtype) -> Iterator[None]:
    """torch.optim.Muon with its own iteration in another dtype; as it ships in bfloat16."""
    shipped = theirs._zeropower_via_newtonschulz
    if dtype != torch.bfloat16:
        theirs._zeropower_via_newtonschulz = _in_fp32
    try:
        yield
    finally:
        theirs._zeropower_via_newtonschulz = shipped


def _in_fp32(grad: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The products of torch's iteration, one matrix at a time, in fp32."""
    a, b, c = coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if grad.size(0) > grad.size(1) else x


def prove(shapes: Shapes, settings: Settings, dtype: torch.dtype) -> None:
    """Three updates of ours and of torch.optim.Muon move the same matrices alike."""
    (mine, my_weights), (its, its_weights) = ours(shapes, settings, "muon"), torchs(shapes, settings, dtype)
    start = [p.detach().clone() for p in my_weights]
    for _ in range(3):
        mine()
        its()
    for first, p, other in zip(start, my_weights, its_weights, strict=True):
        same(p - first, other - first, f"three updates of {tuple(p.shape)}", 1e-4 if dtype == torch.float32 else 5e-2)


def as_shipped(shapes: Shapes, settings: Settings) -> Figure:
    """Ours in fp32 against torch's in emulated bfloat16."""
    calls = {"ours": ours(shapes, settings, "muon")[0], "torch": torchs(shapes, settings, torch.bfloat16)[0]}
    timings = alternate(calls, 2, 1, settings.device)
    mine, its = (milliseconds(timings.median(key)) for key in calls)
    title = f"one matrix of {' x '.join(map(str, shapes[0]))}, torch's as it ships (bfloat16, emulated here)"
    return Figure(title, mine, its, median_ratio(timings, "torch", "ours"))


def newton_schulz_flops(shape: tuple[int, ...]) -> float:
    """FLOPs of the products of five steps as they are usually written, for one matrix or a stack."""
    r, c = sorted(shape[-2:])
    stack = 1
    for n in shape[:-2]:
        stack *= n
    return stack * 5 * (4.0 * r * r * c + 2.0 * r**3)


def peak_flops(settings: Settings, dtype: torch.dtype) -> float:
    """FLOP/s of the best of a few large square products."""
    size = 512 if settings.quick else 2048
    a = torch.randn(size, size, dtype=dtype, device=settings.device)
    timings = alternate({"product": lambda: a @ a}, 5, 1, settings.device)
    return 2.0 * size**3 / min(timings.seconds["product"])

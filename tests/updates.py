"""Parameters, gradients that depend on name and step alone, and updates, for tests of optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import zoo.optim  # noqa: F401 (registers the kinds)
from zoo.optim.slots import Optimizer

Shape = tuple[int, ...]
SMALL: tuple[Shape, ...] = ((5,), (), (3, 4), (2, 3, 4))
MATRICES: tuple[Shape, ...] = ((8, 12), (12, 8), (8, 8), (3, 8, 12), (2, 12, 8), (6, 20))


def draw(shapes: Sequence[Shape], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (f"p{i}", nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)))
        for i, s in enumerate(shapes)
    ]


def give_gradients(named: Sequence[tuple[str, nn.Parameter]], step: int, without: Sequence[str] = ()) -> None:
    """The gradient of a parameter depends on its name, its shape and the step, and on nothing beside it."""
    for name, p in named:
        seed = step * 1000 + int(name[1:])
        drawn = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        p.grad = None if name in without else (0.1 * drawn).to(p)


def build(knobs: dict[str, Any], named: Sequence[tuple[str, nn.Parameter]]) -> Optimizer:
    return Optimizer.parse(knobs).build(named)


def run(optimizer: Optimizer, first: int, last: int, without: Sequence[str] = ()) -> list[Tensor]:
    """Updates ``first`` ... ``last``, at a rate that changes; the parameters afterwards."""
    for step in range(first, last + 1):
        give_gradients(optimizer.named, step, without)
        optimizer.step(1.0 / step, step)
    return [p.detach() for _, p in optimizer.named]


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    """Greatest difference over the greatest value, tensor by tensor."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        error = (a - b).abs().max() / b.abs().max()
        assert error <= tolerance, f"tensor {i}: relative error {error:.2e}"

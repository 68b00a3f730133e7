"""What flows where in a model beside the plain way from layer to layer: skips of the trunk, and wires.

Found by running the trunk with marked steps in place of layers and reading the graph of its gradient, so a trunk that
nobody here knows is drawn as it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.core.wires import OFFERED
from zoo.model import Model


class _Mark(torch.autograd.Function):
    """The identity, which leaves a node with a step's number in the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: int) -> Tensor:
        ctx.index = index
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def skips(model: Model) -> list[tuple[int, int]]:
    """Pairs (i, j): what layer i puts out goes into layer j by a way around the layers between. -1 is the entrance."""
    n, inputs = len(model.layer), {}

    def step(index: int) -> Any:
        def run(x: Tensor) -> Tensor:
            inputs[index] = x
            return _Mark.apply(x, index)

        return run

    entrance = torch.zeros(1, 2, model.config.dim, device=model.embedding.weight.device, requires_grad=True)
    x = _Mark.apply(entrance, -1)
    inputs[n] = model.trunk(x, [step(i) for i in range(n)])
    return sorted((i, j) for j, t in inputs.items() for i in _feeders(t) if i != j - 1)


def _feeders(t: Tensor) -> set[int]:
    """Numbers of the marked steps from which ``t`` is computed without another marked step between."""
    found, waiting, seen = set(), [t.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "index"):
            found.add(node.index)
        else:
            waiting += [following for following, _ in node.next_functions]
    return found


class Flow(NamedTuple):
    """A wire: who writes it first (-1: the model or its stem), and which layers read it."""

    name: str
    writer: int
    readers: tuple[int, ...]


def wires(model: Model) -> list[Flow]:
    """Every wire that a layer reads, those between all blocks alone (documents, noise) left out."""
    stages = model.stages  # the stem, then the layers
    found = []
    for wire in dict.fromkeys(wire for stage in stages[1:] for wire in stage.reads):
        writer = next((i - 1 for i, stage in enumerate(stages) if wire in stage.writes), -1)
        readers = tuple(i - 1 for i, stage in enumerate(stages) if wire in stage.reads and i - 1 > writer)
        offered = wire in OFFERED and wire.name not in ("x0", "tokens")
        if readers and not offered:
            found.append(Flow(wire.name, writer, readers))
    return found

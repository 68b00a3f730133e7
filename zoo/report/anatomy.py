"""A model seen from outside: its parts as a tree, with shapes, parameters, active parameters and FLOPs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from zoo.core.params import entries
from zoo.core.part import Part
from zoo.core.slots import Block, Layer
from zoo.cost import Cost, cost_of, forward_flops
from zoo.model import Model
from zoo.recipe import Recipe
from zoo.report.units import scaled
from zoo.trials.build import asked_model


class Line(NamedTuple):
    """One part of a model, with all that is in it."""

    path: str
    what: str  # its kind, or its class where it has none; "" for what only holds pieces
    shapes: tuple[str, ...]  # of the parameters in it that no line below holds, e.g. ``query (128, 128)``
    parameters: int
    active: int  # that one token uses
    flops: float  # of training, per token at full context

    @property
    def depth(self) -> int:
        """How deep it stands: layer.0.attention is one below layer.0."""
        return self.path.count(".") - self.path.startswith("layer.")


class Anatomy(NamedTuple):
    """A model seen from outside."""

    lines: tuple[Line, ...]
    cost: Cost
    layers: tuple[Layer.Config, ...]  # what each layer was built from


def anatomy(recipe: Recipe) -> Anatomy:
    """The parts of a recipe's model, in order; nothing is drawn.

    Raises:
        ConfigError: parts that do not fit, with a path from the root of the recipe.
    """
    model = asked_model(recipe)
    return Anatomy(tuple(_lines(model)), cost_of(model), recipe.model.layers())


def _lines(model: Model) -> Iterator[Line]:
    held = {entry.name: entry.parameter for entry in entries(model)}
    shown = [(path, module) for path, module in model.named_modules() if path and _is_shown(path)]
    paths = [path for path, _ in shown]
    for path, module in shown:
        inside = {name: p for name, p in held.items() if name.startswith(f"{path}.")}
        if not inside and not isinstance(module, Part):
            continue
        below = [p for p in paths if p.startswith(f"{path}.")]
        own = {n: p for n, p in inside.items() if not any(n.startswith(f"{b}.") for b in below)}
        shapes = (f"{n.removeprefix(f'{path}.').removesuffix('.weight')} {tuple(p.shape)}" for n, p in own.items())
        total = sum(p.numel() for p in inside.values())
        idle = sum(block.idle_parameters() for block in module.modules() if isinstance(block, Block))
        flops = 3.0 * forward_flops(module, model.config.context)
        yield Line(path, _what(module), tuple(shapes), total, total - idle, flops)


def _is_shown(path: str) -> bool:
    """Parts of the model and of its layers, with what fills these and the pieces of stems, but no single matrices."""
    return bool(re.fullmatch(r"layer\.\d+(\.\w+|\.stem\.\d+)?|stem\.\d+|(?!layer)\w+", path))


def _what(module: nn.Module) -> str:
    if isinstance(module, Part) and module.kind:
        return str(module.kind)
    return "" if isinstance(module, nn.ModuleList) else type(module).__name__  # a stem is its pieces


def shown_lines(seen: Anatomy) -> list[str]:
    """The tree as lines of text; layers that are alike are shown once, with how many there are."""
    rows = [("part", "kind", "parameters", "active", "FLOPs", "shapes")]
    for first, last, lines in _runs(seen):
        for line in lines:
            name = "  " * line.depth + line.path.rpartition(".")[2 if line.depth else 0] if line.depth else line.path
            if line.path == f"layer.{first}" and last > first:
                name = f"layer.{first} to layer.{last}, each"
            rows.append(
                (
                    name,
                    line.what,
                    f"{line.parameters:,}",
                    f"{line.active:,}",
                    scaled(line.flops),
                    ", ".join(line.shapes),
                )
            )
    cost = seen.cost
    rows += [(str(role), "role", f"{n:,}", "", "", "") for role, n in cost.by_role.items()]
    rows.append(("parameters", "", f"{cost.parameters:,}", "", "", ""))
    rows.append(("active parameters", "", f"{cost.active_parameters:,}", "", "", ""))
    rows.append(("FLOPs per token", "training", f"{cost.flops_per_token:,.0f}", "", "", ""))
    rows.append(("cache elements per token", "", f"{cost.cache_elements_per_token:,}", "", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return [_row(row, widths) for row in rows]


def _row(row: tuple[str, ...], widths: list[int]) -> str:
    names = [f"{row[i]:<{widths[i]}}" for i in (0, 1)]
    numbers = [f"{row[i]:>{widths[i]}}" for i in (2, 3, 4)]
    return "  ".join([*names, *numbers, row[5]]).rstrip()


def _runs(seen: Anatomy) -> Iterator[tuple[int, int, list[Line]]]:
    """Lines in order, layers of one Config together: first and last layer, and the lines of the first; -1 elsewhere."""
    by_layer: dict[int, list[Line]] = {}
    for line in seen.lines:
        if line.path.startswith("layer."):
            by_layer.setdefault(int(line.path.split(".")[1]), []).append(line)
    told = False
    for line in seen.lines:
        if not line.path.startswith("layer."):
            yield -1, -1, [line]
        elif not told:
            told = True
            for first, last in equal_runs(seen.layers):
                yield first, last, by_layer[first]


def equal_runs(items: Sequence[object]) -> list[tuple[int, int]]:
    """First and last place of each run of equal items."""
    starts = [i for i in range(len(items)) if i == 0 or items[i] != items[i - 1]]
    return [(start, end - 1) for start, end in zip(starts, [*starts, len(items)][1:], strict=True)]

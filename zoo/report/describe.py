"""What ``list`` and ``show`` say: the kinds of each slot with their knobs, and a model layer by layer."""

from __future__ import annotations

import inspect
import re
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo
from torch import nn

from zoo.core.params import entries
from zoo.core.part import ConfigError, Part, PartConfig, nearest
from zoo.core.tables import tabulate
from zoo.cost import Cost, cost_of
from zoo.recipe import Recipe
from zoo.trials.build import meta_model
from zoo.trials.names import spell


class Kind(NamedTuple):
    """One kind as ``list`` shows it."""

    slot: str
    kind: str
    idea: str  # the first sentence of its docstring
    source: str
    knobs: tuple[str, ...]  # ``name: type = default``
    breaks: tuple[str, ...]


def kinds(slot: str | None = None) -> list[Kind]:
    """Every registered kind, or those of one slot.

    Raises:
        ConfigError: no such slot.
    """
    if slot is not None and slot not in Part.slots:
        raise ConfigError(f"no slot is called {slot!r}, {nearest(slot, Part.slots)}")
    slots = Part.slots if slot is None else {slot: Part.slots[slot]}
    return [_kind(name, kind, part) for name, s in slots.items() for kind, part in sorted(s.kinds.items())]


def _kind(slot: str, kind: str, part: type[Part]) -> Kind:
    doc = inspect.cleandoc(part.__doc__ or "")
    idea, _, after = doc.partition("Source:")
    return Kind(
        slot=slot,
        kind=kind,
        idea=" ".join(idea.split("\n\n")[0].split()),
        source=" ".join(after.split("\n\n")[0].split()),
        knobs=tuple(knob(name, info) for name, info in part.Config.model_fields.items()),
        breaks=tuple(f"{promise}: {why}" for promise, why in part.breaks.items()),
    )


def knob(name: str, info: FieldInfo) -> str:
    """``n_heads: int = 4``."""
    return f"{name}: {_type(info.annotation)}{_default(info)}"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return ""
    value = info.get_default(call_default_factory=True)
    return f" = {'none' if value is None else value.part.kind if isinstance(value, PartConfig) else spell(tabulate(value))}"


def _type(annotation: Any) -> str:
    """A type in the words of a recipe: a slot's name for a Config, values for a Literal."""
    if isinstance(annotation, type) and issubclass(annotation, PartConfig):
        return annotation.part.slot or annotation.__name__
    args = getattr(annotation, "__args__", ())
    if not args:
        return "none" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
    if getattr(annotation, "__metadata__", None) is not None:
        return _type(annotation.__origin__)
    origin = getattr(annotation, "__origin__", None)
    inner = [_type(arg) if not isinstance(arg, str) else arg for arg in args if arg is not Ellipsis]
    if origin in (tuple, list):
        return f"list of {', '.join(inner)}"
    if origin is dict:
        return f"table of {inner[-1]}"
    return " | ".join(inner)


class Line(NamedTuple):
    """One module of a model: its path, its class, and the parameters in it and below."""

    path: str
    what: str
    parameters: int


class Anatomy(NamedTuple):
    """A model seen from outside."""

    lines: tuple[Line, ...]
    cost: Cost


def anatomy(recipe: Recipe) -> Anatomy:
    """The modules of a recipe's model that hold parameters, in order; nothing is allocated.

    Raises:
        ConfigError: parts that do not fit, with a path from the root of the recipe.
    """
    model = meta_model(recipe)
    held = {entry.name: entry.parameter.numel() for entry in entries(model)}
    lines = []
    for path, module in model.named_modules():
        if path and _is_shown(path):
            below = sum(n for name, n in held.items() if name.startswith(f"{path}."))
            if below or isinstance(module, Part):
                lines.append(Line(path, _what(module), below))
    return Anatomy(tuple(lines), cost_of(model))


def _is_shown(path: str) -> bool:
    """Parts of the model and of its layers, with what fills these, but no single matrices and no folders of layers."""
    return bool(re.fullmatch(r"layer\.\d+(\.\w+)?|(?!layer)\w+", path))


def _what(module: nn.Module) -> str:
    return str(module.kind) if isinstance(module, Part) and module.kind else type(module).__name__

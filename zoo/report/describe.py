"""What ``list`` says: the kinds of each slot with their ideas, sources and knobs."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo

from zoo.core.part import ConfigError, Part, PartConfig, nearest
from zoo.core.tables import tabulate
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

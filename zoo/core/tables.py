"""Plain nested tables: dotted paths into them, and Configs as such tables.

A path is the same in recipes, axes, ``--set`` and error messages: ``model.layer.attention.n_heads``, ``model.stem[0].dim``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

from zoo.core.part import ConfigError, Knobs, PartConfig

Table = dict[str, Any]


def split_path(path: str) -> list[str]:
    """``model.stem[0].dim`` -> ``["model", "stem", "[0]", "dim"]``.

    Raises:
        ConfigError: an empty step.
    """
    steps = re.sub(r"\[(-?\d+)\]", r".[\1]", path.strip()).removeprefix(".").split(".")
    if not all(step.strip() for step in steps):
        raise ConfigError("is no dotted path; write e.g. model.layer.attention", value=path)
    return [step.strip() for step in steps]


def join_path(steps: Iterable[str]) -> str:
    """The inverse of ``split_path``, in one spelling."""
    return ".".join(steps).replace(".[", "[")


def nested(path: str, value: Any) -> Table:
    """The patch that sets ``path`` to ``value`` and nothing else."""
    for step in reversed(split_path(path)):
        value = {step: value}
    return value


def tabulate(value: Any) -> Any:
    """A Config as the plain table that makes it again: every knob, kinds by name, None left out or written "none"."""
    if isinstance(value, Knobs):
        table = {"kind": value.part.kind} if isinstance(value, PartConfig) else {}
        for name, info in type(value).model_fields.items():
            knob = getattr(value, name)
            if knob is not None:
                table[name] = tabulate(knob)
            elif info.is_required() or info.default is not None:
                table[name] = "none"
        return table
    if isinstance(value, Mapping):
        return {str(name): tabulate(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [tabulate(item) for item in value]
    return value.value if isinstance(value, Enum) else value


def overlay(base: Mapping[str, Any], patch: Mapping[str, Any]) -> Table:
    """Plain nested tables merged with no knowledge of kinds."""
    merged = dict(base)
    for name, value in patch.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = overlay(merged[name], value) if both else value
    return merged


def by_index(value: Any) -> bool:
    """Whether ``value`` patches single items of a list: a table whose keys are all ``[n]``."""
    return isinstance(value, Mapping) and bool(value) and all(re.fullmatch(r"\[-?\d+\]", str(key)) for key in value)


def indexed(patch: Mapping[str, Any], length: int) -> Iterator[tuple[int, Any]]:
    """The items of ``{"[n]": item}`` with n counted from the front; ConfigError for one that the list does not have."""
    for key, item in patch.items():
        index = int(key.strip("[]"))
        if not -length <= index < length:
            raise ConfigError(f"the list has {length} items, counted from 0", key)
        yield index % length, item


def patched_list(base: Any, patch: Mapping[str, Any]) -> list[Any]:
    """A list of plain values or free tables with single items replaced (plain) or laid over (tables)."""
    items = list(base or [])
    for index, item in indexed(patch, len(items)):
        both = isinstance(items[index], Mapping) and isinstance(item, Mapping)
        items[index] = overlay(items[index], item) if both else item
    return items

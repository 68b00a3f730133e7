"""Conditions on trials: ``seed==0``, ``model.dim>=64``, ``variant~mla``."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from zoo.core.part import ConfigError, nearest
from zoo.core.tables import split_path
from zoo.files import parse_set
from zoo.trials.names import spell

Table = Mapping[str, Any]

MISSING: Any = object()
ORDER: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
CONDITION = re.compile(r"\s*([^=!<>~]+?)\s*(==|!=|>=|<=|!~|~|>|<)\s*(.*\S)\s*", re.DOTALL)


class Condition(NamedTuple):
    """``path operator value``; the value is TOML, and what is no TOML is a string."""

    path: str
    sign: str
    value: Any


def condition(text: str) -> Condition:
    """``seed==0``, ``model.dim>=64``, ``variant~mla`` (contains; or a pattern such as ``mla*``), ``status!=done``.

    A path leads into the recipe (``model.layer.attention`` is its kind) or the result (``bits_per_byte``, ``facts.torch``).

    Raises:
        ConfigError: no such form.
    """
    found = CONDITION.fullmatch(text)
    if found is None:
        signs = "==, !=, >=, <=, >, <, ~ or !~"
        raise ConfigError(f"--where {text}: write a path, one of {signs}, and a value, e.g. 'model.dim>=64'")
    path, sign, typed = found.groups()
    return Condition(path, sign, parse_set(f"{path}={typed}").value)


def matching(tables: Sequence[Table], text: str) -> list[bool]:
    """Of which of these tables (recipe and result in one) a condition holds.

    Raises:
        ConfigError: it is none, its path leads nowhere in all of them, or it holds of none.
    """
    wanted = condition(text)
    values = [value_at(table, wanted.path) for table in tables]
    if all(value is MISSING for value in values):
        known = {path for table in tables for path in _paths(table, "")}
        raise ConfigError(f"--where {text}: no trial has {wanted.path!r}, {_near(wanted.path, known)}")
    kept = [holds(wanted, value) for value in values]
    if not any(kept):
        seen = list(dict.fromkeys(spell(_kind(v)) for v in values if v is not MISSING))
        raise ConfigError(f"--where {text}: no trial is left; {wanted.path} is {', '.join(seen[:12])}")
    return kept


def _near(path: str, known: Iterable[str]) -> str:
    hint = nearest(path, known)
    return hint if len(hint) < 120 else "see a trial's recipe.toml and result.json"


def value_at(table: Any, path: str) -> Any:
    """What stands at a dotted path, MISSING where nothing does."""
    for step in split_path(path):
        index = step.strip("[]")
        if isinstance(table, Mapping) and step in table:
            table = table[step]
        elif isinstance(table, list) and index.isdecimal() and int(index) < len(table):
            table = table[int(index)]
        else:
            return MISSING
    return table


def _paths(table: Any, path: str) -> Iterable[str]:
    for key, value in table.items():
        inner = f"{path}.{key}" if path else key
        yield inner
        if isinstance(value, Mapping):
            yield from _paths(value, inner)


def _kind(value: Any) -> Any:
    return value["kind"] if isinstance(value, Mapping) and "kind" in value else value


def holds(wanted: Condition, value: Any) -> bool:
    """Whether a condition holds of what stands at its path; where nothing does, only ``!=`` and ``!~`` hold.

    Raises:
        ConfigError: a comparison of sizes with something that is no number.
    """
    if value is MISSING or value is None:
        return wanted.sign in ("!=", "!~")
    value, words = _kind(value), spell(_kind(value))
    if wanted.sign in ORDER:
        for side in (value, wanted.value):
            if not isinstance(side, int | float) or isinstance(side, bool):
                raise ConfigError(
                    f"--where {wanted.path}{wanted.sign}{spell(wanted.value)}: {spell(side)} is no number"
                )
        return ORDER[wanted.sign](value, wanted.value)
    if wanted.sign in ("==", "!="):
        return (value == wanted.value or words == spell(wanted.value)) == (wanted.sign == "==")
    pattern = spell(wanted.value)
    pattern = pattern if any(mark in pattern for mark in "*?") else f"*{pattern}*"
    return fnmatch.fnmatchcase(words, pattern) == (wanted.sign == "~")

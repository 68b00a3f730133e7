"""How arms are told apart: readable names from the values of axes, and the knobs in which one differs from another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from zoo.core.part import Part
from zoo.core.tables import join_path, split_path, tabulate
from zoo.recipe import Recipe


def label_values(axes: Mapping[str, list[Any]]) -> dict[str, list[str]]:
    """A name for each value of each axis: bare kinds where these say enough for the whole axis, else ``knob=value``.

    Names are distinct within an axis, and knobs are written with as much of their path as tells them apart.
    """
    short = short_paths(axes)
    bare = {path: [plain(value) for value in values] for path, values in axes.items()}
    spoken = [label for labels in bare.values() for label in labels]
    kinds = {kind for slot in Part.slots.values() for kind in slot.kinds} - {"none"}
    named = {}
    for path, values in axes.items():
        if all(label in kinds and spoken.count(label) == 1 for label in bare[path]):
            named[path] = bare[path]
            continue
        labels = [f"{short[path]}={_full(value, values)}" for value in values]
        named[path] = [f"{label}#{i}" if labels.count(label) > 1 else label for i, label in enumerate(labels)]
    return named


def short_paths(paths: Iterable[str]) -> dict[str, str]:
    """Each path's shortest ending that no other path has."""
    paths = list(paths)
    short = {}
    for path in paths:
        steps = split_path(path)
        for n in range(1, len(steps) + 1):
            ending = steps[-n:]
            if sum(split_path(other)[-n:] == ending for other in paths) == 1:
                break
        short[path] = join_path(ending)
    return short


def plain(value: Any) -> str:
    """A value in few words: a kind's name, a short number."""
    if isinstance(value, Mapping):
        return str(value.get("kind", "+".join(f"{k}={plain(v)}" for k, v in value.items())))
    if isinstance(value, list):
        return "+".join(map(plain, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _full(value: Any, others: list[Any]) -> str:
    """The value's plain name, with the knobs in which it differs from others of the same plain name."""
    name = plain(value)
    twins = [other for other in others if plain(other) == name]
    if len(twins) < 2 or not isinstance(value, Mapping):
        return name
    telling = [k for k in value if any(not isinstance(t, Mapping) or t.get(k) != value[k] for t in twins)]
    inner = ",".join(f"{key}={plain(value[key])}" for key in telling)
    return f"{name}({inner})" if inner else name


Table = Mapping[str, Any]  # a recipe as plain tables, as tabulate and recipe.toml give it


def differences(recipe: Recipe | Table, baseline: Recipe | Table) -> dict[str, tuple[Any, Any]]:
    """Every knob in which a recipe differs: dotted path -> (the baseline's value, its own); None where it has no such knob."""
    found = dict(_differ(tabulate(baseline), tabulate(recipe), ""))
    return {path: pair for path, pair in found.items() if path not in ("name", "variant")}


def changes(recipe: Recipe | Table, baseline: Recipe | Table) -> dict[str, tuple[str, str]]:
    """The same in short: a swap of kind is one entry, with those knobs of the new kind that nobody could guess.

    They are the ones that both kinds have and that changed, and those that only the new kind has and that are not its
    defaults. The old kind's own knobs are gone with it.
    """
    found = _differ(tabulate(baseline), tabulate(recipe), "", swaps=True)
    return {path: _shortly(*pair) for path, pair in found if path not in ("name", "variant")}


def _differ(theirs: Any, ours: Any, path: str, swaps: bool = False) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The leaves in which two tables differ; with ``swaps`` a part of another kind is a leaf."""
    if theirs == ours:
        return
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping) and not (swaps and _swapped(theirs, ours)):
        for key in (*theirs, *(k for k in ours if k not in theirs)):
            yield from _differ(theirs.get(key), ours.get(key), f"{path}.{key}" if path else key, swaps)
    elif _kinds(theirs) is not None and _kinds(theirs) == _kinds(ours):
        for i, (a, b) in enumerate(zip(theirs, ours, strict=True)):
            yield from _differ(a, b, f"{path}[{i}]", swaps)
    else:
        yield path, (theirs, ours)


def _swapped(theirs: Table, ours: Table) -> bool:
    return "kind" in theirs and "kind" in ours and theirs["kind"] != ours["kind"]


def _shortly(theirs: Any, ours: Any) -> tuple[str, str]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping) and _swapped(theirs, ours):
        usual = _defaults(ours)
        telling = {
            k: v for k, v in ours.items() if (v != theirs[k] if k in theirs else k not in usual or usual[k] != v)
        }
        return theirs["kind"], spell({"kind": ours["kind"], **{k: _bare(v) for k, v in telling.items() if k != "kind"}})
    return spell(_bare(theirs)), spell(_bare(ours))


def _bare(value: Any) -> Any:
    """A table without the knobs that are its kind's defaults, all the way down."""
    if isinstance(value, Mapping):
        usual = _defaults(value)
        return {k: _bare(v) for k, v in value.items() if k == "kind" or k not in usual or usual[k] != v}
    return [_bare(item) for item in value] if isinstance(value, list) else value


def _defaults(table: Table) -> Table:
    """The default knobs of the kind that a table names, None as "none"; empty for a kind that nobody has registered."""
    for slot in Part.slots.values():
        part = slot.kinds.get(table.get("kind", ""))
        if part is not None and table.keys() - {"kind"} <= part.Config.model_fields.keys():
            fields = part.Config.model_fields.items()
            usual = {k: info.get_default(call_default_factory=True) for k, info in fields if not info.is_required()}
            return {k: "none" if v is None else tabulate(v) for k, v in usual.items()}
    return {}


def _kinds(value: Any) -> list[Any] | None:
    """The kinds in a list of parts, None for anything else."""
    listed = isinstance(value, list) and value and all(isinstance(item, Mapping) and "kind" in item for item in value)
    return [item["kind"] for item in value] if listed else None


def spell(value: Any) -> str:
    """A knob's value in few words: ``rope(theta=10000, dims=16)``, ``rms_norm+smear_gate``."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        knobs = ", ".join(f"{k}={spell(v)}" for k, v in value.items() if k != "kind")
        return f"{value['kind']}({knobs})".replace("()", "") if "kind" in value else f"{{{knobs}}}"
    if isinstance(value, list):
        return "+".join(map(spell, value)) or "none"
    return plain(value)

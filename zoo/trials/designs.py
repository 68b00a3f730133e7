"""Designs: from what ``[grid]`` says to the arms as they are written, before anything is resolved.

Every design takes axes (a dotted path and its values, the first of which is the baseline's) and ``[[grid.variant]]`` (a name
and the changes in ``set``):

- ``factorial`` (default): every combination of the axes; variants are further arms laid over the baseline. Without axes the
  variants are all there is, and the first one is the baseline.
- ``one_at_a_time``: the baseline, each other value of each axis alone, each variant alone.
- ``leave_one_out``: the same, said of a full recipe: each variant takes one ingredient away.
- ``add_one_in``: the same, said of a bare recipe: each variant adds one ingredient.
- ``path``: a ladder; each rung keeps what the rungs below it changed. ``order = "given"`` takes the ingredients as they are
  written, ``order = "greedy"`` takes the best of those that are left, rung by rung, until all are in (Fawcett and Hoos,
  "Analysing differences between algorithm configurations through ablation", 2016).
- ``random``: ``n`` draws; an axis may be a range ``{ low = 0.005, high = 0.1, scale = "log" }``.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from zoo.core.part import ConfigError, nearest
from zoo.core.tables import join_path, nested, split_path
from zoo.files import Patch
from zoo.recipe import Recipe
from zoo.trials.names import label_values, plain, short_paths

DESIGNS = ("factorial", "one_at_a_time", "leave_one_out", "add_one_in", "path", "random")
ORDERS = ("given", "greedy")
RANGE = ("low", "high", "scale")
TABLES = ("lr", "race", "follow")  # words of [grid] that may be tables
RESERVED = (
    "seeds",
    "design",
    "variant",
    "order",
    "n",
    "sample_seed",
    "match",
    "match_multiple_of",
    "lr_extend",
    *TABLES,
)
BASELINE = "baseline"  # the name of an arm that is the recipe itself


class Draft(NamedTuple):
    """An arm as written: its name and what it lays over the recipe."""

    name: str
    patches: tuple[Patch, ...]
    levels: tuple[tuple[str, str], ...] = ()  # of a factorial: axis and the name of its value
    match: str | None = None  # instead of the grid's


class Range(NamedTuple):
    """What a draw is taken from: uniform between the ends, or uniform in the logarithm."""

    low: float
    high: float
    scale: Literal["linear", "log"]
    whole: bool  # both ends are whole numbers, and so is every draw


class Study(NamedTuple):
    """What ``[grid]`` says, checked as far as it can be without resolving an arm."""

    origin: str
    words: dict[str, Any]  # everything in RESERVED that it states
    design: str
    order: str
    varied: tuple[str, ...]  # the paths of all axes
    start: tuple[Patch, ...]  # the axes' first values
    drafts: tuple[Draft, ...]  # the arms that are known from the beginning, the baseline first
    ingredients: tuple[Draft, ...]  # of a path, in the order written

    @property
    def greedy(self) -> bool:
        """Whether later arms depend on the results of earlier ones."""
        return self.order == "greedy"


def study_of(grid: Patch) -> Study:
    """Read ``[grid]``.

    Raises:
        ConfigError: an unknown design, an axis that is no list or range or is empty, a variant without a name, a name given
            twice, a word that belongs to another design.
    """
    table = _folded(grid.table)
    words = {key: value for key, value in table.items() if key in RESERVED}
    design = _choice(grid.origin, "design", words.get("design", DESIGNS[0]), DESIGNS)
    order = _choice(grid.origin, "order", words.get("order", ORDERS[0]), ORDERS)
    for word, home in (("order", "path"), ("n", "random"), ("sample_seed", "random")):
        if word in words and design != home:
            raise ConfigError(f'{grid.origin}: grid.{word}: belongs to design = "{home}"; this one is "{design}"')
    found = {path: _axis(grid.origin, path, values) for path, values in table.items() if path not in RESERVED}
    ranges = {path: axis for path, axis in found.items() if isinstance(axis, Range)}
    axes = {path: axis for path, axis in found.items() if not isinstance(axis, Range)}
    if ranges and design != "random":
        path = next(iter(ranges))
        raise ConfigError(
            f'{grid.origin}: grid.{path}: a range needs design = "random" and n; else write a list of values'
        )
    start = tuple(_patch(grid.origin, path, values[0]) for path, values in axes.items())
    variants = [_variant(grid.origin, i, item) for i, item in enumerate(_list(grid, "variant"))]
    _distinct(grid.origin, variants)
    ingredients: list[Draft] = []
    if design == "factorial":
        drafts = _product(grid.origin, axes) if axes or not variants else []
    elif design == "path":
        ingredients = [*_one_at_a_time(grid.origin, axes, ()), *variants]
        drafts = [Draft(BASELINE, start), *_ladder(grid.origin, axes, start, ingredients, order)]
        variants = []
    elif design == "random":
        drafts = [Draft(BASELINE, start), *_random(grid.origin, words, axes, ranges)]
    else:
        drafts = [Draft(BASELINE, start), *_one_at_a_time(grid.origin, axes, start)]
    drafts += [draft._replace(patches=(*start, *draft.patches)) for draft in variants]
    _distinct(grid.origin, drafts)
    return Study(grid.origin, words, design, order, tuple(found), start, tuple(drafts), tuple(ingredients))


def rung(study: Study, chosen: Sequence[Draft]) -> Draft:
    """The arm that has every one of these ingredients, the later over the earlier."""
    return Draft(" + ".join(d.name for d in chosen), (*study.start, *(p for d in chosen for p in d.patches)))


def _folded(table: Mapping[str, Any]) -> dict[str, Any]:
    """A grid in which tables that are no axes stand whole again: ranges, and the words that may be tables."""
    folded: dict[str, Any] = {}
    for key, value in table.items():
        steps = split_path(key)
        if len(steps) > 1 and steps[0] in TABLES:
            at, inner = steps[0], nested(join_path(steps[1:]), value)
        elif len(steps) > 1 and steps[-1] in RANGE and join_path(steps[:-1]) not in table:
            at, inner = join_path(steps[:-1]), {steps[-1]: value}
        else:
            folded[key] = value
            continue
        before = folded.get(at, {})
        folded[at] = {**before, **inner} if isinstance(before, Mapping) else inner
    return folded


def _choice(origin: str, word: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise ConfigError(f"{origin}: grid.{word} = {value!r}: no such {word}, {nearest(str(value), known)}")
    return str(value)


def _distinct(origin: str, drafts: Sequence[Draft]) -> None:
    names = [draft.name for draft in drafts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{origin}: grid.variant: two arms are called {twice!r}")


def _axis(origin: str, path: str, values: Any) -> list[Any] | Range:
    known = [*(name for name in Recipe.model_fields if name not in ("name", "variant", "base", "plugins")), "kinds"]
    first = split_path(path)[0]
    if first not in known:
        raise ConfigError(f"{origin}: grid.{path}: unknown axis, {nearest(first, [*known, *RESERVED])}")
    if path == "train.seed":
        raise ConfigError(f"{origin}: grid.{path}: write seeds = [0, 1, 2] or seeds = 3 in [grid]")
    if isinstance(values, Mapping):
        return _range(f"{origin}: grid.{path}", values)
    if not isinstance(values, list):
        raise ConfigError(f"{origin}: grid.{path} = {values!r}: an axis is a list of values, the baseline's first")
    if not values:
        raise ConfigError(f"{origin}: grid.{path} = []: an axis without values makes a grid without trials")
    return values


def _range(place: str, table: Mapping[str, Any]) -> Range:
    for key in table:
        if key not in RANGE:
            raise ConfigError(f"{place}.{key}: unknown key of a range, {nearest(key, RANGE)}")
    low, high, scale = table.get("low"), table.get("high"), table.get("scale", "linear")
    if not all(type(end) in (int, float) and math.isfinite(end) for end in (low, high)) or low >= high:
        raise ConfigError(f"{place} = {dict(table)!r}: a range needs numbers low < high")
    if scale not in ("linear", "log"):
        raise ConfigError(f"{place}.scale = {scale!r}: {nearest(str(scale), ('linear', 'log'))}")
    if scale == "log" and low <= 0:
        raise ConfigError(f"{place}.low = {low!r}: must be above zero where the scale is the logarithm")
    return Range(low, high, scale, type(low) is int and type(high) is int)


def _list(grid: Patch, key: str) -> list[Any]:
    value = grid.table.get(key, [])
    if not isinstance(value, list):
        raise ConfigError(f"{grid.origin}: grid.{key}: must be a list of tables: write [[grid.{key}]]")
    return value


def _variant(origin: str, index: int, item: Any) -> Draft:
    place = f"{origin}: grid.variant[{index}]"
    if not isinstance(item, Mapping):
        raise ConfigError(f"{place} = {item!r}: must be a table with a name and the changes in set")
    for key in item:
        if key not in ("name", "set", "match"):
            raise ConfigError(f"{place}.{key}: unknown key, {nearest(key, ['name', 'set'])}; changes belong into set")
    name, changes = item.get("name"), item.get("set", {})
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{place}: needs a name")
    if not isinstance(changes, Mapping):
        raise ConfigError(f"{place}.set = {changes!r}: must be a table of paths and values")
    patches = tuple(Patch(f"{origin}, variant {name!r}", nested(path, value)) for path, value in changes.items())
    return Draft(name, patches, match=item.get("match"))


def _patch(origin: str, path: str, value: Any) -> Patch:
    return Patch(f"{origin}, grid axis {path!r}", nested(path, value))


def _product(origin: str, axes: Mapping[str, list[Any]]) -> list[Draft]:
    labels = label_values(axes)
    places = itertools.product(*(range(len(values)) for values in axes.values()))
    drafts = []
    for place in places:
        levels = tuple((path, labels[path][i]) for path, i in zip(axes, place, strict=True))
        patches = tuple(_patch(origin, path, axes[path][i]) for path, i in zip(axes, place, strict=True))
        drafts.append(Draft(" ".join(label for _, label in levels) or BASELINE, patches, levels))
    return drafts


def _one_at_a_time(origin: str, axes: Mapping[str, list[Any]], start: tuple[Patch, ...]) -> list[Draft]:
    """Each other value of each axis, laid over ``start``; alone where that is empty."""
    labels = label_values(axes)
    return [
        Draft(labels[path][i], (*start[:at], _patch(origin, path, values[i]), *start[at + 1 :]))
        for at, (path, values) in enumerate(axes.items())
        for i in range(1, len(values))
    ]


def _ladder(
    origin: str, axes: Mapping[str, list[Any]], start: tuple[Patch, ...], ingredients: Sequence[Draft], order: str
) -> list[Draft]:
    """The rungs of a path; of a greedy one the candidates for the first rung."""
    if not ingredients:
        raise ConfigError(f'{origin}: grid: design = "path" needs ingredients: axes with several values, or variants')
    if order == "greedy":
        if path := next((path for path, values in axes.items() if len(values) > 2), None):
            raise ConfigError(f"{origin}: grid.{path}: an ingredient of a greedy path is in or out: two values")
        return [draft._replace(patches=(*start, *draft.patches)) for draft in ingredients]
    rungs, below = [], start
    for draft in ingredients:
        below = (*below, *draft.patches)
        rungs.append(draft._replace(name=f"+ {draft.name}", patches=below))
    return rungs


def _random(
    origin: str, words: Mapping[str, Any], axes: Mapping[str, list[Any]], ranges: Mapping[str, Range]
) -> list[Draft]:
    """``n`` arms; the value of one axis in one arm depends on nothing but seed, axis and number, so more can be drawn."""
    n, seed = words.get("n"), words.get("sample_seed", 0)
    if type(n) is not int or n < 1:
        raise ConfigError(f'{origin}: grid.n = {n!r}: design = "random" needs the number of draws, at least 1')
    if not axes and not ranges:
        raise ConfigError(f'{origin}: grid: design = "random" needs something to draw: ranges, or axes with values')
    short, labels = short_paths([*axes, *ranges]), label_values(axes)
    drafts = []
    for i in range(n):
        said, patches = [], []
        for path in (*axes, *ranges):
            share = _share(seed, path, i)
            if path in axes:
                k = int(share * len(axes[path]))
                value, spoken = axes[path][k], labels[path][k]
            else:
                value = draw(ranges[path], share)
                spoken = f"{short[path]}={plain(value)}"
            said.append(spoken)
            patches.append(_patch(origin, path, value))
        drafts.append(Draft(f"r{i:0{len(str(n - 1))}} {' '.join(said)}", tuple(patches)))
    return drafts


def draw(span: Range, share: float) -> float | int:
    """The value at ``share`` in [0, 1) of a range, to three digits, so that its name says it exactly."""
    if span.scale == "log":
        value = math.exp(math.log(span.low) + share * (math.log(span.high) - math.log(span.low)))
    elif span.whole:
        return math.floor(span.low + share * (span.high - span.low + 1))
    else:
        value = span.low + share * (span.high - span.low)
    short = round(value) if span.whole else float(f"{value:.3g}")
    return min(max(short, span.low), span.high)


def _share(seed: Any, path: str, i: int) -> float:
    """Uniform in [0, 1), from what it is for."""
    return int.from_bytes(hashlib.sha256(f"{seed} {path} {i}".encode()).digest()[:6], "big") / 2**48

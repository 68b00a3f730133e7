"""From a recipe file to the arms of its grid, every one resolved before anything is trained.

``[grid]`` holds axes (a dotted path and its values, the first of which is the baseline's), ``[[grid.variant]]`` (a name and
the changes in ``set``), ``seeds``, and a ``design``:

- ``factorial`` (default): every combination of the axes; variants are further arms laid over the baseline. Without axes the
  variants are all there is, and the first one is the baseline.
- ``one_at_a_time``: the baseline, each other value of each axis alone, each variant alone.
- ``leave_one_out``: the same, said of a full recipe: each variant takes one ingredient away.
"""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zoo import machine
from zoo.core.part import ConfigError, nearest
from zoo.core.tables import nested, split_path
from zoo.files import Choice, Patch, choose, parse_set, read
from zoo.recipe import Recipe
from zoo.resolve import resolve
from zoo.trials.names import label_values

DESIGNS = ("factorial", "one_at_a_time", "leave_one_out")
RESERVED = ("seeds", "design", "variant")
BASELINE = "baseline"  # the name of an arm that is the recipe itself


class Arm(NamedTuple):
    """One variant of a grid; the seed is the first of the grid's."""

    name: str
    recipe: Recipe
    also: tuple[str, ...] = ()  # names of later arms that turned out to be the same recipe


class Grid(NamedTuple):
    """All that is to be trained, and in which order: the first arm is the baseline."""

    name: str
    path: Path
    folder: Path  # where relative paths of the recipe start from
    recipe: Recipe  # what the file says with every axis at its first value and no variant
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    said: tuple[str, ...]  # decisions made on the user's behalf, in plain lines
    patches: tuple[Patch, ...]  # below the arms; to say where something was written

    def only(self, pattern: str) -> tuple[Arm, ...]:
        """The arms whose names match a glob.

        Raises:
            ConfigError: none does.
        """
        found = tuple(arm for arm in self.arms if any(fnmatch.fnmatchcase(n, pattern) for n in (arm.name, *arm.also)))
        if not found:
            raise ConfigError(f"--only {pattern}: no such arm, {nearest(pattern, [arm.name for arm in self.arms])}")
        return found


class Draft(NamedTuple):
    """An arm as written: its name and what it lays over the recipe."""

    name: str
    patches: tuple[Patch, ...]


def plan(
    path: Path,
    profile: str | None = None,
    sets: Sequence[str] = (),
    seeds: int | None = None,
    device: str | None = None,
) -> Grid:
    """Read a recipe and resolve every arm of its grid.

    Args:
        path: the recipe file.
        profile: its profile; ``full`` for none; None: ``cpu`` where no GPU is used and the recipe has it.
        sets: ``path=value``, laid over the profile; on an axis's path it removes the axis.
        seeds: how many, instead of what the grid says.
        device: instead of what the recipe says.

    Raises:
        ConfigError: anything in the files, the grid or one of its arms that cannot be.
    """
    book = read(Path(path))
    settled = _settle_device(book.patches, sets, device)
    choice = choose(book, profile, sets, settled)
    recipe, arms = _resolve_arms(choice, settled)
    numbers = _seeds(choice.grid, seeds, recipe.train.seed)
    if len(numbers) != len(set(numbers)):
        raise ConfigError(f"{choice.grid.origin}: grid.seeds = {list(numbers)}: each seed once")
    return Grid(book.name, Path(path), book.folder, recipe, arms, numbers, choice.said, choice.patches)


def _settle_device(patches: Sequence[Patch], sets: Sequence[str], asked: str | None) -> str:
    """Where trials run, which the choice of a profile depends on."""
    origin, found = "--device", asked
    if found is None:
        typed = [Patch(e.origin, nested(e.path, e.value)) for e in map(parse_set, sets)]
        for patch in (*patches, *typed):
            stated = patch.table.get("machine")
            if isinstance(stated, Mapping) and "device" in stated:
                origin, found = patch.origin, stated["device"]
    try:
        return machine.settle_device("auto" if found is None else str(found))
    except ConfigError as fault:
        raise ConfigError(f"{origin}: {fault.under('machine')}") from None


def _resolve_arms(choice: Choice, device: str) -> tuple[Recipe, tuple[Arm, ...]]:
    below = (*choice.patches, Patch(str(choice.book.path), {"name": choice.book.name}))
    start, drafts = draft_arms(choice.grid)
    recipe = _settle(resolve((*below, *start)), device)
    arms: list[Arm] = []
    for draft in drafts:
        try:
            resolved = _settle(resolve((*below, *draft.patches, Patch("", {"variant": draft.name}))), device)
        except ConfigError as fault:
            said = str(fault)
            raise ConfigError(
                said if f"variant {draft.name!r}" in said else f"variant {draft.name!r} of {said}"
            ) from None
        twin = next((i for i, arm in enumerate(arms) if _same(arm.recipe, resolved)), None)
        if twin is None:
            arms.append(Arm(draft.name, resolved))
        else:
            arms[twin] = arms[twin]._replace(also=(*arms[twin].also, draft.name))
    return recipe, tuple(arms)


def _settle(recipe: Recipe, device: str) -> Recipe:
    """The recipe with its machine decided, so that nothing which changes bits lies outside it."""
    dtype, threads = machine.settle_dtype(recipe.machine.dtype, device), machine.settle_threads(recipe.machine.threads)
    settled = recipe.machine.model_copy(update={"device": device, "dtype": dtype, "threads": threads})
    return recipe.model_copy(update={"machine": settled})


def _same(a: Recipe, b: Recipe) -> bool:
    return a.model_copy(update={"variant": ""}) == b.model_copy(update={"variant": ""})


def draft_arms(grid: Patch) -> tuple[tuple[Patch, ...], tuple[Draft, ...]]:
    """The patches of the axes' first values, and the arms as the grid writes them, the baseline first.

    Raises:
        ConfigError: an unknown design, an axis that is no list or is empty, a variant without a name, a name given twice.
    """
    design = grid.table.get("design", DESIGNS[0])
    if design not in DESIGNS:
        raise ConfigError(f"{grid.origin}: grid.design = {design!r}: no such design, {nearest(str(design), DESIGNS)}")
    axes = {path: _axis(grid.origin, path, values) for path, values in grid.table.items() if path not in RESERVED}
    start = tuple(_patch(grid.origin, path, values[0]) for path, values in axes.items())
    variants = [_variant(grid.origin, i, item) for i, item in enumerate(_list(grid, "variant"))]
    if design == "factorial":
        drafts = _product(grid.origin, axes) if axes or not variants else []
    else:
        drafts = [Draft(BASELINE, start), *_one_at_a_time(grid.origin, axes, start)]
    drafts += [Draft(name, (*start, *patches)) for name, patches in variants]
    names = [draft.name for draft in drafts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{grid.origin}: grid.variant: two arms are called {twice!r}")
    return start, tuple(drafts)


def _axis(origin: str, path: str, values: Any) -> list[Any]:
    known = [*(name for name in Recipe.model_fields if name not in ("name", "variant", "base", "plugins")), "kinds"]
    first = split_path(path)[0]
    if first not in known:
        raise ConfigError(f"{origin}: grid.{path}: unknown axis, {nearest(first, [*known, *RESERVED])}")
    if path == "train.seed":
        raise ConfigError(f"{origin}: grid.{path}: write seeds = [0, 1, 2] or seeds = 3 in [grid]")
    if not isinstance(values, list):
        raise ConfigError(f"{origin}: grid.{path} = {values!r}: an axis is a list of values, the baseline's first")
    if not values:
        raise ConfigError(f"{origin}: grid.{path} = []: an axis without values makes a grid without trials")
    return values


def _list(grid: Patch, key: str) -> list[Any]:
    value = grid.table.get(key, [])
    if not isinstance(value, list):
        raise ConfigError(f"{grid.origin}: grid.{key}: must be a list of tables: write [[grid.{key}]]")
    return value


def _variant(origin: str, index: int, item: Any) -> tuple[str, tuple[Patch, ...]]:
    place = f"{origin}: grid.variant[{index}]"
    if not isinstance(item, Mapping):
        raise ConfigError(f"{place} = {item!r}: must be a table with a name and the changes in set")
    for key in item:
        if key not in ("name", "set"):
            raise ConfigError(f"{place}.{key}: unknown key, {nearest(key, ['name', 'set'])}; changes belong into set")
    name, changes = item.get("name"), item.get("set", {})
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{place}: needs a name")
    if not isinstance(changes, Mapping):
        raise ConfigError(f"{place}.set = {changes!r}: must be a table of paths and values")
    return name, tuple(Patch(f"{origin}, variant {name!r}", nested(path, value)) for path, value in changes.items())


def _patch(origin: str, path: str, value: Any) -> Patch:
    return Patch(f"{origin}, grid axis {path!r}", nested(path, value))


def _product(origin: str, axes: Mapping[str, list[Any]]) -> list[Draft]:
    labels = label_values(axes)
    places = itertools.product(*(range(len(values)) for values in axes.values()))
    drafts = []
    for place in places:
        chosen = list(zip(axes, place, strict=True))
        name = " ".join(labels[path][i] for path, i in chosen) or BASELINE
        drafts.append(Draft(name, tuple(_patch(origin, path, axes[path][i]) for path, i in chosen)))
    return drafts


def _one_at_a_time(origin: str, axes: Mapping[str, list[Any]], start: tuple[Patch, ...]) -> list[Draft]:
    labels = label_values(axes)
    return [
        Draft(labels[path][i], (*start[:at], _patch(origin, path, values[i]), *start[at + 1 :]))
        for at, (path, values) in enumerate(axes.items())
        for i in range(1, len(values))
    ]


def _seeds(grid: Patch, count: int | None, first: int) -> tuple[int, ...]:
    """``seeds = 3`` counts from the recipe's own seed; a list names them."""
    asked = grid.table.get("seeds", 1) if count is None else count
    place = f"{grid.origin}: grid.seeds" if count is None else "--seeds"
    if isinstance(asked, list) and asked and all(type(seed) is int and seed >= 0 for seed in asked):
        return tuple(asked)
    if type(asked) is not int or asked < 1:
        raise ConfigError(
            f"{place} = {asked!r}: must be a count of at least 1 or a list of seeds; this is a grid without trials"
        )
    return tuple(range(first, first + asked))


def trial_recipe(arm: Arm, seed: int) -> Recipe:
    """The arm with one of the grid's seeds."""
    return arm.recipe.model_copy(update={"train": arm.recipe.train.model_copy(update={"seed": seed})})

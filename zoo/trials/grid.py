"""From a recipe file to the arms of its grid, every one resolved before anything is trained.

``[grid]`` holds axes, variants and the words of zoo/trials/designs.py, ``seeds``, ``match`` (zoo/trials/match.py) and ``lr``
(zoo/trials/envelope.py). A draft becomes an arm in this order: resolved, its width matched, crossed with the rates.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from zoo import machine
from zoo.budget import settle_compile
from zoo.core.part import ConfigError, nearest
from zoo.core.tables import nested
from zoo.files import Choice, Patch, choose, parse_set, read
from zoo.parallel import local_size
from zoo.recipe import Recipe
from zoo.resolve import resolve
from zoo.trials import match as matching
from zoo.trials.designs import Draft, Study, study_of
from zoo.trials.envelope import Ladder, Rate, at_rate, ladder
from zoo.trials.match import Matched
from zoo.trials.vocabulary import known_vocabulary, likely_vocabulary, with_vocabulary


class Arm(NamedTuple):
    """One variant of a grid; the seed is the first of the grid's."""

    name: str
    recipe: Recipe
    also: tuple[str, ...] = ()  # names of later arms that turned out to be the same recipe
    levels: tuple[tuple[str, str], ...] = ()  # in a factorial: axis and the name of its value
    rate: Rate | None = None  # its place in the learning-rate envelope
    matched: Matched | None = None  # how its width came about

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of a table has to know of how this arm came about."""
        return () if self.matched is None else (self.matched.note(),)


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
    study: Study  # what [grid] says
    ladder: Ladder | None  # the rates that every arm is crossed with

    def only(self, pattern: str) -> tuple[Arm, ...]:
        """The arms whose names match a glob.

        Raises:
            ConfigError: none does.
        """
        found = tuple(arm for arm in self.arms if any(fnmatch.fnmatchcase(n, pattern) for n in (arm.name, *arm.also)))
        if not found:
            raise ConfigError(f"--only {pattern}: no such arm, {nearest(pattern, [arm.name for arm in self.arms])}")
        return found


def plan(
    path: Path,
    profile: str | None = None,
    sets: Sequence[str] = (),
    seeds: int | None = None,
    device: str | None = None,
    widths: Literal["matched", "as_written"] = "matched",
    ranks: int = 1,
) -> Grid:
    """Read a recipe and resolve every arm of its grid.

    Args:
        path: the recipe file.
        profile: its profile; ``full`` for none; None: ``cpu`` where no GPU is used and the recipe has it.
        sets: ``path=value``, laid over the profile; on an axis's path it removes the axis.
        seeds: how many, instead of what the grid says.
        device: instead of what the recipe says.
        widths: whether ``grid.match`` is obeyed.
        ranks: the processes that train each trial together, where the recipe does not say.

    Raises:
        ConfigError: anything in the files, the grid or one of its arms that cannot be.
    """
    book = read(Path(path))
    settled = _settle_device(book.patches, sets, device)
    choice = choose(book, profile, sets, settled)
    study = study_of(choice.grid)
    recipe = _settle(resolve((*_below(choice), *study.start)), settled, ranks, None)
    numbers = _seeds(choice.grid, seeds, recipe.train.seed)
    if len(numbers) != len(set(numbers)):
        raise ConfigError(f"{choice.grid.origin}: grid.seeds = {list(numbers)}: each seed once")
    grid = Grid(
        book.name, Path(path), book.folder, recipe, (), numbers, choice.said, _below(choice), study, _ladder(study)
    )
    return grid._replace(arms=arms_of(grid, study.drafts, widths))


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


def _below(choice: Choice) -> tuple[Patch, ...]:
    """What lies below every arm."""
    return (*choice.patches, Patch(str(choice.book.path), {"name": choice.book.name}))


def _ladder(study: Study) -> Ladder | None:
    found = ladder(study.origin, study.words.get("lr"))
    clash = next((path for path in study.varied if path.startswith("optim.") and path.endswith(".lr")), None)
    if found and clash:
        raise ConfigError(f"{study.origin}: grid.lr: the axis {clash} varies a rate already; leave one of them out")
    if "lr_extend" in study.words and found is None:
        raise ConfigError(f"{study.origin}: grid.lr_extend: there is no grid.lr to extend")
    return found


def arms_of(
    grid: Grid, drafts: Sequence[Draft], widths: Literal["matched", "as_written"] = "matched"
) -> tuple[Arm, ...]:
    """Drafts as arms: resolved, matched, at every rate; equal ones found once.

    Args:
        grid: its arms are not looked at, except that the first draft of the study is the baseline of every match.
        drafts: as the study writes them.
        widths: whether ``grid.match`` is obeyed.

    Raises:
        ConfigError: an arm that cannot be, or whose width cannot be matched.
    """
    resolved = [(draft, _resolve(grid, draft)) for draft in drafts]
    arms: list[Arm] = []
    for draft, recipe in resolved:
        matched = _match(grid, draft, recipe) if widths == "matched" else None
        for arm in _at_rates(grid, draft, recipe if matched is None else matched.recipe):
            _add(arms, arm._replace(levels=draft.levels, matched=matched))
    return tuple(arms)


def _resolve(grid: Grid, draft: Draft) -> Recipe:
    try:
        recipe = resolve((*grid.patches, *draft.patches, Patch("", {"variant": draft.name})))
        base = grid.recipe
        return _settle(recipe, base.machine.device, base.machine.ranks, base.train.compile)
    except ConfigError as fault:
        said = str(fault)
        raise ConfigError(said if f"variant {draft.name!r}" in said else f"variant {draft.name!r} of {said}") from None


def _match(grid: Grid, draft: Draft, recipe: Recipe) -> Matched | None:
    """The arm's width solved, None where nothing is to be matched."""
    origin, words = grid.study.origin, grid.study.words
    wanted = words.get("match", "none") if draft.match is None else draft.match
    multiple = words.get("match_multiple_of", matching.MULTIPLE)
    if wanted not in matching.MATCHES:
        raise ConfigError(f"{origin}: grid.match = {wanted!r}: {nearest(str(wanted), matching.MATCHES)}")
    if type(multiple) is not int or multiple < 1:
        raise ConfigError(f"{origin}: grid.match_multiple_of = {multiple!r}: must be a whole number of at least 1")
    first = grid.study.drafts[0]
    if wanted == "none" or draft.name == first.name:
        return None
    baseline = _resolve(grid, first)
    fixed = frozenset(path for path in grid.study.varied if path in (matching.HIDDEN, matching.DIM))
    try:
        matched = matching.matched(_sized(baseline, grid.folder), _sized(recipe, grid.folder), wanted, multiple, fixed)
    except ConfigError as fault:
        raise ConfigError(f"{origin}: grid.match = {wanted!r}, arm {draft.name!r}: {fault}") from None
    model = matched.recipe.model.model_copy(update={"vocab_size": recipe.model.vocab_size})
    return matched._replace(recipe=matched.recipe.model_copy(update={"model": model}))


def _sized(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its vocabulary, or with a guess at it where only the text can tell."""
    return with_vocabulary(recipe, known_vocabulary(recipe, folder) or likely_vocabulary(recipe))


def _at_rates(grid: Grid, draft: Draft, recipe: Recipe) -> list[Arm]:
    if grid.ladder is None:
        return [Arm(draft.name, recipe)]
    return [rated(grid.ladder, draft.name, recipe, value) for value in grid.ladder.values]


def rated(rungs: Ladder, name: str, recipe: Recipe, value: float) -> Arm:
    """The arm ``name`` at one rate."""
    full = f"{name} {rungs.label(value)}"
    there = at_rate(recipe, rungs, value).model_copy(update={"variant": full})
    return Arm(full, there, rate=Rate(name, value))


def _add(arms: list[Arm], arm: Arm) -> None:
    twin = next((i for i, other in enumerate(arms) if _same(other.recipe, arm.recipe)), None)
    if twin is None:
        arms.append(arm)
    else:
        arms[twin] = arms[twin]._replace(also=(*arms[twin].also, arm.name))


def _settle(recipe: Recipe, device: str, ranks: int, compiled: str | None) -> Recipe:
    """The recipe with its machine decided, so that nothing which changes bits lies outside it.

    ``compiled`` is what the grid's own recipe came to: arms with other budgets are compared with it, so they do the same.
    """
    asked = recipe.machine
    threads = asked.threads or max(1, machine.settle_threads(0) // local_size())
    found = {"device": device, "dtype": machine.settle_dtype(asked.dtype, device), "threads": threads}
    settled = asked.model_copy(update={**found, "ranks": ranks if asked.ranks == 1 else asked.ranks})
    way = compiled if compiled is not None and recipe.train.compile == "auto" else settle_compile(recipe, device)
    return recipe.model_copy(update={"machine": settled, "train": recipe.train.model_copy(update={"compile": way})})


def _same(a: Recipe, b: Recipe) -> bool:
    return a.model_copy(update={"variant": ""}) == b.model_copy(update={"variant": ""})


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

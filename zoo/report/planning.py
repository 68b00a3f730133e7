"""``plan``: what a grid will train, what its seeds can show, and, measured, what it will take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from zoo.core.part import ConfigError
from zoo.data.cache import default_cache
from zoo.report.live import view_for
from zoo.report.session import dry_run, open_grid
from zoo.report.terminal import say
from zoo.report.units import duration
from zoo.trials import match as matching
from zoo.trials.forecast import Spread, bill, detectable, spread_of, stored_results
from zoo.trials.grid import Grid, plan
from zoo.trials.places import places_for
from zoo.trials.run import data_key, make_ready
from zoo.trials.stages import is_staged, race
from zoo.trials.statistics import POWER
from zoo.trials.store import slug
from zoo.trials.timing import Timings

OTHERS = (2, 3, 5, 8, 16)  # numbers of seeds that are shown beside the one that was asked for


def show_plan(
    recipe: Path,
    profile: str | None,
    sets: Sequence[str],
    seeds: int | None,
    device: str | None,
    console: Console,
    out: Path | None = None,
    noise: float | None = None,
    measured: bool = False,
    price: float | None = None,
    workers: int | None = None,
) -> None:
    """Print the trials with their cost, the power of their seeds, and where asked the time of the whole.

    Args:
        recipe: and the following as ``open_grid`` takes them.
        out: where results lie, for the noise of earlier trials.
        noise: the standard deviation of a paired difference in bits per byte, instead of what is known.
        measured: time three steps of one arm per distinct shape.
        price: of one hour, in whatever money.
        workers: trials at once; None: as a run would.

    Raises:
        ConfigError: whatever is wrong with the recipe.
    """
    for option, value in (("--noise", noise), ("--price", price)):
        if value is not None and not value >= 0.0:
            raise ConfigError(f"{option} {value:g}: must be at least 0")
    if measured:
        _match_times(recipe, profile, sets, seeds, device, console)
    grid = open_grid(recipe, profile, sets, seeds, device, console)
    dry_run(grid, "*", console)
    for arm in grid.arms:
        for note in arm.notes:
            say(console, f"{arm.name}: {note}")
    if (asked := race(grid)) is not None:
        rungs = ", ".join(f"{steps:,}" for steps in asked.rungs)
        say(console, f"A race over {rungs} updates; counted is every arm at full length, to which not all may come.")
    elif is_staged(grid):
        say(console, "Later trials follow from the results of these, so they are not counted.")
    known = spread_of(stored_results(out or Path("results") / slug(grid.name)), [arm.name for arm in grid.arms])
    known = known if noise is None else Spread(noise, "as --noise says")
    for line in power_lines(known, len(grid.seeds)):
        say(console, line)
    if measured:
        _show_bill(grid, price, workers, console)
    elif price is not None:
        raise ConfigError("--price needs --measure: without times there is nothing to be paid for")


def power_lines(noise: Spread, seeds: int) -> list[str]:
    """What so many seeds can show, in words."""
    lines = [f"Noise of a paired difference: {noise.sd:.4f} bits/byte ({noise.said})."]
    found = detectable(noise.sd, seeds)
    if found is None:
        lines.append("One seed: no difference can be told from noise.")
    else:
        often = f"in {POWER:.0%} of cases (paired t test at 5 %, one arm)"
        lines.append(f"{seeds} seeds find a true difference of {found:.4f} bits/byte {often}.")
    others = ", ".join(f"{n} seeds {detectable(noise.sd, n):.4f}" for n in OTHERS if n != seeds)
    return [*lines, f"Others: {others}."]


def _show_bill(grid: Grid, price: float | None, workers: int | None, console: Console) -> None:
    with view_for(console) as view:
        ready = make_ready(grid, grid.arms, view)
        at_once = max(1, len(places_for([arm.recipe for arm in grid.arms], len(ready.trials), workers)))
        found = bill(ready, Timings(default_cache()), at_once, price, lambda arm: view.say(f"timing {arm} ..."))
    spent = f"{found.measured:.1f} s spent on timing" if found.measured else "nothing spent: all of it was known"
    say(console, f"Timed: {found.shapes} distinct {'shape' if found.shapes == 1 else 'shapes'}, {spent}.")
    cost = "" if found.cost is None else f", {found.cost:,.2f} at {price:g} an hour"
    say(
        console,
        f"The whole: {duration(found.seconds)} of training and scoring, {duration(found.wall)} with {at_once} at once"
        f"{cost}. The longest trial takes {duration(found.longest)}. Trials that are finished already are counted.",
    )


def _match_times(
    recipe: Path, profile: str | None, sets: Sequence[str], seeds: int | None, device: str | None, console: Console
) -> None:
    """Where widths are to be matched in time: solve them by timing, and remember them for every later run."""
    loose = plan(recipe, profile, sets, seeds, device, widths="as_written")
    if loose.study.words.get("match") != "time":
        return
    kept = Timings(default_cache())
    with view_for(console) as view:
        ready = make_ready(loose, loose.arms, view)
        recipes = {t.arm.name: t.recipe for t in ready.trials if t.recipe.train.seed == loose.seeds[0]}
        first, *others = recipes.values()
        prepared = ready.prepared[data_key(first)]
        fixed = frozenset(p for p in loose.study.varied if p in (matching.HIDDEN, matching.DIM))
        multiple = loose.study.words.get("match_multiple_of", matching.MULTIPLE)
        for other in others:
            if kept.width(first, other) is None:
                view.say(f"timing widths of {other.variant} ...")
                matching.time_widths(first, other, lambda r: kept.of(r, prepared)[0].fastest, multiple, fixed)

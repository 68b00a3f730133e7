"""What the command line does, once its words are understood. Everything is printed to the console that is given."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rich.console import Console

from zoo import collector, plugins
from zoo.api import pick, with_its_vocabulary
from zoo.core.part import ConfigError
from zoo.data.cache import default_cache
from zoo.files import read
from zoo.recipe import dumps
from zoo.report import table
from zoo.report.anatomy import anatomy, shown_lines
from zoo.report.describe import kinds
from zoo.report.diagram import diagram
from zoo.report.live import view_for
from zoo.report.publish import Cards, get_ready, write_pictures
from zoo.report.section import Section, markdown, print_section
from zoo.report.sections import sections
from zoo.report.terminal import print_table, say
from zoo.report.tracking import Tracked
from zoo.report.units import bytes_of, flops, scaled
from zoo.trials.check import Forecast, Known, Sized, check, locate, outline
from zoo.trials.cluster import ClusterCrew
from zoo.trials.grid import Grid, plan
from zoo.trials.joining import check_executor
from zoo.trials.places import Execution, Limits, places_for, that_fit, to_choose
from zoo.trials.ranks import Together, check_size, only_together
from zoo.trials.run import Outcome, Ready, data_key, make_ready, run, stored, with_known_vocabularies
from zoo.trials.sharing import MOST, Sharing
from zoo.trials.stages import beyond_plan, check_stages, staged, stopped
from zoo.trials.store import RESULT, Store, slug, write_whole
from zoo.trials.workers import Crew


def open_grid(
    recipe: Path,
    profile: str | None,
    sets: Sequence[str],
    seeds: int | None,
    device: str | None,
    console: Console,
    ranks: int = 1,
) -> Grid:
    """Read a recipe and say what was decided on the user's behalf."""
    grid = plan(recipe, profile, sets, seeds, device, ranks=ranks)
    check_stages(grid)
    for line in grid.said:
        say(console, line)
    return grid


@collector.at_rest()  # models on the meta device stay small, and the first of them imports much
def dry_run(grid: Grid, only: str, console: Console) -> None:
    """List the trials with their cost; nothing is trained, and text is read only where the vocabulary depends on it."""
    wanted = grid.only(only)
    known = Sized()
    settled, guessed = with_known_vocabularies(grid)
    grid, forecasts = _with_text(grid, known, console) if guessed else (settled, check(settled, known=known))
    names = {arm.name for arm in wanted}
    rows = []
    for arm in grid.arms:
        if arm.name in names:
            seen, seconds = forecasts[arm.name], arm.recipe.train.seconds
            rows.append(
                {
                    "variant": arm.name,
                    "seeds": str(len(grid.seeds)),
                    "parameters": f"{seen.cost.parameters:,}",
                    "active": f"{seen.cost.active_parameters:,}",
                    "FLOPs/token": flops(seen.cost.flops_per_token),
                    "steps": f"{seconds:g} s" if seen.steps is None else f"{seen.steps:,}",
                    "tokens": "" if seen.steps is None else scaled(seen.steps * seen.tokens_per_step),
                    "est. memory": bytes_of(known.memories[outline(arm.recipe)]),
                }
            )
    print_table(console, f"{grid.name}: {len(rows) * len(grid.seeds)} trials", rows, ["tokens", "seeds", "FLOPs/token"])


def _with_text(grid: Grid, known: Known, console: Console) -> tuple[Grid, dict[str, Forecast]]:
    """The grid with the vocabularies that only the text can tell, and what its arms then cost."""
    with view_for(console) as view:
        ready = make_ready(grid, grid.arms, view, known)
    trials = {trial.arm.name: trial for trial in ready.trials}
    arms = tuple(trials[arm.name].arm for arm in grid.arms)
    return grid._replace(arms=arms), {name: trial.forecast for name, trial in trials.items()}


def run_grid(
    grid: Grid,
    only: str,
    out: Path | None,
    refresh: bool,
    execution: Execution,
    console: Console,
    guarded: bool = True,
    manner: str = "auto",
) -> bool:
    """Train what is missing, write and print the table.

    Returns:
        whether every trial that was asked for is done.
    """
    root = out or Path("results") / slug(grid.name)
    store = Store(root)
    outcomes: list[Outcome] = []
    wanted = grid.only(only)
    with view_for(console, grid.arms[0].name, manner) as shown, _crew(grid, wanted, execution) as crew:
        view = Tracked(shown, root)
        if crew is not None and len(list(root.glob(f"[!.]*/{RESULT}"))) < len(wanted) * len(grid.seeds):
            crew.start()  # while the text is being prepared
        if isinstance(crew, Crew):
            crew.at_last = get_ready
        text = {data_key(arm.recipe) for arm in wanted}  # arms on other text are neither trained nor looked up
        everything = make_ready(grid, [arm for arm in grid.arms if data_key(arm.recipe) in text], view)

        def train(ready: Ready) -> Iterator[Outcome]:
            trials = tuple(t._replace(guarded=guarded) for t in ready.trials)
            return run(ready._replace(trials=trials), store, grid.folder, view, refresh, crew)

        cards = Cards(everything, store, len(grid.seeds))
        try:
            for outcome in staged(grid, wanted, everything, train, view):
                outcomes.append(outcome)
                cards.add(outcome)
        finally:
            if outcomes:
                known = _with_earlier(everything, outcomes, store, stopped(grid, outcomes, everything))
                known += beyond_plan(grid, outcomes)
                beside = sections(grid, [*outcomes, *(o for o in known if o.result.status != "stopped")])
                facts = {
                    "recipe": grid.path.name,
                    "baseline": grid.arms[0].name,
                    **table.shared_facts(outcome.result for outcome in known),
                }
                _write(known, grid, root, facts, beside)
        cards.finish(known)
        write_pictures(known, grid.name, grid.arms[0], store, root, facts, view.say)
    _print(known, grid, root, console, beside)
    return all(outcome.result.status == "done" for outcome in outcomes)


def _crew(
    grid: Grid, wanted: Sequence[Arm], how: Execution
) -> AbstractContextManager[Crew | ClusterCrew | Together | None]:
    """The processes that train, not started yet; None where trials run in this one."""
    check_executor(how)
    how.limits.check()
    check_size([arm.recipe for arm in wanted], how.world.size)
    if how.world.size > 1:
        only_together(how)
        return Together(grid.folder, how.world)
    if how.executor == "ray":
        return ClusterCrew(grid.folder, [arm.recipe for arm in wanted], how.address, how.per_device, how.limits)
    if how.workers == 0:
        if how.limits != Limits():
            raise ConfigError("--workers 0: a trial in this process cannot be given up; limits need worker processes")
        return nullcontext()
    recipes, n_trials = [arm.recipe for arm in wanted], len(wanted) * len(grid.seeds)
    places = places_for(recipes, n_trials, how.workers, how.devices, how.per_device)
    sharing = None
    if to_choose(recipes, how) and n_trials > len(places):
        most = that_fit(recipes) if recipes[0].machine.device == "cpu" else MOST
        sharing = Sharing(grid.folder, most, default_cache())
    return Crew(grid.folder, places, how.limits, sharing)


def _with_earlier(
    everything: Ready, outcomes: Sequence[Outcome], store: Store, otherwise: Sequence[Outcome]
) -> list[Outcome]:
    """The outcomes of this run, what the store knows of trials that were not asked for, and ``otherwise`` for the rest."""
    fresh, spare = ({(o.trial.arm.name, o.result.seed): o for o in some} for some in (outcomes, otherwise))
    keys = (((t.arm.name, t.recipe.train.seed), t) for t in everything.trials)
    found = (fresh.get(key) or stored(t, store) or spare.get(key) for key, t in keys)
    return [outcome for outcome in found if outcome is not None]


def _write(
    outcomes: Sequence[Outcome], grid: Grid, root: Path, facts: dict[str, str], beside: Sequence[Section]
) -> None:
    rows = table.rows_of(outcomes, grid.arms[0])
    try:
        write_whole(root / "table.md", table.markdown(rows, grid.name, facts))
        write_whole(root / "table.csv", table.csv_text(rows))
        write_whole(root / "results.csv", table.trials_csv(outcome.result for outcome in outcomes))
        for section in beside:
            write_whole(root / f"{section.name}.md", markdown(section))
    except OSError as fault:
        raise ConfigError(f"{root}: cannot be written: {fault.strerror}") from None


def _print(outcomes: Sequence[Outcome], grid: Grid, root: Path, console: Console, beside: Sequence[Section]) -> None:
    rows = table.rows_of(outcomes, grid.arms[0])
    table.print_rows(console, rows, grid.name)
    for line in table.remarks(rows):
        say(console, line)
    for section in beside:
        print_section(console, section)
    more = [f"{section.name}.md" for section in beside]
    files = ", ".join(["report.html", "table.md", "table.csv", "results.csv (a row for each trial)", *more])
    say(console, f"Written to {root}{os.sep}: {files}, and a folder for each trial.")


def list_kinds(slot: str | None, recipe: Path | None, files: Sequence[Path], console: Console) -> None:
    """Print the kinds of all slots or of one."""
    plugins.discover()
    for file in files:
        try:
            plugins.load(file)
        except ConfigError as fault:
            raise ConfigError(f"{file}: {fault}") from None
    if recipe is not None:
        read(recipe)
    last = None
    for kind in kinds(slot):
        if kind.slot != last:
            say(console, f"{'' if last is None else chr(10)}{kind.slot}")
            last = kind.slot
        say(console, f"  {kind.kind:<16}{kind.idea}")
        for line in (f"source: {kind.source}" * bool(kind.source), *(f"breaks {b}" for b in kind.breaks)):
            if line:
                say(console, f"{'':18}{line}")
        if kind.knobs:
            say(console, f"{'':18}knobs: {', '.join(kind.knobs)}")


def show(
    recipe: Path,
    profile: str | None,
    sets: Sequence[str],
    device: str | None,
    variant: str | None,
    svg: Path | None,
    console: Console,
) -> None:
    """Print a recipe with every knob stated, and its model as a tree; with ``svg`` draw it instead."""
    grid = open_grid(recipe, profile, sets, None, device, console)
    arm = with_its_vocabulary(grid, pick(grid, variant))
    try:
        seen = anatomy(arm.recipe)
    except ConfigError as fault:
        raise locate(grid, arm, fault) from None
    if svg is not None:
        write_file(svg, diagram(arm.recipe, grid))
        say(console, f"Written: {svg}")
        return
    say(console, dumps(arm.recipe))
    for line in shown_lines(seen):
        say(console, line)


def write_file(path: Path, text: str) -> None:
    """Write a file that was asked for by name.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_whole(path, text)
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be written: {fault.strerror}") from None

"""Ablations from the command line: ``python ablate.py recipes/quickstart.toml`` trains the grid and prints its table."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from zoo.command import trials
from zoo.command.shared import Device, Profile, RecipeFile, Results, RunByDefault, Sets, faults_in_words

HELP = """Train the grid of a recipe and print its table.

python ablate.py RECIPE is short for python ablate.py run RECIPE.
"""

app = typer.Typer(
    cls=RunByDefault,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # frames around the help cost a third of its time
)


@app.command()
def run(
    recipe: RecipeFile,
    profile: Profile = None,
    sets: Sets = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds, instead of what the grid says.")] = None,
    device: Device = None,
    only: Annotated[str, typer.Option(metavar="PATTERN", help="Train only arms with such names, e.g. 'mla*'.")] = "*",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trials with their cost and train nothing.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where results go.  [default: results/<name of the recipe>]")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Trials at once; without it as many as find their threads. 0: in this process."),
    ] = None,
    devices: Annotated[str | None, typer.Option(metavar="0,1", help="The GPUs to use; without it one.")] = None,
    per_device: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="Trials at once on each GPU; auto, the default there: as many as pay."),
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Give up a trial that takes longer.")
    ] = None,
    silence_limit: Annotated[
        float, typer.Option(metavar="SECONDS", help="Give up a trial that does no batch for so long. 0: never.")
    ] = 1800.0,
    executor: Annotated[str, typer.Option(help="local: processes of this machine; ray: a Ray cluster.")] = "local",
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Of the Ray cluster, or auto.  [default: one of this machine alone]"),
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Train stale results again, too.")] = False,
    no_guards: Annotated[
        bool, typer.Option("--no-guards", help="Probe no trial for leaks before it trains; every result is marked.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing before the table.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON per event on standard output, words on standard error.")
    ] = False,
) -> None:
    """Train every trial that is not finished yet, and print the table."""
    from zoo import collector
    from zoo.trials import processes

    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if not dry_run and workers != 0 and executor == "local" and alone:
        processes.warm_up()  # it imports what workers need while this process imports what it needs itself
    from rich.console import Console

    with faults_in_words():
        with collector.at_rest():
            from zoo.report import session
            from zoo.trials import places, ranks

        limits = places.Limits(time_limit, silence_limit or None)
        manner = "json" if as_json else "quiet" if quiet else "auto"

        def main(world: ranks.World) -> int:
            console = Console(stderr=as_json)
            told = Console(quiet=True) if quiet else console
            grid = session.open_grid(recipe, profile, sets or [], seeds, device, told, world.size)
            if dry_run:
                session.dry_run(grid, only, console)
                return 0
            shared = places.per_device(per_device)
            execution = places.Execution(workers, devices, shared, limits, executor, address, world)
            fine = session.run_grid(grid, only, out, refresh, execution, console, not no_guards, manner)
            return 0 if fine else 1

        code = ranks.conducted(limits.silence, main)
    raise typer.Exit(code)


@app.command()
def plan(
    recipe: RecipeFile,
    profile: Profile = None,
    sets: Sets = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds, instead of what the grid says.")] = None,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="Where results lie, for the noise of what is stored there.")] = None,
    noise: Annotated[
        float | None, typer.Option(help="Spread of a paired difference, bits/byte, if you know it.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time three steps of one arm per distinct shape.")] = False,
    price: Annotated[float | None, typer.Option(help="Of one hour of the machine; with --measure.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at once; without it as a run would.")] = None,
) -> None:
    """Show what a grid would train, what its seeds can show, and with --measure what it takes."""
    from rich.console import Console

    from zoo import collector

    with faults_in_words():
        with collector.at_rest():
            from zoo.report import planning

        planning.show_plan(recipe, profile, sets or [], seeds, device, Console(), out, noise, measure, price, workers)


@app.command("list")
def list_kinds(
    slot: Annotated[str | None, typer.Argument(help="One slot, e.g. attention.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Also the kinds of this recipe's plug-ins.")] = None,
    plugin: Annotated[list[Path] | None, typer.Option(help="Also the kinds of this Python file.")] = None,
) -> None:
    """Show the kinds of every slot: idea, source, knobs."""
    from rich.console import Console

    with faults_in_words():
        from zoo.report import session

        session.list_kinds(slot, recipe, plugin or [], Console())


@app.command()
def show(
    recipe: RecipeFile,
    profile: Profile = None,
    sets: Sets = None,
    device: Device = None,
    variant: Annotated[str | None, typer.Option(help="An arm of the grid instead of the recipe itself.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw the model and the grid's axes into this file.")] = None,
) -> None:
    """Show a recipe with every knob stated, and its model as a tree with shapes, parameters and FLOPs."""
    from rich.console import Console

    with faults_in_words():
        from zoo.report import session

        session.show(recipe, profile, sets or [], device, variant, svg, Console())


@app.command()
def tokens(
    recipe: RecipeFile,
    profile: Profile = None,
    sets: Sets = None,
    variant: Annotated[str | None, typer.Option(help="An arm of the grid instead of the recipe itself.")] = None,
) -> None:
    """Show what a recipe's tokenizer makes of its text: bytes per token, unknowns, longest tokens, a sample."""
    from rich.console import Console

    with faults_in_words():
        from zoo.report import tokens as measured

        measured.tokens(recipe, profile, sets or [], None, variant, Console())


@app.command("table")
def join_results(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of results, at any depth.")],
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only such trials, e.g. 'seed==0', 'model.dim>=64', 'variant~mla'. May be given several times."
        ),
    ] = None,
    sort: Annotated[
        str, typer.Option(metavar="COLUMN", help="E.g. bits_per_byte; -bits_per_byte: largest first.")
    ] = "",
    form: Annotated[str | None, typer.Option("--format", help="md, csv, json or latex.")] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="ARM", help="What is compared with, instead of the first.")
    ] = None,
) -> None:
    """Join the results of many runs and recipes in one table."""
    from rich.console import Console

    with faults_in_words():
        from zoo.report.join import join, print_joined

        joined = join(folders, where or [], sort, baseline)
        print_joined(joined, form, Console(), lambda line: typer.echo(line, err=True))


@app.command()
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A trial's folder, or variant-seed under --out.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    out: Results = None,
) -> None:
    """Show recipes and results of two trials side by side."""
    from rich.console import Console

    with faults_in_words():
        from zoo.report.diff import print_diff
        from zoo.trials.open import open_trial

        print_diff(open_trial(a, out), open_trial(b, out), Console())


trials.join(app)

if __name__ == "__main__":
    sys.exit(app())

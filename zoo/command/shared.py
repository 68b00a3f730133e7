"""What the commands share: options of one meaning, and what becomes of a fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup


class RunByDefault(TyperGroup):
    """A first word that is no command is a recipe to run."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        told = {"--help", "--install-completion", "--show-completion"}
        if args and args[0] not in self.commands and not told & set(args[:1]):
            args = ["run", *args]
        return super().parse_args(ctx, args)


RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, e.g. recipes/quickstart.toml.")]
Profile = Annotated[
    str | None,
    typer.Option(help="A profile of the recipe; 'full' for none. Without it, 'cpu' applies where there is no GPU."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change a knob, e.g. --set model.dim=64. May be given several times."
    ),
]
TrialName = Annotated[str, typer.Argument(metavar="TRIAL", help="A trial's folder, or variant-seed under --out.")]
Results = Annotated[Path | None, typer.Option(help="Where results lie.  [default: any folder of results]")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]


@contextmanager
def faults_in_words() -> Iterator[None]:
    """A recipe that cannot be is one message and exit code 2; Ctrl-C is exit code 130."""
    from zoo.core.part import ConfigError

    try:
        yield
    except ConfigError as fault:
        typer.echo(f"error: {fault}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("Stopped. Finished trials and checkpoints are kept: give the same command again to go on.", err=True)
        raise typer.Exit(130) from None

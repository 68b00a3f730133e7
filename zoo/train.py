"""Training: a resolved recipe and its prepared data in, a Result out."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch

from zoo import machine
from zoo.budget import check_ranks, misfit
from zoo.checkpoint import writing
from zoo.core.part import ConfigError
from zoo.fallback import without_compiler
from zoo.judge import averaged, further, result_of, score, shipped
from zoo.loop import Diverged, Loop
from zoo.parallel import ALONE, World
from zoo.recipe import Recipe
from zoo.result import Result, Signals, Watch
from zoo.resume import Keeper, Stopped

if TYPE_CHECKING:
    from zoo.data.prepare import Prepared


def train(
    recipe: Recipe,
    prepared: Prepared,
    folder: Path,
    watch: Watch,
    signals: Signals = Signals(),
    world: World = ALONE,
) -> Result:
    """Train one trial and score it, from the newest checkpoint in its folder on where there is one.

    Args:
        recipe: resolved; ``machine`` says where it runs.
        prepared: the token streams, see zoo.data.prepare.
        folder: an existing folder for ``log.jsonl``, ``checkpoints/`` (the weights that were scored) and, until the trial
            is over, ``resume/``.
        watch: called at every logged step.
        signals: what else it says.
        world: the processes that train it together; this is the first of them, and the others ``follow``.

    Returns:
        the Result, with status ``done`` or ``diverged``.

    Raises:
        ConfigError: a recipe that cannot be trained, before anything has been computed.
        Unwritable: a full disk, or a folder that cannot be written; what has been kept stays.
        Failed, Broken: see zoo.parallel.
    """
    with writing(folder):
        log = (folder / "log.jsonl").open("a")
    with log:
        loop = world.together(lambda: _loop(recipe, prepared, watch, log, signals, world))
        try:
            _run(loop, folder)
            loop.remarks += misfit(recipe, loop.step)
        except Diverged as fault:
            return result_of(loop, "diverged", str(fault), None)
        with averaged(loop.model, loop.average):
            final = without_compiler(loop, lambda: score(loop.model, recipe, prepared, None, loop.scoring))
            scores = without_compiler(loop, lambda: further(loop.model, recipe, prepared, loop.scoring))
            size, coded = (None, {}) if recipe.codec is None else shipped(loop.model, recipe, prepared, loop.scoring)
            with writing(folder):
                loop.save(folder / "checkpoints")
    return result_of(loop, "done", "", final, scores | coded).model_copy(update={"artifact_bytes": size})


def follow(read: Callable[[], tuple[Recipe, Prepared]], world: World, signals: Signals = Signals()) -> None:
    """The part that a process which is not the first has in ``train``: its rows of every batch. It writes and scores nothing.

    Args:
        read: gives the same recipe and the same token streams.
        world: the processes that train together.
        signals: heard, too: whichever process is asked to stop, all of them do.
    """
    loop = world.together(lambda: _loop(*read(), lambda progress: None, io.StringIO(), signals, world))
    with suppress(Diverged):
        _run(loop, None)


def _loop(recipe: Recipe, prepared: Prepared, watch: Watch, log: TextIO, signals: Signals, world: World) -> Loop:
    """The loop, in a process that is made ready for it."""
    settled = recipe.machine
    if settled.ranks != world.size:
        why = f"processes were to train together; with torchrun --nproc_per_node {settled.ranks} they would"
        raise ConfigError(why, "machine.ranks", settled.ranks)
    check_ranks(recipe)
    torch.set_num_threads(machine.settle_threads(settled.threads))
    if machine.settle_device(settled.device) == "cpu":
        machine.keep_freed_memory()
    return Loop(recipe, prepared, watch, log, signals, world)


def _run(loop: Loop, folder: Path | None) -> None:
    """From the newest checkpoint in ``folder``, which only the first process has, to the end."""
    with loop.world.in_step(Diverged, Stopped, ConfigError):
        keeper = Keeper(loop, folder)
        keeper.restore()
        loop.run(keeper.after_step)

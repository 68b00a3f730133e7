"""Trials one after the other, each trained by all the processes that torchrun has started.

The first process runs the grid as it would by itself: it reads the recipe, prepares the text, probes, scores, writes and
prints. The others wait for it to name a trial, train their rows of it, and wait again.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo.core.part import ConfigError
from zoo.data.prepare import Prepared
from zoo.parallel import Broken, Failed, Ranks, World, join, launched
from zoo.recipe import Recipe, dumps
from zoo.result import Signals
from zoo.resume import Stopped
from zoo.trials.messages import Job
from zoo.trials.places import Execution, Place
from zoo.trials.serving import trial_of
from zoo.trials.store import Store
from zoo.trials.workers import Lost

if TYPE_CHECKING:
    from zoo.trials.run import Trial, View


AGAIN = 3.0  # seconds after which a second request to stop is another one


class Task(NamedTuple):
    """A trial as it is named to the other processes."""

    job: Job
    folder: Path  # where relative paths of the recipe start from
    fingerprint: str  # of its text


class Asked:
    """Whether this process was asked to stop (Ctrl-C, SIGTERM). While all train, that waits for the end of a step."""

    def __init__(self, world: Ranks) -> None:
        self.world, self.stop, self.since = world, False, 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.ask)

    def ask(self, *_: object) -> None:
        now, first = time.monotonic(), not self.stop
        if first:
            self.stop, self.since = True, now
        # the terminal and torchrun both say it, so what follows at once is the same request; a later one does not wait
        if (first and not self.world.busy) or now - self.since > AGAIN:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt where it was asked for and nobody has heard it."""
        if self.stop:
            raise KeyboardInterrupt


class Together:
    """Trains trials with all processes; what a Crew is to a grid.

    Args:
        folder: where relative paths of the recipe start from.
        world: the processes, of which this is the first.
    """

    places = (Place(),)
    sharing = None

    def __init__(self, folder: Path, world: Ranks) -> None:
        self.folder, self.world, self.asked = folder.absolute(), world, Asked(world)
        self.prepared: dict[str, Prepared] = {}

    def __enter__(self) -> Together:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(self, n_trials: int | None = None) -> None:
        """Nothing: they have been started."""

    def train(self, trials: Sequence[tuple[int, Trial]], total: int, store: Store, view: View) -> Iterator[Lost]:
        """Train trials in their order and yield each with its result; see Crew."""
        from zoo.trials.run import data_key, text_of, train_one

        for number, trial in trials:
            self.asked.check()
            view.begin(trial, number, total)
            key = data_key(trial.recipe)
            if key not in self.prepared:
                self.prepared[key] = text_of(trial.recipe, self.folder)
            text = self.prepared[key]
            meet = _naming(self.world, Task(_job(trial, store), self.folder, text.fingerprint))
            try:
                result = train_one(trial, text, store, self.folder, view, stop=lambda: self.asked.stop, meet=meet)
            except Stopped:
                raise KeyboardInterrupt from None
            except Broken:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others; this one has a table to write
                raise
            yield trial, result, ""


def _job(trial: Trial, store: Store) -> Job:
    return Job(dumps(trial.recipe), trial.address, trial.forecast, trial.guarded, store.root)


def _naming(world: Ranks, task: Task) -> Callable[[], World]:
    """Name a trial to the others once it may train."""

    def meet() -> World:
        world.tell(task)
        return world

    return meet


def check_size(recipes: Sequence[Recipe], size: int) -> None:
    """Whether as many processes run as the arms want.

    Raises:
        ConfigError: they do not.
    """
    for recipe in recipes:
        if (n := recipe.machine.ranks) != size:
            run = "this run has one process" if size == 1 else f"torchrun has started {size} processes"
            raise ConfigError(f"{run}; start it with torchrun --nproc_per_node {n}", "machine.ranks", n)


def only_together(how: Execution) -> None:
    """Whether options go with processes that train every trial together.

    Raises:
        ConfigError: one that says how many trials at once, or gives one up.
    """
    options = {"--workers": how.workers, "--devices": how.devices, "--per-device": how.per_device}
    options |= {"--time-limit": how.limits.time, "--address": how.address}
    for option, value in options.items():
        if value is not None:
            raise ConfigError(f"{option} {value}: the processes that torchrun has started train one trial at a time")
    if how.executor != "local":
        raise ConfigError(f"--executor {how.executor}: torchrun has started the processes already")


def conducted(patience: float | None, main: Callable[[World], int]) -> int:
    """``main`` in the first of the processes that torchrun has started, and what it asks for in the others.

    Args:
        patience: seconds after which a process that does not answer counts as lost; None: never.
        main: gives an exit code.

    Returns:
        the exit code of all of them.
    """
    place = f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}: " if launched() else ""
    try:
        world = join(patience)
        if not isinstance(world, Ranks):
            return main(world)
        code = _follow(world) if world.rank else _lead(world, main)
    except Broken as fault:  # there may be nobody left to tell
        print(f"error: {place}{fault}", file=sys.stderr, flush=True)
        return 1
    world.close()
    return code


def _lead(world: Ranks, main: Callable[[World], int]) -> int:
    code = 1
    try:
        code = main(world)
    except ConfigError:
        code = 2
        raise
    except KeyboardInterrupt:
        code = 130
        raise
    except Broken:
        code = None
        raise
    finally:
        if code is not None:
            with suppress(Broken):
                world.tell(code)
    return code


def _follow(world: Ranks) -> int:
    asked = Asked(world)
    try:
        while not isinstance(heard := world.hear(), int):
            _follow_one(heard, world, asked)
    except KeyboardInterrupt:
        return 130
    return heard


def _follow_one(task: Task, world: Ranks, asked: Asked) -> None:
    from zoo.train import follow
    from zoo.trials.run import text_of

    def read() -> tuple[Recipe, Prepared]:
        recipe = trial_of(task.job, task.folder).recipe
        prepared = text_of(recipe, task.folder)
        if prepared.fingerprint != task.fingerprint:
            raise ConfigError("is other text on another machine of this run", "data")
        return recipe, prepared

    with suppress(Failed, Stopped, ConfigError):  # the first process says so
        follow(read, world, Signals(stop=lambda: asked.stop))

"""A worker's own side: it takes trials from a pipe and sends progress and results back."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.core.part import ConfigError
from zoo.recipe import Recipe
from zoo.result import Progress
from zoo.trials.messages import Ended, Halted, Job, Message, Said, Stepped
from zoo.trials.places import Place
from zoo.trials.store import Store

if TYPE_CHECKING:
    from zoo.trials.run import Trial


class Serving:
    """A worker's side of the pipe, and whether it has been asked to stop."""

    def __init__(self, pipe: Connection, beats: Any) -> None:
        self.pipe, self.beats, self.asked = pipe, beats, False

    def send(self, message: Message) -> None:
        """A message to the parent; if there is none any more, this process stops as soon as it can."""
        try:
            self.pipe.send(message)
        except OSError:
            self.asked = True

    def say(self, line: str) -> None:
        self.send(Said(line))

    def step(self, trial: Trial, progress: Progress) -> None:
        self.send(Stepped(progress))

    def alive(self) -> None:
        self.beats.value += 1

    def stop(self) -> bool:
        return self.asked

    def ask(self, *_: object) -> None:
        self.asked = True


def serve(pipe: Connection, folder: Path, place: Place, beats: Any, environment: Mapping[str, str]) -> None:
    """What a worker does: trials from the pipe, progress and results into it, until the pipe closes.

    Args:
        pipe: to the parent.
        folder: where relative paths of the recipe start from.
        place: where it trains.
        beats: a shared number that rises with every batch.
        environment: the parent's variables now; the process that this one is a copy of may have begun under others.
    """
    end_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    serving = Serving(pipe, beats)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, serving.ask)
    if place.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.gpu  # before anything asks for a GPU
    from zoo.data.prepare import Prepared
    from zoo.resume import Stopped
    from zoo.trials.run import data_key, text_of, train_one

    gc.collect()
    gc.freeze()  # what was imported stays: not to be looked through again after every trial
    prepared: dict[str, Prepared] = {}
    while not serving.asked:
        try:
            job: Job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            trial = trial_of(job, folder, place)
            key = data_key(trial.recipe)
            if key not in prepared:
                prepared[key] = text_of(trial.recipe, folder)
            serving.alive()
            result = train_one(trial, prepared[key], Store(job.store), folder, serving, serving.alive, serving.stop)
        except Stopped:
            return
        except ConfigError as fault:  # no trial's own: those are results
            serving.send(Halted(str(fault)))
            return
        serving.send(Ended(result))


def trial_of(job: Job, folder: Path, place: Place = Place()) -> Trial:
    """The trial that was sent.

    Args:
        job: as it came.
        folder: where relative paths of the recipe start from.
        place: where it is to be trained.
    """
    from zoo.trials.grid import Arm
    from zoo.trials.run import Trial

    recipe = _understood(job.text, folder)
    if place.gpu:
        on_it = recipe.machine.model_copy(update={"device": "cuda"})  # the only one that is visible here
        recipe = recipe.model_copy(update={"machine": on_it})
    return Trial(Arm(recipe.variant, recipe), recipe, job.forecast, job.address, job.guarded)


def end_with_parent() -> None:
    """Have this process end when its parent does, even if that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _understood(text: str, folder: Path) -> Recipe:
    import tomllib

    from zoo import plugins
    from zoo.resolve import loads

    plugins.discover()
    for plugin in tomllib.loads(text).get("plugins", ()):
        plugins.load(folder / plugin)
    return loads(text)

"""Several trials side by side, each in a process of its own.

A worker is started once and takes one trial after another. One that fails in any way (killed by the system, a crash in native
code, a trial that raised, one that hangs or takes too long) costs the trial it had, and a fresh one takes its place. Workers
end with their parent, however that ends.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.core.part import ConfigError
from zoo.recipe import dumps
from zoo.result import Result
from zoo.trials.messages import Ended, Halted, Job, Said, Stepped
from zoo.trials.places import Limits, Place
from zoo.trials.processes import context, interrupts_held_back, warm_up
from zoo.trials.serving import serve
from zoo.trials.store import Store

if TYPE_CHECKING:
    from zoo.trials.run import Trial, View
    from zoo.trials.sharing import Sharing

GRACE = 15.0  # seconds in which workers that are asked to stop may finish a step and write a checkpoint
Lost = tuple["Trial", Result | None, str]  # a trial with its result, or None and why there is none


class Worker:
    """One process, the pipe to it, and when it was last known to be alive."""

    def __init__(self, folder: Path, place: Place) -> None:
        warm_up()
        made = context()
        self.place = place
        self.beats = made.RawValue("Q", 0)
        self.pipe, theirs = made.Pipe()
        needs = (theirs, folder, place, self.beats, dict(os.environ))
        self.process = made.Process(target=serve, args=needs, daemon=True)
        with interrupts_held_back():
            self.process.start()
        theirs.close()
        self.trial: Trial | None = None

    def give(self, trial: Trial, store: Store) -> None:
        """Have it train a trial."""
        self.trial, self.began, self.heard, self.seen = trial, None, time.monotonic(), self.beats.value
        with suppress(OSError):  # it is dead: its pipe will say so
            self.pipe.send(Job(dumps(trial.recipe), trial.address, trial.forecast, trial.guarded, store.root))

    def overdue(self, limits: Limits) -> str:
        """Why its trial is to be given up now, or nothing."""
        now = time.monotonic()
        if self.beats.value != self.seen:
            self.heard, self.seen = now, self.beats.value
            self.began = self.began or now
        if self.began is None:
            late = limits.start is not None and now - self.heard > limits.start
            return f"its process did not start within {limits.start:g} s" if late else ""
        if limits.time is not None and now - self.began > limits.time:
            return f"took longer than --time-limit {limits.time:g} s"
        if limits.silence is not None and now - self.heard > limits.silence:
            return f"hung: not a single batch in {limits.silence:g} s (--silence-limit)"
        return ""

    def ask_to_stop(self) -> None:
        """Have it write a checkpoint and end."""
        self.pipe.close()
        if self.process.is_alive():
            self.process.terminate()

    def kill(self) -> None:
        """End the process now, whatever it is doing."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Crew:
    """Workers that train trials; use it as a context, at whose end they stop.

    Args:
        folder: where relative paths of the recipe start from.
        places: one for each worker.
        limits: when a trial is given up.
        sharing: chooses how many workers each of the places gets, once there are trials.
    """

    def __init__(
        self, folder: Path, places: Sequence[Place], limits: Limits = Limits(), sharing: Sharing | None = None
    ) -> None:
        self.folder, self.places, self.limits, self.sharing = folder, list(places), limits, sharing
        self.workers: list[Worker] = []
        self.at_last: Callable[[], None] | None = None  # called once, when the last trial has been given to a worker
        self.before: Any = None  # what SIGTERM meant

    def __enter__(self) -> Crew:
        """From here on a polite request to end (SIGTERM) is what Ctrl-C is."""
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            if self.before is not None:
                signal.signal(signal.SIGTERM, self.before)

    def start(self, n_trials: int | None = None) -> None:
        """Start the workers that are missing, no more than ``n_trials``. It returns before they are ready."""
        wanted = len(self.places) if n_trials is None else min(n_trials, len(self.places))
        free = list(self.places)
        for worker in self.workers:
            free.remove(worker.place)
        while len(self.workers) < wanted:
            self.workers.append(Worker(self.folder, free.pop(0)))

    def stop(self) -> None:
        """End all workers, those that train with a checkpoint if they can make one in time."""
        try:
            for worker in self.workers:
                worker.ask_to_stop()
            deadline = time.monotonic() + GRACE
            for worker in self.workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:  # a second interrupt does not wait
            for worker in self.workers:
                worker.kill()
            self.workers.clear()

    def train(self, trials: Sequence[tuple[int, Trial]], total: int, store: Store, view: View) -> Iterator[Lost]:
        """Train trials in their order and yield each with its result, or None and why there is none.

        Args:
            trials: with their numbers in the grid.
            total: how many trials the grid has.
            store: where results live.
            view: told of everything.

        Raises:
            ConfigError: what keeps any trial from being trained: a full disk, a store that cannot be written.
        """
        waiting = list(trials)
        if self.sharing is not None and waiting:
            self.places = self.sharing.spread([trial for _, trial in waiting], self.places, view)
            self.sharing = None
        while waiting or any(worker.trial for worker in self.workers):
            self._give_out(waiting, total, store, view)
            busy = [worker for worker in self.workers if worker.trial]
            ready = wait([worker.pipe for worker in busy], self._patience())
            over: list[Lost] = []
            for worker in busy:
                if worker.pipe in ready:
                    over += self._hear(worker, view)
                elif why := worker.overdue(self.limits):
                    over.append(self._lose(worker, why))
            self._give_out(waiting, total, store, view)  # they train while somebody looks at what is over
            yield from over

    def _give_out(self, waiting: list[tuple[int, Trial]], total: int, store: Store, view: View) -> None:
        """A trial for each worker that has none, and a worker for each place that has none, as long as trials wait."""
        for worker in [w for w in self.workers if w.trial is None and not w.process.is_alive()]:
            self._dismiss(worker)
        self.start(len(waiting) + sum(worker.trial is not None for worker in self.workers))
        for worker in self.workers:
            if waiting and worker.trial is None:
                number, trial = waiting.pop(0)
                view.begin(trial, number, total)
                worker.give(trial, store)
        if not waiting and self.at_last is not None:
            call, self.at_last = self.at_last, None
            call()

    def _patience(self) -> float:
        """Seconds between two looks at whether workers are alive."""
        return min(1.0, *(limit / 4 for limit in self.limits if limit is not None), 1.0)

    def _hear(self, worker: Worker, view: View) -> Iterator[Lost]:
        """One message of a worker; a pipe that closed means that the process has died."""
        trial = worker.trial
        assert trial is not None
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(5.0)
            code = worker.process.exitcode
            yield self._lose(worker, _death(code))
            return
        match message:
            case Said(line):
                view.say(line)
            case Stepped(progress):
                view.step(trial, progress)
            case Halted(why):
                raise ConfigError(why)
            case Ended(result):
                worker.trial = None
                if result.status == "failed":  # who knows what it left behind in its process
                    self._dismiss(worker)
                yield trial, result, ""

    def _lose(self, worker: Worker, why: str) -> Lost:
        self._dismiss(worker)
        assert worker.trial is not None
        return worker.trial, None, why

    def _dismiss(self, worker: Worker) -> None:
        self.workers.remove(worker)
        worker.kill()


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ": the system may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {code}"

"""Several trials side by side, each in a process of its own.

A worker is started once and takes one trial after another; one that dies (killed by the system, a crash in native code) costs
the trial it had, and another worker takes its place.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.recipe import Recipe, dumps
from zoo.result import Progress, Result
from zoo.trials.check import Forecast
from zoo.trials.store import Store

if TYPE_CHECKING:
    from zoo.trials.run import Trial, View


class Job(NamedTuple):
    """A trial as it is sent to a worker: the recipe travels as text, since a plug-in's classes cannot."""

    text: str
    address: str
    forecast: Forecast
    guarded: bool


class Worker:
    """One process and the pipe to it."""

    def __init__(self, store: Path, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")  # a forked copy of a threaded torch may hang
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, store, folder), daemon=True)
        self.process.start()
        theirs.close()
        self.trial: Trial | None = None

    def give(self, trial: Trial) -> None:
        """Have it train a trial."""
        self.trial = trial
        self.pipe.send(Job(dumps(trial.recipe), trial.address, trial.forecast, trial.guarded))

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def side_by_side(
    trials: Sequence[tuple[int, Trial]], total: int, store: Store, folder: Path, view: View, n_workers: int
) -> Iterator[tuple[Trial, Result | None, str]]:
    """Train trials in ``n_workers`` processes and yield each with its result, or None and why there is none.

    Args:
        trials: with their numbers in the grid.
        total: how many trials the grid has.
        store: where results live.
        folder: where relative paths of the recipe start from.
        view: told of everything.
        n_workers: processes at once.
    """
    waiting = list(trials)
    workers: list[Worker] = []
    try:
        while waiting or any(worker.trial for worker in workers):
            while waiting and len(workers) < min(n_workers, len(trials)):
                workers.append(Worker(store.root, folder))
            for worker in workers:
                if waiting and worker.trial is None:
                    number, trial = waiting.pop(0)
                    view.begin(trial, number, total)
                    worker.give(trial)
            ready = wait([worker.pipe for worker in workers if worker.trial])
            for worker in [w for w in workers if w.pipe in ready]:
                yield from _hear(worker, workers, view)
    finally:
        for worker in workers:
            worker.stop()


def _hear(worker: Worker, workers: list[Worker], view: View) -> Iterator[tuple[Trial, Result | None, str]]:
    """One message of a worker; a pipe that closed means that the process has died."""
    trial = worker.trial
    assert trial is not None
    try:
        what, table = worker.pipe.recv()
    except (EOFError, OSError):
        workers.remove(worker)
        worker.stop()
        yield trial, None, _death(worker.process.exitcode)
        return
    if what == "say":
        view.say(table["line"])
        return
    if what == "step":
        view.step(trial, Progress(**table))
        return
    worker.trial = None
    yield trial, Result.model_validate(table), ""


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ": the system may have run out of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {code}"


def serve(pipe: Connection, root: Path, folder: Path) -> None:
    """What a worker does: trials from the pipe, progress and results into it, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then stops its workers
    from zoo import plugins
    from zoo.data.prepare import Prepared
    from zoo.resolve import loads
    from zoo.trials.grid import Arm
    from zoo.trials.run import Trial, data_key, text_of, train_one

    class Relay:
        def say(self, line: str) -> None:
            pipe.send(("say", {"line": line}))

        def step(self, trial: Trial, progress: Progress) -> None:
            pipe.send(("step", progress._asdict()))

    prepared: dict[str, Prepared] = {}
    while True:
        try:
            job: Job = pipe.recv()
        except (EOFError, OSError):
            return
        recipe = _understood(job.text, folder, plugins, loads)
        trial = Trial(Arm(recipe.variant, recipe), recipe, job.forecast, job.address, job.guarded)
        key = data_key(recipe)
        if key not in prepared:
            prepared[key] = text_of(recipe, folder)
        result = train_one(trial, prepared[key], Store(root), folder, Relay())
        pipe.send(("end", result.model_dump(mode="json")))


def _understood(text: str, folder: Path, plugins: Any, loads: Any) -> Recipe:
    import tomllib

    plugins.discover()
    for plugin in tomllib.loads(text).get("plugins", ()):
        plugins.load(folder / plugin)
    return loads(text)

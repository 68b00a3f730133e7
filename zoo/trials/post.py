"""What trains on a machine of a cluster, and what it tells to where the grid was started."""

from __future__ import annotations

import os
import queue
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.core.part import ConfigError
from zoo.result import Progress
from zoo.trials.messages import Ended, Gone, Halted, Job, Message, Said, Sent, Stepped
from zoo.trials.places import Limits, Place
from zoo.trials.serving import trial_of
from zoo.trials.store import RESULT, Store
from zoo.trials.workers import GRACE, Crew

if TYPE_CHECKING:
    from zoo.trials.run import Trial

LAST = (Ended, Sent, Gone, Halted)  # messages after which nothing more is to be told


class Post:
    """A trainer on one machine: one trial at a time, in a process of its own.

    Args:
        folder: where relative paths of the recipe start from.
        limits: when a trial is given up.
        gpu: whether it was given a GPU, or a share of one.
    """

    def __init__(self, folder: Path, limits: Limits, gpu: bool = False) -> None:
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "") if gpu else ""  # where Ray names it
        self.crew = Crew(folder, [Place(given)], limits)
        self.crew.start()

    def where(self) -> str:
        """The machine's name; an answer means that this post is there."""
        return socket.gethostname()

    def train(self, job: Job, mark: Path) -> Iterator[Message]:
        """Train a trial and yield what there is to tell; one of ``LAST`` ends it.

        Args:
            job: the trial, and the results folder as it is called where the grid was started.
            mark: a file in that folder; where it cannot be seen, the trial's files are sent.
        """
        news: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=self._train, args=(job, mark, news), daemon=True).start()
        message: Message | None = None
        while not isinstance(message, LAST):
            message = news.get()
            yield message

    def _train(self, job: Job, mark: Path, news: queue.SimpleQueue[Message]) -> None:
        try:
            trial = trial_of(job, self.crew.folder)
            if mark.exists():
                news.put(self._end(trial, Store(job.store), False, _Relay(news)))
                return
            with tempfile.TemporaryDirectory(prefix="zoo-") as own:
                news.put(self._end(trial, Store(Path(own)), True, _Relay(news)))
        except Exception as fault:  # whatever it is, whoever waits for the news must hear of it
            why = str(fault) if isinstance(fault, ConfigError) else f"{type(fault).__name__}: {fault}"
            news.put(Halted(f"{self.where()}: {why}"))

    def _end(self, trial: Trial, store: Store, send: bool, relay: _Relay) -> Message:
        [(_, result, why)] = self.crew.train([(1, trial)], 1, store, relay)
        if result is None:
            return Gone(why)
        return Sent(result, packed(store.folder(trial.recipe, trial.address)) if send else {}, self.where())

    def stop(self) -> None:
        """Have the trial write a checkpoint and end, if it can in time."""
        for worker in list(self.crew.workers):
            worker.process.terminate()
            worker.process.join(GRACE)


class _Relay:
    """The view of a post's crew: everything goes to where the grid was started."""

    def __init__(self, news: queue.SimpleQueue[Message]) -> None:
        self.news = news

    def say(self, line: str) -> None:
        self.news.put(Said(line))

    def begin(self, trial: Trial, number: int, total: int) -> None:
        pass

    def step(self, trial: Trial, progress: Progress) -> None:
        self.news.put(Stepped(progress))


def packed(folder: Path) -> dict[str, bytes]:
    """The files of a finished trial by their path in its folder, without those that ``Store`` writes itself."""
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in found.items() if name not in (RESULT, "recipe.toml")}

"""Trials on the machines of a Ray cluster.

A post is a Ray actor on some machine, with the processor and GPU share that its trial declares; in it a crew of one worker
process trains, as on a single machine, so that a crash, a kill or a hang costs the trial, while the end of the post itself
means that its machine was lost: the trial then begins again elsewhere, from its newest checkpoint where machines share the
results folder. Where a post cannot see that folder, it sends the files of a finished trial as bytes. Either way a machine needs
the zoo, and the recipe's plug-ins and files of text under the paths that they have where the grid is started.
"""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.checkpoint import writing
from zoo.core.part import ConfigError
from zoo.recipe import Recipe, dumps
from zoo.result import Result
from zoo.trials.address import code_hash
from zoo.trials.joining import connect, imported, last_line
from zoo.trials.messages import Gone, Halted, Job, Said, Sent, Stepped
from zoo.trials.places import Limits, Place
from zoo.trials.post import Post
from zoo.trials.store import Store
from zoo.trials.workers import GRACE, Lost

if TYPE_CHECKING:
    from zoo.trials.run import Trial, View

RETRIES = 3  # of a trial whose machine was lost
PENDING = 64  # posts that wait for room at most: what a cluster that grows by itself is told of


def keep(trial: Trial, result: Result, files: dict[str, bytes], store: Store, folder: Path) -> None:
    """Store a trial whose files were sent.

    Raises:
        Unwritable: a full disk, or a store that cannot be written.
    """
    with store.opened(trial.recipe, trial.address, folder, result.facts.get("code", "")) as draft:
        for name, contents in files.items():
            with writing(draft.folder):
                path = draft.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(contents)
        draft.commit(result)


class Need(NamedTuple):
    """What a trial declares: whole processors, and GPUs or a share of one."""

    cpus: int
    gpus: float

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}{gpus}"

    def fits(self, resources: dict[str, float]) -> int:
        """How many such trials a machine has room for."""
        rooms = [resources.get("CPU", 0.0) // self.cpus]
        return int(min([*rooms, resources.get("GPU", 0.0) // self.gpus] if self.gpus else rooms))


def need_of(recipe: Recipe, per_device: int | None = None) -> Need:
    """What a trial of this recipe declares: its threads; on a GPU, whose host needs few, one, and 1 / ``per_device`` GPUs."""
    if recipe.machine.device.startswith("cuda"):
        return Need(1, 1 / (per_device or 1))
    return Need(recipe.machine.threads, 0.0)


class Posted:
    """A post as it is seen from where the grid was started."""

    def __init__(self, actor: Any, need: Need) -> None:
        self.actor, self.need = actor, need
        self.asked = actor.where.remote()  # answered once there is room for it
        self.there = False
        self.job: tuple[int, Trial] | None = None
        self.news: Any = None

    @property
    def heard(self) -> Any:
        """What to wait for: its first answer, or the next piece of news."""
        return self.news if self.there else self.asked


class ClusterCrew:
    """Posts on a Ray cluster that train trials; use it as a context, at whose end they stop.

    Args:
        folder: where relative paths of the recipe start from.
        recipes: of the grid's arms, settled.
        address: ``host:port`` of a cluster that this machine belongs to, or ``auto``; None: what RAY_ADDRESS says, else a
            cluster of this machine alone, for as long as this lasts.
        per_device: trials on each GPU.
        limits: when a trial is given up.

    Raises:
        ConfigError: on entering: no Ray, or no cluster at this address.
    """

    def __init__(
        self,
        folder: Path,
        recipes: Sequence[Recipe],
        address: str | None = None,
        per_device: int | None = None,
        limits: Limits = Limits(),
    ) -> None:
        self.folder, self.recipes, self.address = folder.absolute(), list(recipes), address
        self.sharing = None  # a cluster is told how many trials share a GPU
        self.per_device, self.limits = per_device, limits
        self.posts: list[Posted] = []
        self.places: list[Place] = []
        self.ray: Any = None
        self.before: Any = None  # what SIGTERM meant
        self.connected = False

    def __enter__(self) -> ClusterCrew:
        self.ray = imported()
        if not self.ray.is_initialized():
            connect(self.ray, self.address)
            self.connected = True
        if threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        rooms = [max(need.fits(machine) for machine in self._machines()) for need in self._needs()]
        self.places = [Place()] * max(rooms)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            if self.connected:
                self.ray.shutdown()
            if self.before is not None:
                signal.signal(signal.SIGTERM, self.before)

    def start(self, n_trials: int | None = None) -> None:
        """Nothing: which posts are needed only the trials can tell."""

    def stop(self) -> None:
        """End all posts, those that train with a checkpoint if they can make one in time."""
        try:
            last = [post.actor.stop.remote() for post in self.posts if post.job is not None]
            if last:
                self.ray.wait(last, num_returns=len(last), timeout=GRACE + 5.0)
        finally:
            for post in list(self.posts):
                self._dismiss(post)

    def train(self, trials: Sequence[tuple[int, Trial]], total: int, store: Store, view: View) -> Iterator[Lost]:
        """Train trials and yield each with its result, or None and why there is none: what ``Crew.train`` does.

        Raises:
            ConfigError: what keeps any trial from being trained: a full disk, a store that cannot be written, text that a
                machine lacks, a trial for which no machine is large enough.
        """
        waiting, losses = list(trials), Counter[str]()
        deadline = self._room_for(waiting, view)
        with _marked(store.root.absolute()) as mark:
            while waiting or any(post.job for post in self.posts):
                self._staff(waiting)
                for post in self.posts:
                    if post.there and post.job is None:
                        self._give(post, waiting, total, mark, view)
                heard, _ = self.ray.wait([post.heard for post in self.posts], timeout=1.0)
                for post in [post for post in self.posts if post.heard in heard]:
                    if post.there:
                        yield from self._hear(post, waiting, losses, store, view)
                    else:
                        self._greet(post, losses)
                if deadline is not None and time.monotonic() > deadline and not any(p.there for p in self.posts):
                    raise ConfigError(f"--executor ray: no machine took a trial within {self.limits.start:g} s")
            for post in list(self.posts):
                self._dismiss(post)

    def _needs(self) -> set[Need]:
        return {need_of(recipe, self.per_device) for recipe in self.recipes}

    def _machines(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _room_for(self, waiting: Sequence[tuple[int, Trial]], view: View) -> float | None:
        """When to give up if no machine could ever take one of these trials and none of that size joins the cluster."""
        machines = self._machines()
        for need in {need_of(trial.recipe, self.per_device) for _, trial in waiting}:
            if not any(need.fits(machine) for machine in machines):
                view.say(f"Waiting for a machine to join the cluster: none of it has {need} for a trial.")
                return None if self.limits.start is None else time.monotonic() + self.limits.start
        return None

    def _staff(self, waiting: Sequence[tuple[int, Trial]]) -> None:
        """As many posts as there are trials that wait for one; those that nothing waits for leave."""
        wanted = Counter(need_of(trial.recipe, self.per_device) for _, trial in waiting[:PENDING])
        free = sorted((post for post in self.posts if post.job is None), key=lambda post: not post.there)
        for post in free:
            wanted[post.need] -= 1
            if wanted[post.need] < 0:
                self._dismiss(post)
        for need, missing in wanted.items():
            made = self.ray.remote(Post).options(
                num_cpus=need.cpus, num_gpus=need.gpus, max_concurrency=2, max_restarts=0
            )
            for _ in range(missing):
                self.posts.append(Posted(made.remote(self.folder, self.limits, need.gpus > 0), need))

    def _dismiss(self, post: Posted) -> None:
        self.posts.remove(post)
        with suppress(self.ray.exceptions.RayError):
            self.ray.kill(post.actor)

    def _give(self, post: Posted, waiting: list[tuple[int, Trial]], total: int, mark: Path, view: View) -> None:
        """The first waiting trial of a post's size."""
        post.job = next(item for item in waiting if need_of(item[1].recipe, self.per_device) == post.need)
        waiting.remove(post.job)
        number, trial = post.job
        view.begin(trial, number, total)
        job = Job(dumps(trial.recipe), trial.address, trial.forecast, trial.guarded, mark.parent)
        post.news = post.actor.train.options(num_returns="streaming").remote(job, mark)

    def _greet(self, post: Posted, losses: Counter[str]) -> None:
        """A post's first answer: it is there, or it could not be started."""
        try:
            self.ray.get(post.asked)
            post.there = True
            losses[""] = 0
        except self.ray.exceptions.RayError as fault:
            self._dismiss(post)
            losses[""] += 1
            if losses[""] > RETRIES:
                raise ConfigError(f"--executor ray: trials cannot be started: {last_line(fault)}") from None

    def _hear(
        self, post: Posted, waiting: list[tuple[int, Trial]], losses: Counter[str], store: Store, view: View
    ) -> Iterator[Lost]:
        """One piece of a post's news; an error means that its machine is gone."""
        assert post.job is not None
        trial = post.job[1]
        try:
            message = self.ray.get(next(post.news))
        except self.ray.exceptions.RayError as fault:
            self._dismiss(post)
            losses[trial.address] += 1
            why = f"its machine was lost: {last_line(fault)}"
            if losses[trial.address] > RETRIES:
                yield trial, None, f"{why} (after {RETRIES} others)"
            else:
                view.say(f"    {trial.recipe.variant} seed {trial.recipe.train.seed}: {why}; it begins again elsewhere")
                waiting.insert(0, post.job)
            return
        match message:
            case Said(line):
                view.say(line)
            case Stepped(progress):
                view.step(trial, progress)
            case Halted(why):
                raise ConfigError(why)
            case Gone(why):
                post.job = post.news = None
                yield trial, None, why
            case Sent(result, files, where):
                post.job = post.news = None
                if result.facts.get("code") != code_hash(trial.recipe):
                    view.say(f"    {where} has other source code of the zoo: {trial.recipe.variant} is stale")
                if files:
                    keep(trial, result, files, store, self.folder)
                yield trial, result, ""


@contextmanager
def _marked(root: Path) -> Iterator[Path]:
    """A file in the results folder, by which a post knows whether it sees that folder."""
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        mark = root / f".seen.{uuid.uuid4().hex}"
        mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)

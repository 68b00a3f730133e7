"""How many trials share one device: as many as find memory there, while more of them get more done.

The trial that needs the most memory is rehearsed: one copy of it, then two, then four take some steps at the same time, each in
a process of its own, on its own text. The first copy's peak memory says how many have room; their steps together say whether
a larger number is worth it. Nothing that is rehearsed is kept but the choice.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from zoo import machine
from zoo.budget import tokens_per_step
from zoo.loop import Loop
from zoo.optim.slots import Schedule
from zoo.parallel import in_words
from zoo.recipe import Recipe, dumps
from zoo.trials.check import memory, outline
from zoo.trials.messages import Job
from zoo.trials.places import Place
from zoo.trials.processes import interrupts_held_back
from zoo.trials.serving import end_with_parent, trial_of
from zoo.trials.timing import Timings

if TYPE_CHECKING:
    from zoo.trials.run import Trial, View

MOST = 16  # trials on one GPU at most
GAIN = 0.1  # by which the work done in a second has to grow, or the smaller number is kept
FILLED = 0.9  # of the memory that is free
WORTH = 10.0  # a grid that takes less than so many times what a rehearsal takes is not worth one
WINDOW = 3.0  # seconds in which steps are counted
WARM = 2  # updates before they are
START = 600.0  # seconds in which a process has to be ready


class Seen(NamedTuple):
    """One copy's figures, or those of several together."""

    rate: float  # tokens in a second, of all together
    memory: int  # bytes, peak of the largest
    free: int  # bytes on the device before there was any
    spent: float = 0.0  # seconds that finding out took


class Choice(NamedTuple):
    """How many at once, and why, in words."""

    at_once: int
    why: str
    measured: bool = False  # else another grid may come to another choice


def choose(rehearse: Callable[[int], Seen | str], most: int, left: float = float("inf")) -> Choice:
    """The number of trials at once: doubled while memory holds them and the work done grows by ``GAIN``.

    Args:
        rehearse: figures of so many copies at once, or why there are none.
        most: more are of no use.
        left: tokens that the device has to train.
    """
    one = rehearse(1)
    if isinstance(one, str):
        return Choice(1, f"one at a time, since it could not be rehearsed: {one}")
    if left / one.rate < WORTH * one.spent:
        return Choice(1, f"one at a time: all of it takes {left / one.rate:.0f} s, less than finding out is worth")
    best, at_once, said = one, 1, [f"1: {one.rate:,.0f} tokens/s"]
    room = int(FILLED * one.free // max(1, one.memory))
    full = f"one takes {one.memory / 1e9:.2f} of {one.free / 1e9:.2f} GB"
    why = f"more than {most} are of no use"
    while at_once < most:
        following = min(2 * at_once, most, max(room, at_once))
        if following == at_once:
            why = full
            break
        seen = rehearse(following)
        if isinstance(seen, str):
            why = f"{following} failed: {seen}"
            break
        said.append(f"{following}: {seen.rate:,.0f}")
        if seen.rate < (1 + GAIN) * best.rate:
            why = f"{following} get less than {GAIN:.0%} more done"
            break
        if following * seen.memory > FILLED * one.free:
            why = full
            break
        best, at_once = seen, following
        room = int(FILLED * one.free // max(1, one.memory, seen.memory))
    return Choice(at_once, f"{at_once} at once ({', '.join(said)}; {why})", True)


class Sharing:
    """Chooses, once, how many trials of a grid share each device.

    Args:
        folder: where relative paths of the recipes start from.
        most: trials on one device at most.
        cache: where choices are kept; a grid of the same shape on the same machine is not rehearsed again.
    """

    def __init__(self, folder: Path, most: int, cache: Path) -> None:
        self.folder, self.most, self.kept = folder, most, Timings(cache)

    def spread(self, trials: Sequence[Trial], places: Sequence[Place], view: View) -> list[Place]:
        """The places, each as often as trials are to run there at once.

        Args:
            trials: what there is to train.
            places: one on each device.
            view: told what was chosen.
        """
        choice = self._chosen(trials, places[0], -(-len(trials) // len(places)))
        view.say(f"Trials on each device: {choice.why}")
        return [place for _ in range(choice.at_once) for place in places]

    def _chosen(self, trials: Sequence[Trial], place: Place, each: int) -> Choice:
        most = min(self.most, each)
        if most < 2:
            return Choice(1, "one at a time: there is no second trial for it")
        if any(trial.recipe.train.seconds is not None for trial in trials):
            return Choice(1, "one at a time: a budget in seconds buys less where trials share a device")
        heaviest = largest(trials)
        known = self.kept.sharing(heaviest.recipe, most)
        if known is not None:
            return Choice(*known)
        left = each * sum((t.forecast.steps or 0) * t.forecast.tokens_per_step for t in trials) / len(trials)
        found = choose(lambda n: rehearse(heaviest, self.folder, place, n), most, left)
        if found.measured:
            self.kept.keep_sharing(heaviest.recipe, most, list(found))
        return found


def largest(trials: Sequence[Trial]) -> Trial:
    """The trial that needs the most memory by formula."""
    needed: dict[str, int] = {}
    for trial in trials:
        like = outline(trial.recipe)
        if like not in needed:
            needed[like] = memory(trial.recipe)
    return max(trials, key=lambda trial: needed[outline(trial.recipe)])


def rehearse(trial: Trial, folder: Path, place: Place, n: int, window: float = WINDOW) -> Seen | str:
    """Let ``n`` copies of a trial take steps at the same time.

    Args:
        trial: its text must have been prepared.
        folder: where its relative paths start from.
        place: the device.
        n: how many.
        window: seconds in which steps are counted.

    Returns:
        their figures; in words, why there are none.
    """
    began = time.perf_counter()
    job = Job(dumps(trial.recipe), trial.address, trial.forecast, trial.guarded, Path())
    context = multiprocessing.get_context("spawn")
    copies = []
    for _ in range(n):
        ours, theirs = context.Pipe()
        process = context.Process(target=_take_steps, args=(theirs, folder, place, job, window), daemon=True)
        with interrupts_held_back():
            process.start()
        theirs.close()
        copies.append((process, ours))
    try:
        frees = [_heard(pipe, START) for _, pipe in copies]
        for _, pipe in copies:
            pipe.send("go")
        figures = [_heard(pipe, START) for _, pipe in copies]
    except _NoFigures as fault:
        return str(fault)
    finally:
        for process, pipe in copies:
            process.kill()
            process.join()
            pipe.close()
    rates, peaks = zip(*figures, strict=True)
    return Seen(sum(rates), max(peaks), max(frees), time.perf_counter() - began)


class _NoFigures(Exception):
    """A copy has died, failed or fallen silent."""


def _heard(pipe: Connection, patience: float) -> Any:
    """What a copy says next."""
    try:
        if not pipe.poll(patience):
            raise _NoFigures(f"nothing was heard of it for {patience:g} s")
        fine, said = pipe.recv()
    except (EOFError, OSError):
        raise _NoFigures("its process ended") from None
    if not fine:
        raise _NoFigures(said)
    return said


def _take_steps(pipe: Connection, folder: Path, place: Place, job: Job, window: float) -> None:
    """What a copy does: it warms up, says so, and counts its tokens once it is told to."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if place.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.gpu
    try:
        recipe = trial_of(job, folder, place).recipe
        free = machine.free_memory(recipe.machine.device)
        loop = _warmed_up(recipe, folder)
        pipe.send((True, free))
        pipe.recv()
        began, first = time.perf_counter(), loop.step
        while loop.step == first or time.perf_counter() - began < window:
            loop._update()
        float(loop.losses[-1])  # what a GPU was told to do is done
        tokens = (loop.step - first) * tokens_per_step(recipe)
        pipe.send((True, (tokens / (time.perf_counter() - began), machine.taken_memory(recipe.machine.device))))
    except Exception as fault:
        pipe.send((False, in_words(fault)))


def _warmed_up(recipe: Recipe, folder: Path) -> Loop:
    """A loop after some updates; it has no end of its own."""
    from zoo.trials.run import text_of

    torch.set_num_threads(machine.settle_threads(recipe.machine.threads))
    budget = {"steps": 10**9, "tokens": None, "evaluate_every": None}
    endless = {"train": recipe.train.model_copy(update=budget), "schedule": Schedule.parse("constant")}
    loop = Loop(recipe.model_copy(update=endless), text_of(recipe, folder), lambda progress: None, io.StringIO())
    for _ in range(WARM):
        loop._update()
    float(loop.losses[-1])
    return loop

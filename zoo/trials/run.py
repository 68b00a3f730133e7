"""Runs a grid: checks everything first, then trains trial after trial, each isolated from the rest."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from zoo import guards, machine
from zoo.checkpoint import Unwritable, writing
from zoo.core.part import ConfigError
from zoo.data.prepare import Prepared, prepare
from zoo.judge import check_scorers
from zoo.parallel import ALONE, Broken, World, in_words
from zoo.recipe import Recipe
from zoo.result import Progress, Result, Signals, notes
from zoo.resume import Stopped
from zoo.scoring.plan import plan_of
from zoo.train import train
from zoo.trials.address import address, code_hash
from zoo.trials.check import Forecast, Known, check, locate
from zoo.trials.cluster import ClusterCrew
from zoo.trials.grid import Arm, Grid, trial_recipe
from zoo.trials.places import longest_first
from zoo.trials.ranks import Together
from zoo.trials.store import Store
from zoo.trials.vocabulary import known_vocabulary, likely_vocabulary, with_vocabulary
from zoo.trials.workers import Crew

FINAL = ("done", "diverged")  # a trial with one of these is finished; one that failed is tried again


class Trial(NamedTuple):
    """One arm with one seed."""

    arm: Arm
    recipe: Recipe  # with its seed and vocabulary
    forecast: Forecast
    address: str
    guarded: bool = True  # whether it is probed before it trains


class Outcome(NamedTuple):
    """What a trial came to, now or in an earlier run."""

    trial: Trial
    result: Result
    fresh: bool  # trained now
    stale: bool  # trained earlier, by other source code


class View(Protocol):
    """Somebody who watches a grid being run."""

    def say(self, line: str) -> None: ...
    def preparing(self, what: str, share: float, words: str = "") -> None: ...
    def begin(self, trial: Trial, number: int, total: int) -> None: ...
    def step(self, trial: Trial, progress: Progress) -> None: ...
    def end(self, outcome: Outcome) -> None: ...


class Ready(NamedTuple):
    """A grid with its text: nothing is left that could be wrong with the recipe."""

    trials: tuple[Trial, ...]  # all arms of the first seed, then of the second
    prepared: dict[str, Prepared]  # by ``data_key``


def with_known_vocabularies(grid: Grid) -> tuple[Grid, tuple[str, ...]]:
    """The grid with every vocabulary that is known without text, and the names of arms where only text can tell.

    Those arms get a stand-in, so that everything else about them can be checked.
    """
    arms, guessed = [], []
    for arm in grid.arms:
        size = known_vocabulary(arm.recipe, grid.folder)
        if size is None:
            guessed.append(arm.name)
        arms.append(arm._replace(recipe=with_vocabulary(arm.recipe, size or likely_vocabulary(arm.recipe))))
    return grid._replace(arms=tuple(arms)), tuple(guessed)


def data_key(recipe: Recipe) -> str:
    """Equal for recipes that need the same text."""
    return json.dumps(recipe.data.model_dump(mode="json"), sort_keys=True)


def make_ready(grid: Grid, arms: Sequence[Arm], view: View, known: Known | None = None) -> Ready:
    """Check every arm, then prepare the text, then check what depends on the text.

    Args:
        grid: what is to be trained.
        arms: those of its arms that are wanted.
        view: told of everything.
        known: what earlier checks have found, to which is added.

    Raises:
        ConfigError: whatever is wrong, before anything has been trained.
    """
    stand_in, guessed = with_known_vocabularies(grid)
    known = Known() if known is None else known
    forecasts = check(stand_in, known=known)
    prepared: dict[str, Prepared] = {}
    settled: dict[str, Recipe] = {}
    for arm in arms:
        try:
            key = data_key(arm.recipe)
            if key not in prepared:
                prepared[key] = text_of(arm.recipe, grid.folder, view.preparing)
            check_scorers(arm.recipe, prepared[key])
            settled[arm.name] = with_vocabulary(arm.recipe, prepared[key].tokenizer.vocab_size)
        except ConfigError as fault:
            raise locate(grid, arm, fault) from None
    arms = [arm._replace(recipe=settled[arm.name]) for arm in arms]
    if guessed:
        forecasts |= check(grid, arms, known)
    trials = []
    for seed in grid.seeds:
        for arm in arms:
            recipe = trial_recipe(arm, seed)
            where = address(recipe, prepared[data_key(recipe)].fingerprint, grid.folder)
            trials.append(Trial(arm, recipe, forecasts[arm.name], where))
    return Ready(tuple(trials), prepared)


def text_of(recipe: Recipe, folder: Path, preparing: Callable[[str, float, str], None] | None = None) -> Prepared:
    """The recipe's text as tokens, from the cache where it is there.

    Raises:
        ConfigError: text or tokenizer that cannot be; the path is from the root of the recipe.
    """
    try:
        return prepare(recipe.data, folder, None, preparing)
    except ConfigError as fault:
        raise fault.under("data") from None


def run(
    ready: Ready,
    store: Store,
    folder: Path,
    view: View,
    refresh: bool = False,
    crew: Crew | ClusterCrew | Together | None = None,
) -> Iterator[Outcome]:
    """Train what is not finished yet, and yield every outcome as it comes.

    A trial that raises is recorded as failed with its reason, one that diverges as diverged, and the grid goes on. Trials of
    one address are one trial under several names: it is trained once.

    Args:
        ready: trials and text.
        store: where results live.
        folder: where relative paths of the recipe start from.
        view: told of everything.
        refresh: train again what was trained by other source code.
        crew: the processes that train; None: this one, trial after trial, so that a crash ends all.

    Raises:
        ConfigError: what would keep any trial from being stored, such as a full disk.
    """
    todo, twins = [], []
    for number, trial in enumerate(ready.trials, 1):
        earlier = stored(trial, store)
        if earlier is not None and earlier.result.status in FINAL and not (refresh and earlier.stale):
            view.end(earlier)
            yield earlier
        elif any(trial.address == other.address for _, other in todo):
            twins.append(trial)
        else:
            todo.append((number, trial))
    for outcome in _trained(todo, ready, store, folder, view, crew):
        view.end(outcome)
        yield outcome
    for twin in twins:
        if (outcome := stored(twin, store)) is not None:
            view.end(outcome)
            yield outcome


def _trained(
    todo: Sequence[tuple[int, Trial]],
    ready: Ready,
    store: Store,
    folder: Path,
    view: View,
    crew: Crew | ClusterCrew | Together | None,
) -> Iterator[Outcome]:
    total = len(ready.trials)
    if crew is None:
        for number, trial in todo:
            view.begin(trial, number, total)
            result = train_one(trial, ready.prepared[data_key(trial.recipe)], store, folder, view)
            yield Outcome(trial, result, True, False)
        return
    if len(crew.places) > 1 or crew.sharing is not None:
        todo = longest_first([(item, item[1].forecast, item[1].recipe.train.seconds) for item in todo])
    for trial, result, why in crew.train(todo, total, store, view):
        yield Outcome(trial, result or _lost(trial, ready, store, folder, why), True, False)


def _lost(trial: Trial, ready: Ready, store: Store, folder: Path, why: str) -> Result:
    """The stored result of a trial whose process died."""
    prepared = ready.prepared[data_key(trial.recipe)]
    with store.opened(trial.recipe, trial.address, folder, code_hash(trial.recipe)) as draft:
        result = _failed(trial, prepared, RuntimeError(why)).model_copy(update={"reason": why})
        facts = {**result.facts, "code": code_hash(trial.recipe)}
        result = result.model_copy(update={"address": trial.address, "facts": facts})
        draft.commit(result)
    return result


def stored(trial: Trial, store: Store) -> Outcome | None:
    """What the store knows of a trial, under the trial's present name."""
    result = store.find(trial.address)
    if result is None:
        return None
    named = result.model_copy(update={"name": trial.recipe.name, "variant": trial.recipe.variant})
    return Outcome(trial, named, False, result.facts.get("code") != code_hash(trial.recipe))


class Watcher(Protocol):
    """Somebody who is told how far a trial is."""

    def say(self, line: str) -> None: ...
    def step(self, trial: Trial, progress: Progress) -> None: ...


def train_one(
    trial: Trial,
    prepared: Prepared,
    store: Store,
    folder: Path,
    view: Watcher,
    alive: Callable[[], None] = Signals().alive,
    stop: Callable[[], bool] = Signals().stop,
    meet: Callable[[], World] = lambda: ALONE,
) -> Result:
    """Train one trial, from its newest checkpoint on, and store what it came to, whatever that is.

    Args:
        trial: what to train.
        prepared: its text.
        store: where results live.
        folder: where relative paths of the recipe start from.
        view: told of its progress.
        alive: called before every batch.
        stop: asked after every step.
        meet: called once it may train; gives the processes that train it.

    Raises:
        Broken: these processes are out of step.
        Stopped: ``stop`` said so; the run has been kept as it is.
        Unwritable: the disk is full, or the store cannot be written; what has been kept stays.
    """
    began = time.perf_counter()
    with store.opened(trial.recipe, trial.address, folder, code_hash(trial.recipe)) as draft:
        try:
            if trial.guarded:
                guards.inspect(trial.recipe, prepared, code_hash(trial.recipe))
            name = f"{trial.recipe.variant} seed {trial.recipe.train.seed}"
            signals = Signals(say=lambda line: view.say(f"    {name}: {line}"), alive=alive, stop=stop)
            result = train(trial.recipe, prepared, draft.folder, partial(view.step, trial), signals, meet())
            result = guards.judged(result, prepared, trial.guarded)
        except (Unwritable, Stopped, Broken):
            raise  # no fault of this trial
        except guards.Refused as fault:
            result = _failed(trial, prepared, fault).model_copy(update={"status": "refused", "reason": str(fault)})
        except Exception as fault:
            with writing(draft.folder):
                (draft.folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
            result = _failed(trial, prepared, fault)
        more = {"address": trial.address, "facts": {**result.facts, "code": code_hash(trial.recipe)}}
        result = result.model_copy(update={**more, "wall": time.perf_counter() - began})
        draft.commit(result)
    machine.release_memory()
    if trial.recipe.train.compile == "layers":
        torch._dynamo.reset()  # what it knows of one trial must not change how another is compiled
    return result


def _failed(trial: Trial, prepared: Prepared, fault: Exception) -> Result:
    """The result of a trial that raised."""
    cost = trial.forecast.cost
    return Result(
        status="failed",
        reason=in_words(fault),
        name=trial.recipe.name,
        variant=trial.recipe.variant,
        seed=trial.recipe.train.seed,
        parameters=cost.parameters,
        active_parameters=cost.active_parameters,
        flops_per_token=cost.flops_per_token,
        plan=plan_of(trial.recipe.evaluate.scorer, trial.recipe.model.context, prepared),
        facts=dict(prepared.facts),
        notes=notes(trial.recipe),
    )

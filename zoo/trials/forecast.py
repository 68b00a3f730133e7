"""What a grid will be able to show, and what it will cost, before it is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy
from pydantic import ValidationError

from zoo.result import Result
from zoo.trials.run import Ready, data_key
from zoo.trials.statistics import POWER, paired, power, spread
from zoo.trials.store import RESULT
from zoo.trials.timing import Timings, shape_of

ASSUMED = 0.013  # bits per byte; five paired seeds of a 0.8 M parameter character model on 1.5 million characters


class Spread(NamedTuple):
    """The standard deviation of a paired difference, and how it is known."""

    sd: float
    said: str


class Bill(NamedTuple):
    """Time and money of a whole grid."""

    seconds: float  # of all trials, one after the other: training and one final scoring each
    wall: float  # with so many at once
    longest: float
    measured: float  # seconds spent on finding this out, now
    shapes: int  # distinct ones
    cost: float | None


def spread_of(results: Iterable[Result], names: Sequence[str]) -> Spread:
    """The noise of a difference between two arms, from finished trials of the same grid where there are repeats.

    Args:
        results: stored ones.
        names: of the grid's arms, the baseline first.
    """
    scores: dict[tuple[int, int], dict[str, dict[int, float]]] = {}
    for r in results:
        if r.status == "done" and r.bits_per_byte is not None and r.variant in names:
            scores.setdefault((r.steps, r.valid_bytes), {}).setdefault(r.variant, {})[r.seed] = r.bits_per_byte
    squares, freedom, arms, alone = 0.0, 0, 0, [0.0, 0]
    for group in scores.values():
        baseline = group.get(names[0], {})
        if len(baseline) > 1:
            alone = [
                alone[0] + spread(np.array([*baseline.values()])) ** 2 * (len(baseline) - 1),
                alone[1] + len(baseline) - 1,
            ]
        for name, own in group.items():
            found = [] if name == names[0] else paired(own, baseline)
            if len(found) > 1:
                squares += spread(np.array(found)) ** 2 * (len(found) - 1)
                freedom, arms = freedom + len(found) - 1, arms + 1
    if freedom:
        return Spread(math.sqrt(squares / freedom), f"seen over {arms} arms and {freedom + arms} pairs that are stored")
    if alone[1]:
        said = f"at most: the baseline's {alone[1] + 1} stored seeds, as if they were not paired"
        return Spread(math.sqrt(2.0 * alone[0] / alone[1]), said)
    return Spread(ASSUMED, "assumed: nothing is stored yet; --noise states another")


def stored_results(root: Path) -> list[Result]:
    """Every result under a folder that can be read."""
    found = []
    for path in sorted(root.glob(f"*/{RESULT}")):
        try:
            found.append(Result.model_validate(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, ValidationError):
            continue
    return found


def detectable(sd: float, seeds: int) -> float | None:
    """The true difference that so many paired seeds find with probability ``POWER``, ``sd`` taken as known; None for one."""
    if seeds < 2:
        return None
    if sd == 0.0:
        return 0.0
    return sd * float(scipy.optimize.brentq(lambda effect: power(effect, 1.0, seeds) - POWER, 1e-6, 100.0))


def bill(ready: Ready, timings: Timings, at_once: int, price: float | None, tell: Callable[[str], None]) -> Bill:
    """Time every distinct shape that has not been timed, and add up what all trials take.

    Args:
        ready: the trials and their text.
        timings: what is known.
        at_once: trials that run side by side; each is taken to be as fast as one alone.
        price: per hour of the machine.
        tell: called before each measurement with the trial's arm.
    """
    total, longest, spent, shapes = 0.0, 0.0, 0.0, set()
    for trial in ready.trials:
        prepared = ready.prepared[data_key(trial.recipe)]
        if timings.find(trial.recipe) is None:
            tell(trial.arm.name)
        timing, now = timings.of(trial.recipe, prepared)
        spent += timing.spent if now else 0.0
        shapes.add(shape_of(trial.recipe))
        steps = trial.forecast.steps
        training = trial.recipe.train.seconds if steps is None else timing.first + timing.step * (steps - 1)
        own = training + len(prepared.valid) / timing.scored
        total, longest = total + own, max(longest, own)
    wall = max(longest, total / max(1, at_once))
    return Bill(total, wall, longest, spent, len(shapes), None if price is None else price * wall / 3600)

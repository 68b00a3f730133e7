"""The learning-rate envelope: every arm at several rates, so that no arm wins by a rate that was chosen for another.

``grid.lr = [1e-3, 3e-3, 6e-3]`` states the rate of the matrices; the rates of all other roles keep their ratio to it.
``grid.lr = { factors = [0.5, 1, 2] }`` multiplies each arm's own rates instead, for arms whose rates mean different things.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from zoo.core.params import Role
from zoo.core.part import ConfigError
from zoo.recipe import Recipe
from zoo.trials.statistics import BETTER, UNRESOLVED, WORSE, Comparison, compare, paired

BEST = "best against best"


class Ladder(NamedTuple):
    """The rates at which every arm is trained."""

    values: tuple[float, ...]  # in the order written: the first is the baseline's
    factors: bool  # of each arm's own rates; else rates of the matrices

    def label(self, value: float) -> str:
        """What an arm's name says of its rate."""
        return f"lr x{value:g}" if self.factors else f"lr={value:g}"


class Rate(NamedTuple):
    """Where an arm stands in the envelope."""

    arm: str  # its name without the rate
    value: float  # of the ladder


def ladder(origin: str, value: Any) -> Ladder | None:
    """What ``grid.lr`` says.

    Raises:
        ConfigError: no list of different positive numbers.
    """
    if value is None:
        return None
    place, factors = f"{origin}: grid.lr", isinstance(value, Mapping)
    if factors:
        if set(value) != {"factors"}:
            raise ConfigError(f"{place} = {dict(value)!r}: write a list of rates, or {{ factors = [0.5, 1, 2] }}")
        place, value = f"{place}.factors", value["factors"]
    fine = isinstance(value, list) and value and all(type(v) in (int, float) and 0 < v < float("inf") for v in value)
    if not fine or len(set(map(float, value))) != len(value):
        raise ConfigError(f"{place} = {value!r}: must be a list of different rates above zero, the baseline's first")
    return Ladder(tuple(map(float, value)), factors)


def leading_rate(recipe: Recipe) -> float:
    """The rate of the matrices, or of the first role where there are none."""
    role = Role.MATRIX if Role.MATRIX in recipe.optim else next(iter(recipe.optim))
    return recipe.optim[role].lr


def at_rate(recipe: Recipe, rungs: Ladder, value: float) -> Recipe:
    """The recipe at one rate of the ladder; the ratios between roles stay."""
    return moved(recipe, value if rungs.factors else value / leading_rate(recipe))


def moved(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with every rate times ``factor``, to twelve digits."""
    optim = {
        role: config.model_copy(update={"lr": float(f"{config.lr * factor:.12g}")})
        for role, config in recipe.optim.items()
    }
    return recipe.model_copy(update={"optim": optim})


# -- what the results say ---------------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """One arm over its rates; lower is better."""

    arm: str
    scores: dict[float, dict[int, float]]  # rate -> seed -> bits per byte; empty where nothing was scored

    def mean(self, rate: float) -> float:
        """Over the seeds; infinite where there is no score, as for a rate at which every run diverged."""
        found = self.scores.get(rate, {})
        return math.fsum(found.values()) / len(found) if found else math.inf

    @property
    def best(self) -> float | None:
        """The rate with the lowest mean."""
        known = [rate for rate in self.scores if math.isfinite(self.mean(rate))]
        return min(known, key=self.mean) if known else None

    @property
    def edge(self) -> str | None:
        """``lowest`` or ``highest`` where the best rate is the last that was tried on that side."""
        if self.best is None or len(self.scores) < 2:
            return None
        return {min(self.scores): "lowest", max(self.scores): "highest"}.get(self.best)


class Gap(NamedTuple):
    """An arm against the baseline: bits per byte, paired by seed; negative is better."""

    where: str  # "lr=0.003", or "best against best"
    comparison: Comparison


def gaps(curve: Curve, baseline: Curve, label: Callable[[float], str]) -> list[Gap]:
    """The differences at every rate that both have, and between the best rates last."""
    shared = [rate for rate in sorted(curve.scores) if curve.scores[rate] and baseline.scores.get(rate)]
    found = [Gap(label(r), compare(paired(curve.scores[r], baseline.scores[r]))) for r in shared]
    if curve.best is not None and baseline.best is not None:
        own, theirs = curve.scores[curve.best], baseline.scores[baseline.best]
        found.append(Gap(BEST, compare(paired(own, theirs))))
    return found


def word(gap: Gap) -> str:
    """``better``, ``worse`` or ``not resolved``, by the 95 % interval of one comparison."""
    interval = gap.comparison.interval
    if interval is None or interval[0] <= 0.0 <= interval[1]:
        return UNRESOLVED
    return BETTER if interval[1] < 0.0 else WORSE


def warnings(curves: Sequence[Curve], label: Callable[[float], str]) -> list[str]:
    """What a reader must not overlook: rankings that hang on the rate, and optima that may lie outside the range."""
    said = []
    for curve in curves[1:]:
        *equal, last = gaps(curve, curves[0], label) or [None]
        if last is None:
            continue
        signs = {gap.comparison.difference > 0.0 for gap in (*equal, last) if gap.comparison.difference}
        if len(signs) > 1:
            spoken = ", ".join(f"{gap.comparison.difference:+.4f} at {gap.where}" for gap in equal)
            best = f"{last.comparison.difference:+.4f} {BEST}"
            said.append(f"the ranking of {curve.arm} and {curves[0].arm} flips with the rate: {spoken}; {best}")
        for gap in equal:
            if word(gap) not in (UNRESOLVED, word(last)):
                said.append(
                    f"{curve.arm} is {word(gap)} than {curves[0].arm} at {gap.where} ({gap.comparison.difference:+.4f}) "
                    f"and {word(last)} {BEST} ({last.comparison.difference:+.4f}): the rate was part of that effect"
                )
    for curve in curves:
        if curve.edge is not None:
            said.append(
                f"the best rate of {curve.arm}, {label(curve.best)}, is the {curve.edge} tried: its optimum may lie beyond"
            )
    return said


def beyond(curve: Curve, values: Sequence[float], limit: int) -> float | None:
    """The next rate on the side where the best one is the last; None where none is wanted.

    Args:
        curve: complete at every rate it has.
        values: the ladder as it was written.
        limit: how many rates may be added to an arm.
    """
    if curve.edge is None or len(set(curve.scores) - set(values)) >= limit:
        return None
    rates = sorted(curve.scores)
    last, before = (rates[0], rates[1]) if curve.edge == "lowest" else (rates[-1], rates[-2])
    return float(f"{last * last / before:.3g}")

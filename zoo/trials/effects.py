"""Main effects and interactions of a factorial grid.

The main effect of a value is the mean, over every setting of the other axes, of its score minus that of the axis's first
value. The interaction of two values is how much the effect of the one changes with the other: y(a, b) - y(a, 0) - y(0, b) +
y(0, 0), likewise averaged. Both are formed seed by seed, so each seed gives one number and the numbers an interval.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from zoo.trials.statistics import Comparison, compare

Cell = tuple[str, ...]  # one value's name for each axis
Scores = Mapping[Cell, Mapping[int, float]]  # cell -> seed -> bits per byte


class Effect(NamedTuple):
    """One contrast of the grid; negative is better."""

    axes: tuple[str, ...]  # one: a main effect; two: an interaction
    values: tuple[str, ...]  # the value of each, against that axis's first
    comparison: Comparison


def effects(axes: Mapping[str, Sequence[str]], scores: Scores) -> list[Effect]:
    """Every main effect, then every interaction of two axes.

    Args:
        axes: the values' names of each axis, the baseline's first.
        scores: of cells; a seed counts where it has every cell that a contrast needs.
    """
    found = []
    for order in (1, 2):
        for names in itertools.combinations(axes, order):
            for values in itertools.product(*(axes[name][1:] for name in names)):
                found.append(Effect(names, values, compare(_contrasts(axes, scores, names, values))))
    return found


def missing(axes: Mapping[str, Sequence[str]], scores: Scores) -> list[Cell]:
    """The cells without a single score."""
    return [cell for cell in itertools.product(*axes.values()) if not scores.get(cell)]


def _contrasts(
    axes: Mapping[str, Sequence[str]], scores: Scores, names: Sequence[str], values: Sequence[str]
) -> list[float]:
    """One number per seed: the mean of the contrast over all settings of the other axes."""
    settings = [
        [(cell, sign) for cell, sign in _corners(axes, names, values, rest)]
        for rest in itertools.product(*(axes[name] for name in axes if name not in names))
    ]
    needed = {cell for corners in settings for cell, _ in corners}
    seeds = _common(scores.get(cell, {}) for cell in needed)
    return [
        math.fsum(sign * scores[cell][seed] for corners in settings for cell, sign in corners) / len(settings)
        for seed in seeds
    ]


def _corners(
    axes: Mapping[str, Sequence[str]], names: Sequence[str], values: Sequence[str], rest: Sequence[str]
) -> Iterable[tuple[Cell, int]]:
    """The cells of one contrast with their signs: a minus for every axis that stands at its first value."""
    others = iter(rest)
    fixed = {name: next(others) for name in axes if name not in names}
    for raised in itertools.product((True, False), repeat=len(names)):
        place = {name: value if up else axes[name][0] for name, value, up in zip(names, values, raised, strict=True)}
        cell = tuple(place[name] if name in place else fixed[name] for name in axes)
        yield cell, -1 if raised.count(False) % 2 else 1


def _common(found: Iterable[Mapping[int, float]]) -> list[int]:
    seeds = [set(scores) for scores in found]
    return sorted(set.intersection(*seeds)) if seeds else []

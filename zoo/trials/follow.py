"""Does a ranking of short runs hold for long ones?

``grid.follow = { times = [10, 100], arms = [8, 5] }``: when every arm of the grid is trained, eight of them are trained again
with ten times the updates, and five of those with a hundred times. Half of the arms that are followed are the best of the
short runs, the others stand at even distances in the rest of the ranking, down to its last: among the best alone a rank
correlation says little, since they differ by little.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts load when they are first used

from zoo.core.part import ConfigError, nearest

EXACT = 8  # arms up to which all orders are counted for p


class Follow(NamedTuple):
    """How much longer, and how many arms."""

    times: tuple[int, ...]
    arms: tuple[int, ...]


class Agreement(NamedTuple):
    """Two rankings of the same arms."""

    arms: int
    rho: float | None  # Spearman; None where all scores of one side are equal, or for fewer than three arms
    p: float | None  # two-sided
    best_becomes: int  # the rank, in the second ranking, of the arm that is first in the first


def follow_of(origin: str, value: Any) -> Follow | None:
    """What ``grid.follow`` says.

    Raises:
        ConfigError: no rising multiples, or no falling numbers of arms, one for each.
    """
    if value is None:
        return None
    place = f"{origin}: grid.follow"
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place} = {value!r}: write follow = {{ times = [10, 100], arms = [8, 5] }}")
    for key in value:
        if key not in Follow._fields:
            raise ConfigError(f"{place}.{key}: unknown key, {nearest(key, Follow._fields)}")
    times, arms = value.get("times", [10, 100]), value.get("arms", 8)
    if not isinstance(times, list) or not times or not all(type(t) is int and t > 1 for t in times):
        raise ConfigError(f"{place}.times = {times!r}: must be a list of whole numbers above 1")
    arms = [arms] * len(times) if type(arms) is int else arms
    if not isinstance(arms, list) or len(arms) != len(times) or not all(type(n) is int and n > 1 for n in arms):
        raise ConfigError(f"{place}.arms = {arms!r}: must be a number above 1, or one for each of times")
    if sorted(set(times)) != times or sorted(arms, reverse=True) != arms:
        raise ConfigError(f"{place}: times must rise, and arms must not")
    return Follow(tuple(times), tuple(arms))


def chosen(ranking: Sequence[str], n: int) -> list[str]:
    """``n`` names of a ranking, best first: its better half are the first ones, the others evenly spread over the rest."""
    if n >= len(ranking):
        return list(ranking)
    best = math.ceil(n / 2)
    rest = ranking[best:]
    spread = [rest[round((i + 1) * len(rest) / (n - best)) - 1] for i in range(n - best)]
    return [*ranking[:best], *spread]


def ranked(scores: Mapping[str, Mapping[int, float]]) -> list[str]:
    """The arms that have scores, lowest mean first."""
    means = {name: math.fsum(own.values()) / len(own) for name, own in scores.items() if own}
    return sorted(means, key=means.__getitem__)


def agreement(short: Mapping[str, Mapping[int, float]], long: Mapping[str, Mapping[int, float]]) -> Agreement | None:
    """How the ranking of one budget agrees with that of another, over the arms that both have; None without such."""
    before = [name for name in ranked(short) if long.get(name)]
    after = ranked({name: long[name] for name in before})
    if not before:
        return None
    best = after.index(before[0]) + 1
    if len(before) < 3:
        return Agreement(len(before), None, None, best)
    means = [[math.fsum(side[name].values()) / len(side[name]) for name in before] for side in (short, long)]
    if any(len(set(side)) == 1 for side in means):
        return Agreement(len(before), None, None, best)
    ranks = [scipy.stats.rankdata(side) for side in means]
    rho = float(np.corrcoef(*ranks)[0, 1])
    return Agreement(
        len(before), rho, _chance(*ranks) if len(before) <= EXACT else float(scipy.stats.spearmanr(*means)[1]), best
    )


def _chance(a: np.ndarray, b: np.ndarray) -> float:
    """The share of all orders of ``b`` that agree or disagree with ``a`` at least as much as its own: the exact p."""
    orders = np.array([*itertools.permutations(b - b.mean())])  # (n!, n)
    products = np.abs(orders @ (a - a.mean()))
    own = abs(float((b - b.mean()) @ (a - a.mean())))
    return float((products >= own - 1e-9).mean())

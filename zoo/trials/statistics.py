"""What a handful of seeds can say: paired differences to the baseline, their uncertainty, and a verdict in words.

Arms share initial tensors, batches and noise by seed, so scores are compared seed by seed. All that follows rests on the
differences d_1 ... d_n of n seeds that both arms have, taken as draws of one normal distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import scipy  # its parts load when they are first used: importing all of scipy.stats costs a worker a second

LEVEL = 0.05  # two-sided
POWER = 0.80
BOOTSTRAP_FROM = 8  # seeds; below that a resampled interval is too short to be believed
RESAMPLES = 9_999

BETTER, WORSE, UNRESOLVED, ONE_SEED = "better", "worse", "not resolved", "one seed: no verdict"

Interval = tuple[float, float]


class Comparison(NamedTuple):
    """One arm against the baseline; what needs more seeds than there are is None."""

    seeds: int  # that both have
    difference: float | None = None  # mean of own minus baseline's
    sd: float | None = None  # of the differences
    interval: Interval | None = None  # 95 %, by Student's t
    bootstrap: Interval | None = None  # 95 %, bias-corrected and accelerated
    p: float | None = None  # two-sided, paired t
    holm: float | None = None  # the same, corrected for the number of arms in the table
    smallest: float | None = None  # effect that as many seeds find in four cases out of five
    verdict: str = ""


def paired(own: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """Own score minus the baseline's for every seed that both have, in the order of the seeds."""
    return [own[seed] - baseline[seed] for seed in sorted(own.keys() & baseline.keys())]


def compare(differences: Sequence[float]) -> Comparison:
    """All that the differences of one arm say by themselves; ``with_verdicts`` adds what depends on the other arms."""
    n = len(differences)
    if n < 2:
        return Comparison(n, *differences)
    d = np.asarray(differences, np.float64)
    sd = spread(d)
    return Comparison(
        seeds=n,
        difference=math.fsum(differences) / n,
        sd=sd,
        interval=t_interval(d),
        bootstrap=bootstrap_interval(d),
        p=float(p_values(d)),
        smallest=smallest_effect(sd, n),
    )


def with_verdicts(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one table with Holm's correction over all of them, and what they come to in a word.

    Lower is better. An arm that shares one seed with the baseline gets no verdict, one that shares none an empty one.
    """
    corrected = iter(holm([c.p for c in comparisons if c.p is not None]))
    done = [c if c.p is None else c._replace(holm=next(corrected)) for c in comparisons]
    return [c._replace(verdict=_verdict(c)) for c in done]


def _verdict(c: Comparison) -> str:
    if c.holm is None:
        return ONE_SEED if c.seeds == 1 else ""
    if c.holm > LEVEL:
        return UNRESOLVED
    return BETTER if c.difference < 0 else WORSE


def spread(values: np.ndarray) -> float:
    """The standard deviation with n - 1; exactly 0 where all values are equal, whatever rounding makes of their mean."""
    return 0.0 if (values == values[0]).all() else float(values.std(ddof=1))


def p_values(differences: np.ndarray) -> np.ndarray:
    """Two-sided p of the paired t test, (..., n) -> (...).

    Differences that are all equal decide without a test: 1 where they are zero, else 0.
    """
    d = np.asarray(differences, np.float64)
    n = d.shape[-1]
    mean, sd = d.mean(-1), d.std(-1, ddof=1)
    still = (d == d[..., :1]).all(-1)
    t = np.abs(mean) / np.where(still, 1.0, sd) * math.sqrt(n)
    return np.where(still, np.where(d[..., 0] == 0.0, 1.0, 0.0), 2.0 * scipy.special.stdtr(n - 1, -t))


def t_interval(differences: np.ndarray, level: float = LEVEL) -> Interval:
    """The interval that holds the true mean difference in 95 cases of 100, by Student's t."""
    n = len(differences)
    half = float(scipy.special.stdtrit(n - 1, 1 - level / 2)) * spread(differences) / math.sqrt(n)
    mean = math.fsum(differences) / n
    return mean - half, mean + half


def bootstrap_interval(differences: np.ndarray, level: float = LEVEL) -> Interval | None:
    """The same by resampling seeds (bias-corrected and accelerated, Efron 1987), without the normal distribution.

    The generator is fixed, so equal differences have equal intervals. None for fewer than ``BOOTSTRAP_FROM`` seeds.
    """
    n = len(differences)
    if n < BOOTSTRAP_FROM:
        return None
    if spread(differences) == 0.0:
        return float(differences[0]), float(differences[0])
    found = scipy.stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=1 - level,
        n_resamples=RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    low, high = float(found.low), float(found.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that may each be read at the 5 % level though there are several.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def power(effect: float, sd: float, seeds: int, level: float = LEVEL) -> float:
    """How often a paired t test over ``seeds`` seeds finds a true difference, by the noncentral t distribution.

    Args:
        effect: the true mean difference.
        sd: the true standard deviation of the differences.
        seeds: at least two.
    """
    if sd == 0.0:
        return float(effect != 0.0)
    return float(_power(abs(effect) / sd * math.sqrt(seeds), seeds, level))


def _power(shift: float | np.ndarray, seeds: int, level: float) -> np.ndarray:
    df = seeds - 1
    t = scipy.special.stdtrit(df, 1 - level / 2)
    wrong_side = np.nan_to_num(scipy.stats.nct.cdf(-t, df, shift))  # so small for large shifts that scipy gives nan
    return scipy.stats.nct.sf(t, df, shift) + wrong_side


def smallest_effect(sd: float, seeds: int, share: float = POWER, level: float = LEVEL) -> float:
    """The true difference that a paired t test over as many seeds finds with probability ``share``.

    ``sd`` is itself an estimate from these seeds. Put into the power formula as if it were the truth it promises too
    much: with five seeds the effect so stated is found 68 times of 100, not 80. So power is averaged over the
    distribution that such an estimate has (sd^2 (n - 1) / sigma^2 is chi-squared).

    Args:
        sd: standard deviation of the differences.
        seeds: from which it was computed, at least two; also those of the experiment that is meant.
    """
    return _factor(seeds, share, level) * sd / math.sqrt(seeds)


@cache
def _factor(seeds: int, share: float, level: float) -> float:
    """The shift, in standard errors as estimated, at which the mean power is ``share``."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    quantiles = (nodes + 1.0) / 2.0
    ratio = np.sqrt(scipy.stats.chi2.ppf(quantiles, seeds - 1) / (seeds - 1))  # estimated over true standard deviation

    def missing(shift: float) -> float:
        return float(weights @ _power(shift * ratio, seeds, level)) / 2.0 - share

    high = 4.0
    while missing(high) < 0.0:
        high *= 2.0
    return float(scipy.optimize.brentq(missing, 0.0, high))


class Noise(NamedTuple):
    """What the baseline's own repeats say: how far two runs of one arm lie apart by the seed alone."""

    seeds: int
    sd: float
    apart: float  # two unpaired runs differ by less in 95 cases of 100


def noise_floor(sd: float | None, seeds: int) -> Noise | None:
    """The noise of single scores, from the spread of the baseline's scores over its seeds; None for fewer than two."""
    if sd is None or seeds < 2:
        return None
    return Noise(seeds, sd, float(scipy.special.stdtrit(seeds - 1, 1 - LEVEL / 2)) * sd * math.sqrt(2.0))

"""Differences by seed, their uncertainty and the verdict, each against a formula of another make."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from zoo.trials.statistics import (
    BETTER,
    BOOTSTRAP_FROM,
    ONE_SEED,
    UNRESOLVED,
    WORSE,
    Comparison,
    bootstrap_interval,
    compare,
    holm,
    noise_floor,
    p_values,
    paired,
    power,
    smallest_effect,
    with_verdicts,
)

SCORE = st.integers(-4000, 4000).map(lambda k: k / 1000)
SCORES = st.lists(SCORE, min_size=2, max_size=12)
PS = st.lists(st.floats(0, 1), max_size=8)


def moving(differences: list[float]) -> list[float]:
    assume(len(set(differences)) > 1)
    return differences


@given(st.lists(st.tuples(SCORE, SCORE), min_size=2, max_size=12))
def test_p_is_that_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    own, theirs = zip(*pairs, strict=True)
    moving([round(a - b, 6) for a, b in pairs])
    found = compare(paired(dict(enumerate(own)), dict(enumerate(theirs))))
    expected = stats.ttest_rel(own, theirs)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    low, high = expected.confidence_interval(0.95)
    assert found.interval == pytest.approx((low, high), rel=1e-6, abs=1e-9)


def integrated(density, a: float, b: float) -> float:
    return integrate.quad(density, a, b, limit=200)[0]


@given(SCORES)
def test_p_and_interval_against_the_density_integrated_by_hand(differences: list[float]) -> None:
    found, n = compare(moving(differences)), len(differences)
    mean = sum(differences) / n
    sd = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1))
    assume(abs(mean) < 30 * sd)
    front = math.gamma(n / 2) / math.sqrt((n - 1) * math.pi) / math.gamma((n - 1) / 2)

    def density(t: float) -> float:
        return front * (1 + t * t / (n - 1)) ** (-n / 2)

    t = abs(mean) / sd * math.sqrt(n)
    assert (found.difference, found.sd, found.seeds) == (pytest.approx(mean), pytest.approx(sd), n)
    assert found.p == pytest.approx(1 - 2 * integrated(density, 0, t), abs=1e-7)
    half = (found.interval[1] - found.interval[0]) / 2
    assert 2 * integrated(density, 0, half / sd * math.sqrt(n)) == pytest.approx(0.95, abs=1e-7)
    assert sum(found.interval) / 2 == pytest.approx(mean, abs=1e-12)


@given(SCORES, st.floats(0.1, 10), st.booleans())
def test_the_verdict_turns_with_the_sign_and_does_not_know_the_unit(differences, scale: float, turned: bool) -> None:
    (found,) = with_verdicts([compare(moving(differences))])
    factor = -scale if turned else scale
    (other,) = with_verdicts([compare([factor * d for d in differences])])
    assume(abs(found.p - 0.05) > 1e-6)
    assert other.p == pytest.approx(found.p, rel=1e-6, abs=1e-12)
    turn = {BETTER: WORSE, WORSE: BETTER, UNRESOLVED: UNRESOLVED}
    assert other.verdict == (turn[found.verdict] if turned else found.verdict)
    assert other.smallest == pytest.approx(scale * found.smallest)


@given(PS)
def test_holm_is_closed_testing_by_bonferroni(ps: list[float]) -> None:
    """Another definition: the largest Bonferroni p of all sets of hypotheses that hold this one (Marcus et al. 1976)."""
    found = holm(ps)
    for i in range(len(ps)):
        others = [p for j, p in enumerate(ps) if j != i]
        sets = (c for size in range(len(others) + 1) for c in itertools.combinations(others, size))
        assert found[i] == pytest.approx(max(min(1.0, (len(c) + 1) * min((ps[i], *c))) for c in sets))


def test_holm_corrects_over_the_arms_that_have_a_p() -> None:
    two, one, none = [0.10, 0.12, 0.11], [0.1], []
    alone = compare(two)
    found = with_verdicts([alone, compare(one), compare(none), alone, alone])
    assert [c.holm for c in found] == [pytest.approx(3 * alone.p), None, None, *[pytest.approx(3 * alone.p)] * 2]
    assert [c.verdict for c in found] == [WORSE, ONE_SEED, "", WORSE, WORSE]
    assert found[1].difference == 0.1 and found[1].interval is None and found[2] == Comparison(0)


def test_a_difference_is_called_only_after_the_correction() -> None:
    d = [-0.1, -0.05, -0.02, -0.08]
    assert 0.025 < compare(d).p < 0.05
    assert with_verdicts([compare(d)])[0].verdict == BETTER
    assert [c.verdict for c in with_verdicts([compare(d), compare(d)])] == [UNRESOLVED, UNRESOLVED]


def test_seeds_are_paired_by_number_and_not_by_place() -> None:
    assert paired({3: 1.0, 1: 2.0, 7: 9.0}, {1: 0.5, 3: 0.25, 2: 4.0}) == [1.5, 0.75]


@pytest.mark.parametrize(("value", "p", "verdict"), [(0.0, 1.0, UNRESOLVED), (0.1, 0.0, WORSE), (-0.1, 0.0, BETTER)])
def test_differences_that_are_all_equal_need_no_test(value: float, p: float, verdict: str) -> None:
    (found,) = with_verdicts([compare([value] * 9)])
    assert (found.sd, found.p, found.verdict, found.smallest) == (0.0, p, verdict, 0.0)
    assert found.interval == pytest.approx((value, value)) and found.bootstrap == (value, value)


def test_p_of_many_experiments_at_once_is_p_of_each() -> None:
    many = np.random.default_rng(0).normal(0.1, 1.0, (50, 5))
    many[3], many[4] = 0.0, 2.0
    assert p_values(many).tolist() == [pytest.approx(compare(list(row)).p) for row in many]


# -- power ------------------------------------------------------------------------------------------------------------


def power_by_hand(effect: float, sd: float, n: int) -> float:
    """The chance that mean/sd leaves the t interval: a normal mean, integrated over the sd's chi distribution."""
    df, shift, t = n - 1, effect / sd * math.sqrt(n), stats.t.ppf(0.975, n - 1)

    def rejected(u: float) -> float:
        tails = special.ndtr(shift - t * u) + special.ndtr(-shift - t * u)
        return tails * stats.chi.pdf(u * math.sqrt(df), df) * math.sqrt(df)

    return integrated(rejected, 0, 1) + integrated(rejected, 1, 8)


@given(st.floats(0, 4), st.floats(0.5, 2), st.integers(2, 30))
def test_power_against_the_integral_by_hand(effect: float, sd: float, n: int) -> None:
    assert power(effect, sd, n) == pytest.approx(power_by_hand(effect, sd, n), abs=1e-6)


def test_power_at_its_ends() -> None:
    assert power(0.0, 1.0, 5) == pytest.approx(0.05) and power(0.0, 0.0, 5) == 0.0 and power(0.1, 0.0, 2) == 1.0
    assert power(-1.0, 1.0, 5) == power(1.0, 1.0, 5)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 24])
def test_the_smallest_effect_is_found_four_times_out_of_five(n: int) -> None:
    """By drawing: a first experiment states an effect, a second one has it, and finds it or not."""
    generator = np.random.default_rng(n)
    first, second = generator.normal(0.0, 3.0, (2, 40_000, n))
    stated = np.array(smallest_effect(1.0, n)) * first.std(-1, ddof=1)
    found = p_values(second + stated[:, None]) < 0.05
    assert found.mean() == pytest.approx(0.80, abs=4 * math.sqrt(0.16 / 40_000))


@given(st.integers(2, 40), st.floats(0.01, 5))
def test_more_seeds_see_smaller_effects_and_the_known_spread_smaller_ones_still(n: int, sd: float) -> None:
    assert smallest_effect(sd, n + 1) < smallest_effect(sd, n)
    assert power(smallest_effect(sd, n), sd, n) > 0.80  # what is stated covers that the spread is an estimate


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_the_resampled_interval_covers_and_starts_at_eight_seeds() -> None:
    generator = np.random.default_rng(2)
    draws = generator.normal(0.3, 1.0, (300, 16))
    intervals = [bootstrap_interval(row) for row in draws]
    covered = np.mean([low <= 0.3 <= high for low, high in intervals])
    assert 0.87 <= covered <= 0.98
    assert bootstrap_interval(draws[0]) == intervals[0]  # a fixed generator
    assert bootstrap_interval(draws[0][: BOOTSTRAP_FROM - 1]) is None


def test_the_resampled_interval_is_that_of_bca_written_out() -> None:
    """Efron 1987: percentiles moved by the bias z0 and the acceleration a, which comes from leaving one seed out."""
    d = np.random.default_rng(3).exponential(1.0, 20)
    means = np.random.default_rng(4).choice(d, (200_000, 20)).mean(-1)
    z0 = stats.norm.ppf((means < d.mean()).mean())
    left_out = np.array([np.delete(d, i).mean() for i in range(20)])
    u = left_out.mean() - left_out
    a = (u**3).sum() / (6 * (u**2).sum() ** 1.5)
    z = stats.norm.ppf([0.025, 0.975])
    expected = np.quantile(means, stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))))
    assert bootstrap_interval(d) == pytest.approx(tuple(expected), abs=0.02 * d.std())


def test_the_noise_floor_is_the_distance_of_two_runs_of_one_arm() -> None:
    generator = np.random.default_rng(5)
    scores = generator.normal(2.0, 0.01, (20_000, 7))
    seen, two = scores[:, :5], scores[:, 5] - scores[:, 6]
    apart = np.array([noise_floor(float(row.std(ddof=1)), 5).apart for row in seen[:4000]])
    assert (np.abs(two[:4000]) < apart).mean() == pytest.approx(0.95, abs=0.015)
    assert noise_floor(None, 1) is None and noise_floor(0.1, 2).seeds == 2

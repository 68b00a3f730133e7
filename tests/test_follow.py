"""Longer runs: which arms are followed, and how rankings are compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from played import outcome, planned, played
from scipy import stats

from zoo.core.part import ConfigError
from zoo.report.section import markdown
from zoo.report.sections import sections
from zoo.trials.follow import agreement, chosen
from zoo.trials.grid import Arm
from zoo.trials.stages import beyond_plan, further

SCREEN = "[grid]\ndesign = 'random'\nn = 9\nfollow = { times = [2, 10], arms = [6, 3] }\n"
SCREEN += "'optim.matrix.lr' = { low = 1e-4, high = 1e-1, scale = 'log' }\n"


@given(st.integers(1, 60), st.integers(2, 20))
def test_half_of_what_is_followed_is_the_best_and_the_last_is_among_the_rest(size: int, n: int) -> None:
    ranking = [f"a{i}" for i in range(size)]
    found = chosen(ranking, n)
    assert len(found) == len(set(found)) == min(n, size) and found == sorted(found, key=ranking.index)
    if n < size:
        assert found[: -(-n // 2)] == ranking[: -(-n // 2)] and found[-1] == ranking[-1]
        gaps = np.diff([ranking.index(name) for name in found[-(-n // 2) :]])
        assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1, "evenly"


@given(st.permutations(range(6)))
def test_rho_is_spearmans_and_its_p_that_of_all_orders(order: list[int]) -> None:
    short = {f"a{i}": {0: float(i)} for i in range(6)}
    long = {f"a{i}": {0: float(rank)} for i, rank in enumerate(order)}
    found = agreement(short, long)
    assert found.rho == pytest.approx(stats.spearmanr(range(6), order).statistic)
    assert found.best_becomes == order[0] + 1 and found.arms == 6
    assert 0 < found.p <= 1


def test_p_is_that_of_scipys_permutations() -> None:
    order = [1.0, 0.0, 2.0, 3.0, 5.0, 4.0]
    found = agreement({f"a{i}": {0: i} for i in range(6)}, {f"a{i}": {0: y} for i, y in enumerate(order)})
    other = stats.permutation_test(
        (np.array(order),),
        lambda x: stats.spearmanr(np.arange(6.0), x).statistic,
        permutation_type="pairings",
        vectorized=False,
    )
    assert found.p == pytest.approx(other.pvalue)


def test_too_few_or_equal_scores_have_no_correlation() -> None:
    short = {"a": {0: 1.0}, "b": {0: 2.0}, "c": {0: 3.0}}
    assert agreement(short, {"a": {0: 1.0}, "b": {0: 2.0}}).rho is None
    assert agreement(short, {name: {0: 1.0} for name in short}).rho is None and agreement(short, {}) is None


def test_the_best_and_a_spread_of_a_screening_are_trained_longer(tmp_path: Path) -> None:
    grid = planned(tmp_path, SCREEN)

    def score(arm: Arm, seed: int) -> float:
        rate, times = arm.recipe.optim["matrix"].lr, arm.recipe.train.steps / 6
        return abs(np.log(rate / (0.01 / times)))  # the longer the run, the lower the best rate

    seen, stages = played(grid, score)
    ranking = sorted((arm.name for arm in grid.arms), key=lambda name: score(*_arm(grid, name)))
    six = chosen(ranking, 6)
    assert stages[0] == set(ranking) and len(ranking) == 10
    assert stages[1] == {f"{name} @12" for name in six} | {f"{name} @60" for name in chosen(six, 3)}
    assert beyond_plan(grid, seen) == []
    text = markdown(sections(grid, seen)[0])
    assert (
        f"| {ranking[0]} |".replace("=", "=") in text.replace("\\", "") and "6 updates against 12 updates: rho" in text
    )
    assert "over 6 arms" in text and "over 3 arms" in text


def _arm(grid, name: str) -> tuple[Arm, int]:
    return next(arm for arm in grid.arms if arm.name == name), 0


def test_nothing_is_followed_before_all_short_runs_are_over(tmp_path: Path) -> None:
    grid = planned(tmp_path, SCREEN)
    seen = [outcome(arm, 0, 1.0 + i) for i, arm in enumerate(grid.arms[:-1])]
    assert [arm.name for arm, _ in further(grid, seen)] == [grid.arms[-1].name]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("follow = 10\n", "write follow = { times"),
        ("follow = { times = [1] }\n", "whole numbers above 1"),
        ("follow = { times = [10, 2] }\n", "times must rise"),
        ("follow = { times = [2, 10], arms = [3] }\n", "one for each of times"),
        ("follow = { time = [2] }\n", "did you mean 'times'?"),
        ("follow = { times = [2] }\nrace = { rungs = [3] }\n", "and no follow"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path: Path, words: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grid = planned(tmp_path, "[grid]\n" + words)
        further(grid, [outcome(arm, 0, 1.0) for arm in grid.arms])
    assert message in str(caught.value)

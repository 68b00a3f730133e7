"""Designs: ladders, draws, rates crossed with arms, and what is refused in [grid]."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes import write
from zoo.core.part import ConfigError
from zoo.files import Patch
from zoo.trials.designs import Range, draw, rung, study_of
from zoo.trials.envelope import leading_rate
from zoo.trials.grid import Grid, plan
from zoo.trials.names import differences

INGREDIENTS = """
[[grid.variant]]
name = 'deep'
set = { 'model.n_layers' = 3 }
[[grid.variant]]
name = 'long'
set.model.context = 32
"""


def planned(folder: Path, more: str, **options: Any) -> Grid:
    return plan(write(folder, more), device="cpu", **options)


def names(grid: Grid) -> list[str]:
    return [arm.name for arm in grid.arms]


def changed(grid: Grid) -> list[set[str]]:
    return [set(differences(arm.recipe, grid.arms[0].recipe)) for arm in grid.arms]


# -- ladders ----------------------------------------------------------------------------------------------------------


def test_adding_one_in_lays_each_ingredient_over_the_bare_recipe(tmp_path: Path) -> None:
    grid = planned(tmp_path, "[grid]\ndesign = 'add_one_in'\n" + INGREDIENTS)
    assert names(grid) == ["baseline", "deep", "long"]
    assert changed(grid) == [set(), {"model.n_layers"}, {"model.context"}]


def test_each_rung_of_a_path_keeps_what_the_rungs_below_changed(tmp_path: Path) -> None:
    axis = "[grid]\ndesign = 'path'\n'model.dim' = [16, 32, 64]\n"
    grid = planned(tmp_path, axis + INGREDIENTS)
    assert names(grid) == ["baseline", "+ dim=32", "+ dim=64", "+ deep", "+ long"]
    built = [(a.recipe.model.dim, a.recipe.model.n_layers, a.recipe.model.context) for a in grid.arms]
    assert built == [(16, 2, 16), (32, 2, 16), (64, 2, 16), (64, 3, 16), (64, 3, 32)]


def test_a_greedy_path_begins_with_each_ingredient_alone(tmp_path: Path) -> None:
    grid = planned(tmp_path, "[grid]\ndesign = 'path'\norder = 'greedy'\n'model.dim' = [16, 32]\n" + INGREDIENTS)
    assert names(grid) == ["baseline", "dim=32", "deep", "long"] and grid.study.greedy
    assert changed(grid) == [set(), {"model.dim"}, {"model.n_layers"}, {"model.context"}]
    both = rung(grid.study, [grid.study.ingredients[2], grid.study.ingredients[0]])
    assert both.name == "long + dim=32"
    assert [p.table for p in both.patches] == [
        {"model": {"dim": 16}}, {"model": {"context": 32}}, {"model": {"dim": 32}},
    ]  # fmt: skip


# -- draws ------------------------------------------------------------------------------------------------------------

DRAWS = "[grid]\ndesign = 'random'\n'optim.matrix.lr' = { low = 1e-3, high = 1e-1, scale = 'log' }\n"


def test_random_arms_are_named_by_the_very_values_they_have(tmp_path: Path) -> None:
    grid = planned(tmp_path, DRAWS + "'model.dim' = [16, 32]\nn = 9\n")
    assert names(grid)[0] == "baseline" and len(grid.arms) == 10
    for i, arm in enumerate(grid.arms[1:]):
        rate, dim = arm.recipe.optim["matrix"].lr, arm.recipe.model.dim
        assert arm.name == f"r{i} dim={dim} lr={rate:g}" and 1e-3 <= rate <= 1e-1
    assert {arm.recipe.model.dim for arm in grid.arms} == {16, 32}


def drawn(seed: int, n: int) -> list[Any]:
    table = {"design": "random", "n": n, "sample_seed": seed, "optim.matrix.lr.low": 1e-3, "optim.matrix.lr.high": 1e-1}
    drafts = study_of(Patch("here", {**table, "optim.matrix.lr.scale": "log"})).drafts[1:]
    return [draft.patches[0].table["optim"]["matrix"]["lr"] for draft in drafts]


@given(st.integers(0, 99), st.integers(1, 12), st.integers(0, 12))
def test_more_draws_keep_the_earlier_ones_and_another_seed_changes_all(seed: int, n: int, more: int) -> None:
    assert drawn(seed, n + more)[:n] == drawn(seed, n)
    assert drawn(seed, n) != drawn(seed + 1000, n)


def test_draws_are_uniform_in_the_logarithm() -> None:
    shares = sorted(math.log10(rate / 1e-3) / 2 for rate in drawn(0, 400))
    furthest = max(abs(share - i / 400) for i, share in enumerate(shares))
    assert furthest < 1.63 / 20  # Kolmogorov-Smirnov, 1 %


@given(st.integers(-5, 5), st.integers(1, 9), st.floats(0, 1, exclude_max=True))
def test_whole_numbers_are_drawn_from_both_ends(low: int, width: int, share: float) -> None:
    span = Range(low, low + width, "linear", True)
    assert draw(span, 0.0) == low and draw(span, 1 - 1e-9) == low + width
    assert isinstance(draw(span, share), int) and low <= draw(span, share) <= low + width


# -- rates ------------------------------------------------------------------------------------------------------------


def test_rates_are_crossed_with_every_arm_and_keep_the_ratios_of_the_roles(tmp_path: Path) -> None:
    grid = planned(tmp_path, "[grid]\nlr = [1e-3, 3e-3, 6e-3]\n'model.layer.ffn' = ['gelu', 'relu2']\n", sets=[
        "optim.embedding.lr=6e-3"
    ])  # fmt: skip
    assert names(grid) == [f"{ffn} lr={lr}" for ffn in ("gelu", "relu2") for lr in (0.001, 0.003, 0.006)]
    assert [leading_rate(arm.recipe) for arm in grid.arms] == [1e-3, 3e-3, 6e-3] * 2
    assert [arm.recipe.optim["embedding"].lr for arm in grid.arms] == [2e-3, 6e-3, 12e-3] * 2
    assert [arm.rate.arm for arm in grid.arms] == ["gelu"] * 3 + ["relu2"] * 3


def test_factors_multiply_each_arms_own_rates(tmp_path: Path) -> None:
    more = "[grid]\nlr = { factors = [1, 0.5] }\n'optim.matrix' = ['adamw', { kind = 'muon', lr = 0.02 }]\n"
    grid = planned(tmp_path, more)
    assert [leading_rate(arm.recipe) for arm in grid.arms] == [3e-3, 1.5e-3, 0.02, 0.01]
    assert names(grid)[:2] == ["adamw lr x1", "adamw lr x0.5"]


def test_an_arm_at_its_own_rate_is_the_arm_itself(tmp_path: Path) -> None:
    grid = planned(tmp_path, "[grid]\nlr = [3e-3]\n")
    assert differences(grid.arms[0].recipe, grid.recipe) == {}


# -- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "design = 'path'\n": "needs ingredients",
    "design = 'pathe'\n": "no such design, did you mean 'path'?",
    "order = 'greedy'\n": 'grid.order: belongs to design = "path"',
    "n = 4\n": 'grid.n: belongs to design = "random"',
    "design = 'random'\nn = 3\n": "needs something to draw",
    "design = 'random'\n'model.dim' = [16]\n": "needs the number of draws",
    "'model.dim' = { low = 1, high = 2 }\n": 'a range needs design = "random"',
    "design = 'random'\nn = 2\n'model.dim' = { low = 2, high = 2 }\n": "a range needs numbers low < high",
    "design = 'random'\nn = 2\n'train.clip' = { low = 0.0, high = 2.0, scale = 'log' }\n": "must be above zero",
    "design = 'path'\norder = 'greedy'\n'model.dim' = [16, 32, 64]\n": "an ingredient of a greedy path is in or out",
    "lr = 0.1\n": "must be a list of different rates above zero",
    "lr = [1e-3, 1e-3]\n": "must be a list of different rates",
    "lr = { factor = [1, 2] }\n": "write a list of rates, or { factors",
    "lr = [1e-3]\n'optim.matrix.lr' = [1e-3, 2e-3]\n": "the axis optim.matrix.lr varies a rate already",
    "lr_extend = true\n": "there is no grid.lr to extend",
    "match = 'parameters'\n'model.dim' = [16, 32]\n": "did you mean 'params'?",
    "match_multiple_of = 0\n": "must be a whole number of at least 1",
}


@pytest.mark.parametrize("more", REFUSED)
def test_grids_that_cannot_be_are_refused(tmp_path: Path, more: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(tmp_path, "[grid]\n" + more)
    assert REFUSED[more] in str(caught.value) and "small.toml" in str(caught.value)

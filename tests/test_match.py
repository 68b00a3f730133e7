"""Matching: arms made to cost what the baseline costs, counted again from the models that come out."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from recipes import write
from zoo.core.part import ConfigError
from zoo.core.slots import Attention, FeedForward
from zoo.cost import Cost, cost
from zoo.trials.grid import Arm, Grid, plan
from zoo.trials.match import TOLERANCE, hidden_of, matched
from zoo.trials.names import differences
from zoo.trials.vocabulary import with_vocabulary

WHAT = {"params": "parameters", "active_params": "active_parameters", "flops": "flops_per_token"}


def planned(folder: Path, more: str, **options: Any) -> Grid:
    return plan(write(folder, more), device="cpu", **options)


def cost_of(arm: Arm) -> Cost:
    return cost(with_vocabulary(arm.recipe, 257).model)


def off(arm: Arm, grid: Grid, match: str) -> float:
    """How far an arm's model is from the baseline's, counted anew."""
    figure = WHAT[match]
    return getattr(cost_of(arm), figure) / getattr(cost_of(grid.arms[0]), figure) - 1


def axes() -> str:
    attention = [kind for kind, part in Attention.kinds.items() if not part.breaks]
    ffn = [kind for kind, part in FeedForward.kinds.items() if not part.breaks]
    return f"'model.layer.attention' = {attention}\n'model.layer.ffn' = {ffn}\n"


@pytest.mark.parametrize("match", WHAT)
def test_every_pair_of_kinds_is_matched_within_a_hundredth_or_says_why_not(tmp_path: Path, match: str) -> None:
    sets = ["model.dim=64", "model.layer.ffn.hidden_dim=160", "model.context=64"]
    grid = planned(tmp_path, f"[grid]\nmatch = '{match}'\nmatch_multiple_of = 1\n{axes()}", sets=sets)
    assert len(grid.arms) >= 18
    for arm in grid.arms[1:]:
        assert abs(off(arm, grid, match)) <= TOLERANCE, arm.name
        assert arm.matched is not None and arm.matched.residual == pytest.approx(off(arm, grid, match), abs=1e-12)
        assert f"{arm.matched.residual:+.2%}" in arm.notes[0]
        for path, old, new in arm.matched.changes:
            assert path in differences(arm.recipe, grid.arms[0].recipe) or old != new


@pytest.mark.slow
@pytest.mark.parametrize("match", WHAT)
def test_every_ordered_pair_of_arms_is_matched(tmp_path: Path, match: str) -> None:
    sets = ["model.dim=64", "model.layer.ffn.hidden_dim=160", "model.context=64", "model.vocab_size=257"]
    arms = planned(tmp_path, f"[grid]\n{axes()}", sets=sets).arms
    for baseline, arm in itertools.permutations(arms, 2):
        found = matched(baseline.recipe, arm.recipe, match, 1, frozenset())
        sizes = [getattr(cost(recipe.model), WHAT[match]) for recipe in (found.recipe, baseline.recipe)]
        assert abs(sizes[0] / sizes[1] - 1) <= TOLERANCE, (baseline.name, arm.name, found.note())


def test_the_hidden_width_goes_first_and_alone_where_it_can(tmp_path: Path) -> None:
    grid = planned(
        tmp_path, "[grid]\nmatch = 'params'\n'model.layer.ffn' = ['swiglu', 'relu2']\n", sets=["model.dim=64"]
    )
    assert grid.arms[1].recipe.model.layer.ffn.hidden_dim == 48  # two matrices of 48 hold what three of 32 hold
    assert set(differences(grid.arms[1].recipe, grid.arms[0].recipe)) == {
        "model.layer.ffn.kind",
        "model.layer.ffn.hidden_dim",
    }
    assert grid.arms[0].matched is None and off(grid.arms[1], grid, "params") == 0.0


def test_widths_are_multiples_of_what_is_asked(tmp_path: Path) -> None:
    more = "[grid]\nmatch = 'flops'\nmatch_multiple_of = 4\n'model.n_layers' = [2, 3, 4]\n"
    grid = planned(tmp_path, more, sets=["model.dim=128", "model.layer.ffn.hidden_dim=512"])
    for arm in grid.arms[1:]:
        assert hidden_of(arm.recipe) % 4 == 0 and hidden_of(arm.recipe) < 512 and abs(off(arm, grid, "flops")) <= 0.01


def test_a_width_that_the_grid_varies_is_left_alone(tmp_path: Path) -> None:
    more = "[grid]\nmatch = 'params'\nmatch_multiple_of = 1\n'model.layer.ffn.hidden_dim' = [256, 128]\n"
    grid = planned(tmp_path, more, sets=["model.dim=128", "model.layer.attention.n_heads=1"])
    assert [arm.recipe.model.layer.ffn.hidden_dim for arm in grid.arms] == [256, 128]
    assert grid.arms[1].recipe.model.dim > 128 and abs(off(grid.arms[1], grid, "params")) <= 0.01


def test_what_cannot_be_matched_says_how_near_it_came(tmp_path: Path) -> None:
    more = "[grid]\nmatch = 'params'\nmatch_multiple_of = 64\n'model.layer.ffn' = ['swiglu', 'relu2']\n"
    with pytest.raises(ConfigError, match=r"arm 'relu2': parameters cannot be matched within 1%: the nearest is .*%"):
        planned(tmp_path, more)


def test_a_variant_may_stay_as_it_is(tmp_path: Path) -> None:
    more = "[grid]\nmatch = 'params'\n[[grid.variant]]\nname = 'base'\n[[grid.variant]]\nname = 'big'\nmatch = 'none'\n"
    grid = planned(tmp_path, more + "set = { 'model.dim' = 64 }\n")
    assert grid.arms[1].matched is None and grid.arms[1].recipe.model.layer.ffn.hidden_dim == 32


def test_rates_are_crossed_with_matched_arms(tmp_path: Path) -> None:
    more = "[grid]\nmatch = 'params'\nlr = [1e-3, 2e-3]\n'model.layer.ffn' = ['swiglu', 'relu2']\n"
    grid = planned(tmp_path, more)
    assert [hidden_of(arm.recipe) for arm in grid.arms] == [32, 32, 48, 48]
    assert all("matched in parameters" in arm.notes[0] for arm in grid.arms[2:])

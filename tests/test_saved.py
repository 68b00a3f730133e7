"""What autograd keeps, counted from stages of which one of a kind is called, is what it keeps if all are called."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes import write
from zoo import machine
from zoo.core.part import ConfigError
from zoo.model import Model, Stage
from zoo.saved import saved_bytes
from zoo.testing.hosts import SITE
from zoo.testing.values import random_model
from zoo.trials.build import asked_model, meta_model
from zoo.trials.check import Known, Sized, check, memory, outline
from zoo.trials.grid import Grid, plan
from zoo.trials.run import with_known_vocabularies

RECIPES = Path(__file__).parents[1] / "recipes"


def naive(model: Model, rows: int) -> int:
    """Every stage called, every storage that is kept counted once."""
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        alive.append(t)
        if t.untyped_storage()._cdata not in parameters:
            kept[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
        return t

    tokens = torch.zeros(rows, model.config.context, dtype=torch.long, device=model.embedding.weight.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model.eval()(tokens, tokens)
    return sum(kept.values())


def shipped(name: str) -> Grid:
    return with_known_vocabularies(plan(RECIPES / f"{name}.toml", "cpu", device="cpu"))[0]


@pytest.mark.parametrize("name", ["compact_10L", "deepseek_24L"])
def test_arms_that_share_what_was_called_keep_what_each_keeps_alone(name: str) -> None:
    calls = {}
    models = [meta_model(arm.recipe) for arm in shipped(name).arms[:5]]
    assert [saved_bytes(m, 2, calls) for m in models] == [naive(m, 2) for m in models]


@given(st.integers(0, 2**20), st.sampled_from(["meta", "cpu"]))
@settings(max_examples=12)
def test_a_random_model_keeps_what_it_keeps(seed: int, device: str) -> None:
    rng = random.Random(seed)
    config = next(c for _ in range(200) if (c := random_model(rng, site=SITE)) is not None)
    with torch.device(device):
        model = Model(config, seed=None)
    calls = {}
    found = naive(model, 2)
    assert saved_bytes(model, 2, calls) == found
    assert saved_bytes(model, 2, calls) == found  # no stage is called


def test_small_models_for_a_cpu_are_asked_there_and_others_on_the_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = with_known_vocabularies(plan(RECIPES / "quickstart.toml", device="cpu"))[0].arms[0].recipe
    assert asked_model(recipe).embedding.weight.device.type == "cpu"
    wide = recipe.model_copy(update={"model": recipe.model.model_copy(update={"dim": 2048})})
    assert asked_model(wide).embedding.weight.is_meta
    monkeypatch.setattr(machine, "settle_device", lambda asked: "cuda")
    assert asked_model(recipe).embedding.weight.is_meta


def test_a_block_that_raises_where_it_computes_costs_no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = with_known_vocabularies(plan(RECIPES / "quickstart.toml", device="cpu"))[0]
    wanted = Sized().of(grid.arms[0].recipe)
    forward = Stage.forward

    def broken(self: Stage, x: torch.Tensor, *given: Any) -> Any:
        if not x.is_meta:
            raise ArithmeticError("broken")
        return forward(self, x, *given)

    monkeypatch.setattr(Stage, "forward", broken)
    assert Sized().of(grid.arms[0].recipe) == Known().of(grid.arms[0].recipe) == wanted


def test_with_recomputation_less_is_kept() -> None:
    model = meta_model(shipped("deepseek_24L").arms[0].recipe)
    whole = saved_bytes(model, 2)
    model.recompute = True
    assert saved_bytes(model, 2) == naive(model, 2) < whole / 2


@pytest.mark.parametrize("known", [Known, Sized])
def test_stages_that_are_alike_are_called_once(known: type[Known], monkeypatch: pytest.MonkeyPatch) -> None:
    grid, found, called = shipped("deepseek_24L"), known(), []
    forward = Stage.forward
    monkeypatch.setattr(Stage, "forward", lambda self, *given: called.append(self) or forward(self, *given))
    arm = grid.arms[0]
    check(grid, [arm], found)
    assert len(called) == 2 < arm.recipe.model.n_layers  # the stem, which every model has, and one layer
    trained = arm.recipe.train.model_copy(update={"seconds": 3.0, "steps": None})
    check(grid, [arm._replace(recipe=arm.recipe.model_copy(update={"train": trained}))], found)
    assert len(called) == 2


def test_what_is_counted_beside_the_check_is_what_is_counted_alone() -> None:
    grid, sized = shipped("deepseek_24L"), Sized()
    assert check(grid, known=sized) == check(grid)
    recipes = [arm.recipe for arm in grid.arms[:2]]
    assert [sized.memories[outline(recipe)] for recipe in recipes] == [memory(recipe) for recipe in recipes]


def test_shapes_that_do_not_fit_are_refused_as_by_a_check(tmp_path: Path) -> None:
    attention = "model.layer.attention = { kind = 'gqa', value = 'residual', n_heads = 2, n_kv_heads = 1 }"
    where = "model.where = [{ layers = '1', attention = { n_kv_heads = 2 } }]"
    grid = plan(
        write(tmp_path, f"[grid]\nvariant = [{{ name = 'odd', set = {{ {attention}, {where} }} }}]\n"), device="cpu"
    )
    grid, said = with_known_vocabularies(grid)[0], []
    for known in (Known(), Sized()):
        with pytest.raises(ConfigError, match="layers that share it need equal heads and widths") as fault:
            check(grid, known=known)
        said.append(re.sub(r"\(\d+, (\d+), \d+, (\d+)\)", r"(\1, \2)", str(fault.value)))  # heads and their width alone
    assert said[0] == said[1] and "model: layer.1: " in said[0]

"""Recipes: the order in which patches are laid, and what Python sees."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import zoo
from recipes import write
from zoo import plugins
from zoo.core.params import Role
from zoo.core.part import ConfigError
from zoo.core.slots import Attention, FeedForward
from zoo.files import choose, parse_set, read
from zoo.recipe import Recipe
from zoo.resolve import loads
from zoo.trials.grid import plan

plugins.discover()

ATTENTIONS = sorted(Attention.kinds)
FEEDFORWARDS = sorted(FeedForward.kinds)


# -- order ---------------------------------------------------------------------------------------------------------------


def resolved(path: Path, **options: Any) -> Recipe:
    return plan(path, device="cpu", **options).recipe


def test_base_then_recipe_then_profile_then_set_then_axis(tmp_path: Path) -> None:
    write(tmp_path, "[schedule]\nkind = 'constant'\n", name="base.toml")
    path = tmp_path / "child.toml"
    path.write_text(
        textwrap.dedent(
            """
            extends = "base.toml"
            [model]
            dim = 32
            n_layers = 3
            [train]
            batch = 5
            [profiles.cpu]
            "model.dim" = 8
            train = { batch = 6 }
            [grid]
            "train.batch" = [7, 9]
            """
        )
    )
    assert resolved(path, profile="full").model.dim == 32
    small = resolved(path)
    assert (small.model.dim, small.model.n_layers, small.model.context) == (8, 3, 16)
    assert small.train.batch == 7 and small.machine.profile == "cpu" and small.name == "child"
    assert resolved(path, sets=["model.dim=4"]).model.dim == 4
    grid = plan(path, sets=["train.batch=8"], device="cpu")
    assert [arm.recipe.train.batch for arm in grid.arms] == [8]
    assert grid.said[-1] == "--set train.batch removes the grid's axis of that name."


def test_the_cpu_profile_applies_by_itself_only_without_a_gpu(tmp_path: Path) -> None:
    path = write(tmp_path, "[profiles.cpu]\n'model.dim' = 8\n")
    book = read(path)
    assert choose(book, None, (), "cpu").said and not choose(book, None, (), "cuda").said
    assert choose(book, None, (), "cuda").patches == book.patches
    assert plan(path, profile="full", device="cpu").recipe.machine.profile == "full"


def test_a_profile_may_replace_the_grid_or_change_a_part_of_it(tmp_path: Path) -> None:
    grid = "[grid]\n'model.dim' = [16, 32]\nseeds = 2\n"
    whole = write(tmp_path, grid + "[profiles.cpu.grid]\n'model.n_layers' = [1, 2, 3]\n")
    assert [arm.recipe.model.n_layers for arm in plan(whole, device="cpu").arms] == [1, 2, 3]
    assert plan(whole, device="cpu").seeds == (0,) and len(plan(whole, profile="full").arms) == 2
    part = write(tmp_path, grid + "[profiles.cpu]\n'grid.seeds' = [5]\n")
    assert plan(part, device="cpu").seeds == (5,) and len(plan(part, device="cpu").arms) == 2


def test_a_child_lays_its_profile_over_its_parents(tmp_path: Path) -> None:
    write(tmp_path, "[profiles.cpu]\n'model.dim' = 8\n'model.n_layers' = 1\n", name="base.toml")
    child = tmp_path / "child.toml"
    child.write_text("extends = 'base.toml'\n[profiles.cpu]\n'model.dim' = 4\n")
    assert (resolved(child).model.dim, resolved(child).model.n_layers) == (4, 1)


def test_meanings_can_be_changed_by_a_profile_and_reach_defaults(tmp_path: Path) -> None:
    more = "[kinds.norm.rms_norm]\neps = 1e-3\n[profiles.cpu]\n'kinds.norm.rms_norm.eps' = 1e-2\n"
    path = write(tmp_path, more)
    assert resolved(path, profile="full").model.norm.eps == 1e-3  # nobody wrote model.norm: it is the default
    assert resolved(path).model.layer.norm.eps == 1e-2


def test_where_comes_last_and_knows_the_meanings(tmp_path: Path) -> None:
    more = (
        "[[model.where]]\nlayers = '-1:'\nffn = 'moe'\n"
        "[kinds.ffn.moe]\nn_experts = 3\ntop_k = 1\n"
        "[grid]\n'model.layer.ffn' = ['relu2']\n"
    )
    layers = plan(write(tmp_path, more), device="cpu").arms[0].recipe.model.layers()
    assert [layer.ffn.part.kind for layer in layers] == ["relu2", "moe"] and layers[1].ffn.n_experts == 3
    assert layers[1].ffn.hidden_dim == 32  # survives both swaps


def test_a_budget_stated_later_replaces_the_earlier_spelling(tmp_path: Path) -> None:
    train = resolved(write(tmp_path), sets=["train.tokens=1000"]).train
    assert (train.steps, train.tokens) == (None, 1000)
    write(tmp_path, name="base.toml")
    child = tmp_path / "child.toml"
    child.write_text("extends = 'base.toml'\n[train]\nseconds = 2.5\n")
    assert resolved(child).train.steps is None and resolved(child).train.batch == 4


@pytest.mark.parametrize(
    ("typed", "value"),
    [("3", 3), ("1e-3", 1e-3), ("true", True), ("mla", "mla"), ('"3"', "3"), ("[1, 2]", [1, 2]), ("-4:", "-4:"),
     ('{kind = "moe", top_k = 1}', {"kind": "moe", "top_k": 1}), ("1\nx = 2", "1\nx = 2"), ("a = b", "a = b")],
)  # fmt: skip
def test_values_typed_are_toml_or_words(typed: str, value: Any) -> None:
    assert parse_set(f"a.b={typed}") == (f"--set a.b={typed}", "a.b", value)


# -- from Python ---------------------------------------------------------------------------------------------------------


def test_build_and_load_need_no_text_where_the_vocabulary_is_known(tmp_path: Path) -> None:
    path = write(tmp_path, "[profiles.cpu]\n'model.dim' = 8\n[[grid.variant]]\nname = 'deep'\nset.model.n_layers = 3\n")
    (tmp_path / "text.txt").unlink()
    model = zoo.build(path, profile="full", sets=["model.n_layers=1"])
    assert model.config.dim == 16 and model.config.vocab_size == 257 and len(model.layer) == 1
    assert zoo.load(path, variant="deep").model.n_layers == 3
    with pytest.raises(ConfigError, match="no such arm, did you mean 'deep'"):
        zoo.load(path, variant="deeep")


def test_importing_the_zoo_imports_no_torch() -> None:
    code = "import sys, zoo; assert not {'torch', 'pydantic', 'transformers'} & set(sys.modules); print(dir(zoo))"
    assert (
        "ModelConfig" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )


def test_every_public_name_is_there() -> None:
    assert all(getattr(zoo, name) is not None for name in zoo.__all__)
    with pytest.raises(AttributeError, match="it has"):
        _ = zoo.modle


def test_roles_of_a_recipe_are_the_models_words() -> None:
    assert [str(role) for role in loads("[optim]\ncontrol = 'adamw'\n").optim] == [Role.CONTROL]

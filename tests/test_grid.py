"""Grids: which arms there are, what they are called, in what they differ, and what is refused before anything trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes import write
from zoo.core.params import Role
from zoo.core.part import ConfigError
from zoo.files import Patch
from zoo.report.anatomy import anatomy
from zoo.trials.address import address, code_hash, imported, stripped
from zoo.trials.check import check, memory
from zoo.trials.designs import study_of
from zoo.trials.grid import Grid, plan, trial_recipe
from zoo.trials.names import differences, label_values, short_paths, spell
from zoo.trials.run import with_known_vocabularies

ROOT = Path(__file__).parents[1]


def planned(folder: Path, more: str, **options: Any) -> Grid:
    return plan(write(folder, more), device="cpu", **options)


def names(grid: Grid) -> list[str]:
    return [arm.name for arm in grid.arms]


# -- designs ----------------------------------------------------------------------------------------------------------

AXES = "[grid]\n'model.layer.ffn' = ['swiglu', 'relu2']\n'model.dim' = [16, 32, 64]\n"
VARIANTS = """
[[grid.variant]]
name = 'deep'
set = { 'model.n_layers' = 3 }
[[grid.variant]]
name = 'long'
set.model.context = 32
"""


def test_no_grid_is_one_arm(tmp_path: Path) -> None:
    grid = planned(tmp_path, "")
    assert names(grid) == ["baseline"] and grid.seeds == (0,) and grid.arms[0].recipe.variant == "baseline"


def test_axes_are_multiplied_and_first_values_are_the_baseline(tmp_path: Path) -> None:
    grid = planned(tmp_path, AXES)
    assert names(grid) == [f"{ffn} dim={dim}" for ffn in ("swiglu", "relu2") for dim in (16, 32, 64)]
    built = [(arm.recipe.model.layer.ffn.part.kind, arm.recipe.model.dim) for arm in grid.arms]
    assert built == [(ffn, dim) for ffn in ("swiglu", "relu2") for dim in (16, 32, 64)]


def test_axes_may_be_nested_tables(tmp_path: Path) -> None:
    nested = "[grid.model.layer]\nffn = ['swiglu', 'relu2']\n[grid.model]\ndim = [16, 32, 64]\n"
    assert names(planned(tmp_path, nested)) == names(planned(tmp_path, AXES))


def test_variants_stand_beside_axes_on_the_baseline(tmp_path: Path) -> None:
    grid = planned(tmp_path, AXES + VARIANTS)
    assert names(grid)[-2:] == ["deep", "long"] and len(grid.arms) == 8
    assert grid.arms[-1].recipe.model.dim == 16 and grid.arms[-1].recipe.model.context == 32


def test_variants_alone_are_all_there_is(tmp_path: Path) -> None:
    grid = planned(tmp_path, VARIANTS)
    assert names(grid) == ["deep", "long"] and [arm.recipe.model.n_layers for arm in grid.arms] == [3, 2]
    assert grid.recipe.model.n_layers == 2  # the recipe itself is nobody's arm


def test_one_axis_at_a_time(tmp_path: Path) -> None:
    grid = planned(tmp_path, AXES + "design = 'one_at_a_time'\n" + VARIANTS)
    assert names(grid) == ["baseline", "relu2", "dim=32", "dim=64", "deep", "long"]
    assert not any(arm.also for arm in grid.arms)
    assert [len(differences(arm.recipe, grid.arms[0].recipe)) for arm in grid.arms] == [0, 1, 1, 1, 1, 1]


def test_leaving_one_out(tmp_path: Path) -> None:
    more = (
        "[model]\nstem = ['smear_gate', 'rms_norm']\nhead = { kind = 'tied', softcap = 30.0 }\n"
        "context = 16\ndim = 16\n[optim]\nmatrix = 'adamw'\n[train]\nsteps = 1\n[grid]\ndesign = 'leave_one_out'\n"
        "[[grid.variant]]\nname = 'no smear'\nset = { 'model.stem' = ['rms_norm'] }\n"
        "[[grid.variant]]\nname = 'no softcap'\nset = { 'model.head.softcap' = 'none' }\n"
    )
    grid = plan(write(tmp_path, start=more), device="cpu")
    assert names(grid) == ["baseline", "no smear", "no softcap"]
    changed = [differences(arm.recipe, grid.arms[0].recipe) for arm in grid.arms]
    assert [list(found) for found in changed] == [[], ["model.stem"], ["model.head.softcap"]]
    assert spell(changed[1]["model.stem"][0]).startswith("smear_gate") and changed[2]["model.head.softcap"] == (
        30.0,
        None,
    )


def test_equal_arms_are_found_once(tmp_path: Path) -> None:
    more = "[[grid.variant]]\nname = 'plain'\n[[grid.variant]]\nname = 'same'\nset = { 'model.dim' = 16 }\n"
    grid = planned(tmp_path, more)
    assert names(grid) == ["plain"] and grid.arms[0].also == ("same",)
    assert grid.only("same") == grid.only("plain") == grid.arms


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True), max_size=3))
def test_a_product_has_every_combination_once(values: list[list[int]]) -> None:
    paths = ["model.dim", "model.n_layers", "model.context"]
    drafts = study_of(Patch("here", dict(zip(paths, values, strict=False)))).drafts
    total = 1
    for axis in values:
        total *= len(axis)
    assert len(drafts) == len({draft.name for draft in drafts}) == total
    assert [patch.table for patch in drafts[0].patches] == [
        {"model": {p.split(".")[1]: v[0]}} for p, v in zip(paths, values, strict=False)
    ]


def test_seeds_count_from_the_recipes_own(tmp_path: Path) -> None:
    grid = planned(tmp_path, "[grid]\nseeds = 3\n", sets=["train.seed=7"])
    assert grid.seeds == (7, 8, 9) and trial_recipe(grid.arms[0], 9).train.seed == 9
    assert planned(tmp_path, "[grid]\nseeds = [4, 2]\n").seeds == (4, 2)
    assert planned(tmp_path, "[grid]\nseeds = 3\n", seeds=2).seeds == (0, 1)


def test_only_picks_arms_by_glob(tmp_path: Path) -> None:
    grid = planned(tmp_path, AXES)
    assert [arm.name for arm in grid.only("relu2*")] == ["relu2 dim=16", "relu2 dim=32", "relu2 dim=64"]
    with pytest.raises(ConfigError, match="--only relu3: no such arm"):
        grid.only("relu3")


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "labels"),
    [
        ({"model.layer.attention": ["gqa", "mla"]}, [["gqa", "mla"]]),
        ({"model.layer.ffn.balance": ["none", "loss_free"]}, [["balance=none", "balance=loss_free"]]),
        ({"optim.matrix.lr": [1e-3, 0.03]}, [["lr=0.001", "lr=0.03"]]),
        ({"a.lr": [1], "b.lr": [2]}, [["a.lr=1"], ["b.lr=2"]]),
        ({"train.clip": ["none", 1.0]}, [["clip=none", "clip=1"]]),
        ({"as_published": [True, False]}, [["as_published=true", "as_published=false"]]),
        ({"model.stem": [[], ["rms_norm", "smear_gate"]]}, [["stem=none", "stem=rms_norm+smear_gate"]]),
        ({"f": [{"kind": "moe", "a": 1, "b": 1}, {"kind": "moe", "a": 2, "b": 1}]}, [["f=moe(a=1)", "f=moe(a=2)"]]),
        ({"f": [1, 1]}, [["f=1#0", "f=1#1"]]),
    ],
)  # fmt: skip
def test_values_are_named_readably(axes: dict[str, list[Any]], labels: list[list[str]]) -> None:
    assert list(label_values(axes).values()) == labels


def test_paths_are_written_as_short_as_they_stay_distinct() -> None:
    paths = ["optim.matrix.lr", "optim.head.lr", "model.dim", "model.stem[0].dim"]
    assert list(short_paths(paths).values()) == ["matrix.lr", "head.lr", "model.dim", "[0].dim"]


def test_differences_name_every_knob(tmp_path: Path) -> None:
    grid = planned(
        tmp_path, "[grid]\n'model.layer.attention' = ['gqa', { kind = 'mla', kv_lora_rank = 8, n_heads = 2 }]\n"
    )
    found = {
        path: tuple(map(spell, pair)) for path, pair in differences(grid.arms[1].recipe, grid.arms[0].recipe).items()
    }
    assert found["model.layer.attention.kind"] == ("gqa", "mla")
    assert found["model.layer.attention.kv_lora_rank"] == ("-", "8") and "model.layer.attention.n_heads" not in found
    assert all(path.startswith("model.layer.attention.") for path in found)


# -- what is refused before anything trains ---------------------------------------------------------------------------


def checked(folder: Path, more: str, **options: Any) -> Any:
    grid, _ = with_known_vocabularies(planned(folder, more, **options))
    return check(grid)


REFUSED = {
    "heads that do not divide": (
        "model.layer.attention.n_heads=3",
        "layer.attention.n_heads = 3: does not divide dim = 16",
    ),
    "a role without an optimizer": (
        "model.head=untied",
        "optim.head: no optimizer for head parameters such as head.out.weight",
    ),
    "a role that no arm has": ("optim.control=adamw", ": optim.control: no arm has control parameters"),
    "two budgets": ("train={steps=1,tokens=2}", ": train: needs exactly one of steps, tokens, seconds"),
    "a schedule longer than its run": (
        "schedule={kind='linear',warmup=1000}",
        ": schedule.warmup = 1000: is longer than the run",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_trials_that_cannot_be_are_refused_by_name(tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(ConfigError) as caught:
        checked(tmp_path, "", sets=[change])
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"--set {change}") or case == "a role without an optimizer"


def test_the_arm_at_fault_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"small\.toml, grid axis 'model\.dim', arm 'dim=15': model\.layer\.attention\.n_heads = 2|arm 'dim=15'",
    ):
        checked(tmp_path, "[grid]\n'model.dim' = [16, 15]\n")


def test_a_role_that_some_arms_lack_is_shown(tmp_path: Path) -> None:
    found = checked(tmp_path, "[optim.head]\nkind = 'adamw'\n[grid]\n'model.head' = ['tied', 'untied']\n")
    assert {name: forecast.unused for name, forecast in found.items()} == {"tied": (Role.HEAD,), "untied": ()}


def test_a_forecast_counts_what_will_be_built(tmp_path: Path) -> None:
    found = checked(tmp_path, "")["baseline"]
    assert found.steps == 6 and found.tokens_per_step == 64
    embedding, attention, ffn, norms = 257 * 16, 4 * 16 * 16, 3 * 16 * 32, 2 * 16
    assert found.cost.parameters == embedding + 2 * (attention + ffn + norms) + 16


def test_estimated_memory_grows_with_the_batch_and_holds_at_least_the_states(tmp_path: Path) -> None:
    grid, _ = with_known_vocabularies(planned(tmp_path, "[grid]\n'train.batch' = [1, 64]\n"))
    small, large = (memory(arm.recipe) for arm in grid.arms)
    parameters = check(grid)[grid.arms[0].name].cost.parameters
    assert 16 * parameters < small < large


# -- addresses --------------------------------------------------------------------------------------------------------


def test_an_address_ignores_names_and_nothing_that_changes_numbers(tmp_path: Path) -> None:
    grid = planned(tmp_path, VARIANTS)
    recipe = grid.arms[0].recipe
    here = address(recipe, "data", tmp_path)
    assert address(recipe.model_copy(update={"variant": "renamed", "name": "other"}), "data", tmp_path) == here
    assert address(trial_recipe(grid.arms[0], 1), "data", tmp_path) != here
    assert address(recipe, "other data", tmp_path) != here
    assert address(grid.arms[1].recipe, "data", tmp_path) != here
    machine = recipe.machine.model_copy(update={"device": "cuda:1"})
    other = recipe.machine.model_copy(update={"device": "cuda:3"})
    assert address(recipe.model_copy(update={"machine": machine}), "data", tmp_path) == address(
        recipe.model_copy(update={"machine": other}), "data", tmp_path
    )
    unrecorded = recipe.machine.model_copy(update={"graphs": "none"})
    assert address(recipe.model_copy(update={"machine": unrecorded}), "data", tmp_path) == here
    compiled = recipe.train.model_copy(update={"compile": "layers"})
    assert address(recipe.model_copy(update={"train": compiled}), "data", tmp_path) != here


def test_a_plug_ins_source_enters_the_address(tmp_path: Path) -> None:
    plugin = tmp_path / "empty.py"
    plugin.write_text("A = 1\n")
    recipe = planned(tmp_path, "plugins = ['empty.py']\n").recipe
    before = address(recipe, "data", tmp_path)
    plugin.write_text("A = 2\n")
    assert address(recipe, "data", tmp_path) != before


def test_source_is_hashed_without_comments_docstrings_and_layout() -> None:
    one = 'def f(x):\n    """Says."""\n    # why\n    return (x +\n            1)\n'
    assert stripped(one) == stripped("def f(x): return x + 1") != stripped("def f(x): return x + 2")
    assert stripped('class A:\n    """Only words."""\n') == stripped("class A:\n    pass\n")


def test_the_code_hash_follows_the_parts_that_are_used(tmp_path: Path) -> None:
    grid = planned(tmp_path, "[grid]\n'model.layer.ffn' = ['swiglu', 'relu2', 'moe']\n")
    dense, relu2, moe = (code_hash(arm.recipe) for arm in grid.arms)
    assert dense == relu2 != moe  # two kinds of one file, and one of another


def test_code_hashes_see_the_imports_of_a_module() -> None:
    of_train, of_loop = ({path.name for path in imported(ROOT / "zoo" / name)} for name in ("train.py", "loop.py"))
    assert "loop.py" in of_train and {"model.py", "params.py", "budget.py"} <= of_loop
    assert "grid.py" not in of_train | of_loop


# -- the published counts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "active"),
    [
        ("deepseek_24L", 679_809_792, 226_824_960),
        ("deepseek_12L", 159_019_568, 108_626_480),
        ("compact_10L", 24_730_705, None),
    ],
)
def test_recipes_show_their_published_counts(name: str, parameters: int, active: int | None) -> None:
    cost = anatomy(plan(ROOT / "recipes" / f"{name}.toml", profile="full").recipe).cost
    assert cost.parameters == parameters and active in (None, cost.active_parameters)

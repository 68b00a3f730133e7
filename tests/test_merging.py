"""Merging: what a patch changes, what survives a swap of kind, what bare names mean; and round trips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import plugins
from zoo.core.part import ConfigError, Knobs
from zoo.core.slots import Attention, FeedForward, Layer
from zoo.core.tables import join_path, nested, split_path, tabulate
from zoo.core.tree import NO_KINDS, expand, merge, shared_knobs
from zoo.model import ModelConfig
from zoo.recipe import Recipe, dumps
from zoo.resolve import loads
from zoo.trials.grid import plan

plugins.discover()

ATTENTIONS = sorted(Attention.kinds)
FEEDFORWARDS = sorted(FeedForward.kinds)


# -- merging -------------------------------------------------------------------------------------------------------------


POSITION = st.sampled_from(["none", "rope", {"kind": "rope", "theta": 500.0}, {"kind": "rope", "dims": 4}])
SHARED = {"n_heads": st.integers(1, 8), "head_dim": st.integers(2, 64), "position": POSITION}
ATTENTION = st.one_of(
    st.sampled_from(ATTENTIONS),
    st.builds(
        lambda kind, knobs: {"kind": kind, **knobs},
        st.sampled_from(ATTENTIONS),
        st.fixed_dictionaries({}, optional=SHARED),
    ),
)
FFN = st.one_of(
    st.sampled_from(FEEDFORWARDS),
    st.builds(
        lambda kind, width: {"kind": kind, "hidden_dim": width}, st.sampled_from(FEEDFORWARDS), st.integers(1, 99)
    ),
)
LAYER = st.fixed_dictionaries(
    {}, optional={"attention": ATTENTION, "ffn": FFN, "norm": st.sampled_from(["rms_norm", "none"])}
)
MODEL = st.fixed_dictionaries({}, optional={"dim": st.integers(1, 99), "n_layers": st.integers(1, 3), "layer": LAYER})


def laid(*patches: Any, config: type[Knobs] = ModelConfig, kinds: Any = NO_KINDS) -> Any:
    """Patches over each other, in order."""
    table: Any = None
    for patch in patches:
        table = merge(config, table, patch, kinds)
    return table


def leaves(table: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no table, with its dotted path."""
    if isinstance(table, dict):
        for name, item in table.items():
            yield from leaves(item, f"{path}.{name}")
    else:
        yield path, table


@given(MODEL, MODEL)
def test_merging_twice_changes_nothing(base: Any, patch: Any) -> None:
    once = laid(base, patch)
    assert merge(ModelConfig, once, patch) == once


@given(MODEL, MODEL)
def test_what_the_patch_states_holds(base: Any, patch: Any) -> None:
    stated = dict(leaves(merge(ModelConfig, None, patch)))
    merged = dict(leaves(laid(base, patch)))
    assert {path: merged.get(path) for path in stated} == stated


@given(MODEL, MODEL, MODEL)
def test_patches_of_different_knobs_commute(base: Any, one: Any, other: Any) -> None:
    other = {name: value for name, value in other.items() if name not in one}
    assert laid(base, one, other) == laid(base, other, one)


@given(st.sampled_from(ATTENTIONS), st.sampled_from(ATTENTIONS), st.fixed_dictionaries({}, optional=SHARED))
def test_a_swap_keeps_the_slots_knobs_and_drops_the_kinds_own(old: str, new: str, knobs: dict[str, Any]) -> None:
    own = {name for name in Attention.kinds[old].Config.model_fields if name not in Attention.Config.model_fields}
    stated = {name: 1 for name in own if Attention.kinds[old].Config.model_fields[name].annotation is int}
    swapped = laid({"kind": old, **knobs, **stated}, new, config=Attention.Config)
    kept = {name: merge(Attention.Config, None, {"kind": old, **knobs})[name] for name in knobs}
    assert {name: swapped[name] for name in knobs} == kept
    survivors = shared_knobs(Attention.kinds[old], Attention.kinds[new])
    assert set(swapped) - {"kind"} == {name for name in {*knobs, *stated} if old == new or name in survivors}


def test_a_swap_between_relatives_keeps_what_they_share_beyond_the_slot() -> None:
    assert laid({"kind": "gqa", "n_kv_heads": 2}, "latent_tokens", config=Attention.Config)["n_kv_heads"] == 2


def test_a_swap_there_and_back_loses_what_the_other_kind_lacks() -> None:
    table = laid({"kind": "moe", "n_experts": 3, "hidden_dim": 7}, "swiglu", "moe", config=FeedForward.Config)
    assert table == {"kind": "moe", "hidden_dim": 7}


def test_a_bare_name_takes_its_meaning_and_the_patch_outranks_it() -> None:
    kinds = {"ffn": {"moe": {"n_experts": 3, "top_k": 1, "hidden_dim": 5}}}
    assert merge(FeedForward.Config, None, "moe", kinds) == {"kind": "moe", "n_experts": 3, "top_k": 1, "hidden_dim": 5}
    table = merge(FeedForward.Config, {"kind": "swiglu", "hidden_dim": 9}, {"kind": "moe", "top_k": 2}, kinds)
    assert table == {"kind": "moe", "n_experts": 3, "top_k": 2, "hidden_dim": 5}


def test_a_meaning_may_name_kinds_with_a_meaning_and_itself_without_end() -> None:
    kinds = {
        "norm": {"rms_norm": {"eps": 0.5}, "ln_scale": {"norm": {"kind": "ln_scale", "norm": "rms_norm"}}},
    }
    layer = merge(Layer.Config, None, {"kind": "pre_norm", "norm": "ln_scale"}, kinds)
    inner = {"kind": "ln_scale", "norm": {"kind": "rms_norm", "eps": 0.5}}
    assert layer["norm"] == {"kind": "ln_scale", "norm": inner}


def test_the_same_kind_named_again_keeps_what_was_stated() -> None:
    kinds = {"attention": {"gqa": {"n_heads": 8}}}
    table = merge(Attention.Config, {"kind": "gqa", "n_heads": 2}, "gqa", kinds)
    assert table == {"kind": "gqa", "n_heads": 2}
    assert expand(Layer.Config, {"attention": {"kind": "gqa", "output": ["xsa"]}}, kinds, {"attention": table}) == {
        "attention": {"kind": "gqa", "output": [{"kind": "xsa"}]}
    }


def test_a_table_without_a_kind_patches_the_default() -> None:
    table = merge(ModelConfig, {}, {"layer": {"attention": {"position": {"dims": 8}}}})
    assert table["layer"]["attention"] == {"kind": "gqa", "position": {"kind": "rope", "dims": 8}}


def test_single_items_of_a_list_can_be_patched() -> None:
    base = merge(ModelConfig, None, {"stem": [{"kind": "bigram_hash", "table_dim": 8}, "smear_gate"]})
    patched = merge(ModelConfig, base, nested("stem[0].table_dim", 4))
    assert [item["kind"] for item in patched["stem"]] == ["bigram_hash", "smear_gate"]
    assert patched["stem"][0]["table_dim"] == 4
    with pytest.raises(ConfigError, match=r"stem\.\[5\]|stem\[5\]"):
        merge(ModelConfig, base, nested("stem[5].table_dim", 4))


def test_none_unsets_a_knob_whose_default_is_a_value() -> None:
    recipe = loads("[train]\nclip = 'none'\n")
    assert recipe.train.clip is None and loads("").train.clip == 1.0
    assert loads(dumps(recipe)).train.clip is None


def test_none_is_a_kind_where_the_slot_has_one() -> None:
    assert loads("[average]\nkind = 'none'\n").average.part.kind == "none"


STEP = st.from_regex(r"[a-z_]{1,8}", fullmatch=True) | st.integers(0, 9).map("[{}]".format)


@given(st.from_regex(r"[a-z]+", fullmatch=True), st.lists(STEP, max_size=5))
def test_paths_split_and_join(first: str, rest: list[str]) -> None:
    steps = [first, *rest]
    assert split_path(join_path(steps)) == steps


@pytest.mark.parametrize("path", ["", "a..b", ".", "a."])
def test_an_empty_step_is_no_path(path: str) -> None:
    with pytest.raises(ConfigError, match="dotted path"):
        split_path(path)


# -- round trips ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(MODEL)
def test_a_recipe_survives_toml(model: Any) -> None:
    recipe = Recipe(model=ModelConfig.model_validate(merge(ModelConfig, None, model)))
    assert loads(dumps(recipe)) == recipe


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("recipes/*.toml")), ids=lambda p: p.stem)
@pytest.mark.parametrize("profile", ["full", None])
def test_every_arm_of_our_recipes_survives_toml(path: Path, profile: str | None) -> None:
    grid = plan(path, profile=profile)
    for recipe in (grid.recipe, *(arm.recipe for arm in grid.arms)):
        assert loads(dumps(recipe)) == recipe


def test_a_table_of_a_config_states_every_knob() -> None:
    table = tabulate(loads(""))
    assert table["model"]["layer"]["attention"]["kind"] == "gqa" and table["train"]["seed"] == 0
    assert Recipe.model_validate(table) == loads("")

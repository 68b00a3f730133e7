"""Recipes: merging, order, meanings, round trips, and complaints that name the place."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from recipes import write
from zoo import plugins
from zoo.core.params import Role
from zoo.core.part import ConfigError, Knobs
from zoo.core.slots import Attention, FeedForward, Layer
from zoo.core.tables import join_path, nested, split_path, tabulate
from zoo.core.tree import NO_KINDS, expand, merge, shared_knobs
from zoo.files import choose, parse_set, read
from zoo.model import ModelConfig
from zoo.recipe import Recipe, dumps
from zoo.resolve import loads
from zoo.trials.grid import plan

plugins.discover()

ATTENTIONS = sorted(Attention.kinds)
FEEDFORWARDS = sorted(FeedForward.kinds)


# -- merging ----------------------------------------------------------------------------------------------------------

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


# -- round trips ------------------------------------------------------------------------------------------------------


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


# -- order ------------------------------------------------------------------------------------------------------------


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


# -- bad input --------------------------------------------------------------------------------------------------------

BAD = {
    "unknown section": ("[modle]\ndim = 3\n", ": modle: unknown section, did you mean 'model'?"),
    "unknown key": ("[evaluate]\nbach = 3\n", ": evaluate.bach = 3: unknown key, did you mean 'batch'?"),
    "unknown key in a kind": ("[schedule]\nkind = 'constant'\nwarmpu = 3\n", ": schedule.warmpu = 3: unknown key"),
    "unknown kind": ("average = 'emma'\n", ": average.kind = 'emma': no average is called 'emma', did you mean 'ema'?"),
    "value out of range": ("[evaluate]\nbatch = 0\n", ": evaluate.batch = 0: Input should be greater than 0"),
    "value of another type": (
        "[evaluate]\nbatch = 'many'\n",
        ": evaluate.batch = 'many': Input should be a valid integer",
    ),
    "not a table": ("evaluate = 3\n", ": evaluate = 3: must be a table"),
    "a kind that is no kind": ("average = 3\n", ": average = 3: must name a kind of average"),
    "unknown slot": (
        "[kinds.atention.mla]\nn_heads = 2\n",
        ": kinds.atention: no slot is called 'atention', did you mean",
    ),
    "unknown kind of a slot": (
        "[kinds.attention.mlaa]\n",
        ": kinds.attention.mlaa: no attention is called 'mlaa', did you",
    ),
    "unknown knob of a meaning": (
        "[kinds.attention.mla]\nn_head = 2\n",
        ": kinds.attention.mla.n_head = 2: unknown key, did you mean 'n_heads'?",
    ),
    "meaning that is no table": ("[kinds]\nattention = 3\n", ": kinds.attention = 3: must be a table"),
    "unknown key in where": (
        "[[model.where]]\nlayers = '0'\nffn = { hiden_dim = 3 }\n",
        ": model.where[0].ffn.hiden_dim = 3: unknown key, did you mean 'hidden_dim'?",
    ),
    "layers that do not exist": (
        "[[model.where]]\nlayers = '7'\n",
        ": model.where[0].layers = '7': selects none of the 2",
    ),
    "patched item that does not exist": (
        "[profiles.cpu]\n'model.stem[3].dim' = 3\n",
        "[profiles.cpu]: model.stem[3]: the list",
    ),
    "unknown role": (
        "[optim.matricks]\nkind = 'adamw'\n",
        ": optim.matricks: no parameters have the role 'matricks', did you mean 'matrix'?",
    ),
    "reserved profile": ("[profiles.full]\n'model.dim' = 3\n", " [profiles.full]: 'full' is reserved"),
    "profile that is no table": ("[profiles]\ncpu = 3\n", " [profiles.cpu]: must be a table"),
    "profile with an unknown key": (
        "[profiles.cpu]\n'model.dmi' = 3\n",
        " [profiles.cpu]: model.dmi = 3: unknown key, did you mean 'dim'?",
    ),
    "profile with a plug-in": (
        "[profiles.cpu]\nplugins = ['x.py']\n",
        " [profiles.cpu]: plugins: a profile cannot change",
    ),
    "missing plug-in": ("plugins = ['mine.py']\n", ": plugins[0] = 'mine.py': cannot be read: No such file"),
    "plugins that are no list": ("plugins = 'mine.py'\n", ": plugins = 'mine.py': must be a list"),
    "missing parent": ("extends = 'smalk.toml'\n", ": no such file, did you mean 'small.toml'?"),
    "itself as parent": ("extends = 'small.toml'\n", ": extends = 'small.toml': goes round in a circle"),
    "parent that is no path": ("extends = ['a.toml']\n", ": extends = ['a.toml']: must be the path of one recipe"),
    "no TOML": ("[model\n", ": is no TOML"),
    "axis that is no list": ("[grid]\n'model.dim' = 3\n", ": grid.model.dim = 3: an axis is a list"),
    "axis without values": ("[grid]\n'model.dim' = []\n", ": grid.model.dim = []: an axis without values"),
    "unknown axis": ("[grid]\n'modle.dim' = [3]\n", ": grid.modle.dim: unknown axis, did you mean"),
    "unknown knob of an axis": ("[grid]\n'model.dmi' = [3]\n", ": model.dmi = 3: unknown key, did you mean 'dim'?"),
    "unknown design": ("[grid]\ndesign = 'leave_one'\n", ": grid.design = 'leave_one': no such design, did you mean"),
    "seed as an axis": ("[grid]\n'train.seed' = [1]\n", ": grid.train.seed: write seeds ="),
    "no seeds": ("[grid]\nseeds = 0\n", ": grid.seeds = 0: must be a count of at least 1"),
    "a seed twice": ("[grid]\nseeds = [1, 1]\n", ": grid.seeds = [1, 1]: each seed once"),
    "variant without a name": ("[[grid.variant]]\nset = {}\n", ": grid.variant[0]: needs a name"),
    "variant with an unknown key": ("[[grid.variant]]\nname = 'a'\nsett = {}\n", ": grid.variant[0].sett: unknown key"),
    "variants of one name": ("[[grid.variant]]\nname = 'a'\n[[grid.variant]]\nname = 'a'\n", "two arms are called 'a'"),
    "fault in a variant": (
        "[[grid.variant]]\nname = 'wide'\nset = { 'model.dmi' = 3 }\n",
        ", variant 'wide': model.dmi = 3: unknown key, did you mean 'dim'?",
    ),
    "where that a variant's kind lacks": (
        "[[model.where]]\nlayers = '0'\nffn = { top_k = 1 }\n[grid]\n'model.layer.ffn' = ['moe', 'swiglu']\n",
        "variant 'swiglu' of ",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recipes_are_refused_by_name(tmp_path: Path, case: str) -> None:
    more, message = BAD[case]
    path = write(tmp_path, more)
    with pytest.raises(ConfigError) as caught:
        plan(path, device="cpu")
    assert message in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_text_that_is_not_utf8_and_a_folder_are_no_recipes(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b"name = '\xe9'\n")
    with pytest.raises(ConfigError, match=r"latin\.toml: is not UTF-8 \(byte 8\)"):
        plan(path)
    with pytest.raises(ConfigError, match=r"no such file, did you mean 'latin\.toml'"):
        plan(tmp_path / "latn.toml")
    with pytest.raises(ConfigError, match="is a folder; a recipe is a file, there are: latin"):
        plan(tmp_path)


def test_a_circle_of_parents_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("extends = 'b.toml'")
    (tmp_path / "b.toml").write_text("extends = 'a.toml'")
    with pytest.raises(
        ConfigError, match=r"b\.toml: extends = 'a\.toml': goes round in a circle: .*a\.toml -> .*b\.toml"
    ):
        plan(tmp_path / "a.toml")


def test_a_parents_fault_names_the_parent(tmp_path: Path) -> None:
    write(tmp_path, "[evaluate]\nbatch = 0\n", name="base.toml")
    (tmp_path / "child.toml").write_text("extends = 'base.toml'\n[model]\ndim = 8\n")
    with pytest.raises(ConfigError, match=r"base\.toml: evaluate\.batch = 0"):
        plan(tmp_path / "child.toml")
    (tmp_path / "child.toml").write_text("extends = 'base.toml'\n[evaluate]\nbatch = -1\n")
    with pytest.raises(ConfigError, match=r"child\.toml: evaluate\.batch = -1"):
        plan(tmp_path / "child.toml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": ["model.dmi=3"]}, "--set model.dmi=3: model.dmi = 3: unknown key, did you mean 'dim'?"),
        ({"sets": ["model.dim=0"]}, "--set model.dim=0: model.dim = 0: Input should be greater than 0"),
        ({"sets": ["model.dim"]}, "--set model.dim: write path=value"),
        ({"sets": ["=3"]}, "--set =3: write path=value"),
        ({"profile": "gpu"}, "--profile gpu: no such profile, did you mean 'cpu'?"),
        ({"device": "tpu"}, "--device: machine.device = 'tpu': is no device"),
        (
            {"sets": ["machine.device=cuda:99"]},
            "--set machine.device=cuda:99: machine.device = 'cuda:99': this machine has no",
        ),
        ({"seeds": 0}, "--seeds = 0: must be a count"),
    ],
)
def test_bad_options_are_refused_by_name(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(write(tmp_path, "[profiles.cpu]\n'model.dim' = 8\n"), **options)
    assert message in str(caught.value)


# -- plug-ins and defects ---------------------------------------------------------------------------------------------

PLUGIN = """
from zoo.core.slots import FeedForward


class Nothing(FeedForward, kind="{kind}"):
    '''Returns nothing. Source: none.'''

    breaks = {breaks}

    class Config(FeedForward.Config):
        factor: float = {factor}

    def forward(self, x, bus):
        return x * self.factor

    def __init__(self, cfg, site):
        super().__init__()
        self.factor = cfg.factor
"""


def plug(folder: Path, kind: str, factor: float = 0.0, breaks: str = "{}", name: str = "mine.py") -> Path:
    (folder / name).write_text(PLUGIN.format(kind=kind, factor=factor, breaks=breaks))
    return write(folder, f"plugins = ['{name}']\n[grid]\n'model.layer.ffn' = ['swiglu', '{kind}']\n")


def test_a_plug_in_is_a_kind_like_any_other_and_may_be_read_twice(tmp_path: Path) -> None:
    for _ in range(2):
        grid = plan(plug(tmp_path, "nothing_a", factor=0.5), device="cpu")
        assert grid.arms[1].name == "nothing_a" and grid.arms[1].recipe.model.layer.ffn.factor == 0.5
    copied = tmp_path / "copy"
    copied.mkdir()
    assert plan(plug(copied, "nothing_a", factor=0.5), device="cpu").arms[1].recipe.plugins == ("mine.py",)


def test_an_edited_plug_in_replaces_itself(tmp_path: Path) -> None:
    plan(plug(tmp_path, "nothing_b", factor=0.5), device="cpu")
    assert plan(plug(tmp_path, "nothing_b", factor=0.25), device="cpu").arms[1].recipe.model.layer.ffn.factor == 0.25


def test_two_plug_ins_that_claim_one_kind_are_refused(tmp_path: Path) -> None:
    plug(tmp_path, "nothing_c", name="one.py")
    plug(tmp_path, "nothing_c", factor=1.0, name="two.py")
    with pytest.raises(ConfigError, match=r"plugins\[1\] = 'two\.py': does not import: TypeError: two parts claim"):
        plan(write(tmp_path, "plugins = ['one.py', 'two.py']\n"))


def test_a_parents_plug_in_is_found_from_the_child(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    plug(parent, "nothing_d")
    child = tmp_path / "child.toml"
    child.write_text("extends = 'parent/small.toml'\n")
    assert plan(child, device="cpu").recipe.plugins == ("parent/mine.py",)


def test_a_defect_trains_only_as_published(tmp_path: Path) -> None:
    path = plug(tmp_path, "nothing_e", breaks="{'prefix_consistent': 'seen somewhere'}")
    with pytest.raises(
        ConfigError, match=r"variant 'nothing_e' of .*breaks prefix_consistent \(seen somewhere\).*as_published"
    ):
        plan(path, device="cpu")
    assert len(plan(path, device="cpu", sets=["as_published=true"]).arms) == 2


# -- from Python ------------------------------------------------------------------------------------------------------


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

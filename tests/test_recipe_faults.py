"""Recipes that cannot be: complaints that name the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes import write
from zoo import plugins
from zoo.core.part import ConfigError
from zoo.core.slots import Attention, FeedForward
from zoo.trials.grid import plan

plugins.discover()

ATTENTIONS = sorted(Attention.kinds)
FEEDFORWARDS = sorted(FeedForward.kinds)


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

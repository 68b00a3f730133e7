"""Plug-ins: kinds of one's own, and defects that train only as published."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes import write
from zoo import plugins
from zoo.core.part import ConfigError
from zoo.core.slots import Attention, FeedForward
from zoo.trials.grid import plan

plugins.discover()

ATTENTIONS = sorted(Attention.kinds)
FEEDFORWARDS = sorted(FeedForward.kinds)


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

"""``show`` and ``list``: resolved recipes, kinds of the house and of guests."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_cli import call
from test_cli import own_places as own_places

from recipes import write
from zoo import plugins
from zoo.core.slots import Attention


def test_show_prints_the_resolved_recipe_and_every_layer(tmp_path: Path) -> None:
    recipe = write(tmp_path, "[[grid.variant]]\nname = 'deep'\nset.model.n_layers = 3\n")
    ended = call("show", recipe)
    text, _, model = ended.output.partition("\npart ")
    assert tomllib.loads(text)["model"]["layer"]["attention"]["position"]["kind"] == "rope"
    layer = 4 * 16 * 16 + 3 * 16 * 32 + 2 * 16
    said = {line.split("  ")[0] or line.split()[0]: line.split() for line in model.splitlines()}
    assert f"{layer:,}" in said["layer.0 to layer.1, each"]
    assert any(line.split()[:3] == ["attention", "gqa", f"{4 * 16 * 16:,}"] for line in model.splitlines())
    total = f"{257 * 16 + 2 * layer + 16:,}"
    assert said["parameters"][-1] == said["active parameters"][-1] == total
    assert "layer.0 to layer.2, each" in call("show", recipe, "--variant", "deep").output


def test_list_shows_ideas_sources_and_knobs() -> None:
    ended = call("list", "attention")
    kinds = [
        line.split()[0] for line in ended.output.splitlines() if line.startswith("  ") and not line.startswith("   ")
    ]
    assert kinds == sorted(Attention.kinds) and "n_kv_heads: int | none = none" in ended.output
    assert "arXiv:2305.13245" in ended.output and "position: position = rope" in ended.output


def test_list_shows_every_slot() -> None:
    slots = [line for line in call("list").output.splitlines() if line and not line.startswith(" ")]
    assert {"attention", "ffn", "norm", "optimizer", "schedule", "average", "scorer", "source", "tokenizer"} <= set(
        slots
    )


GUEST = '''
"""A guest's attention."""

from __future__ import annotations

import torch
from zoo.core.params import Linear, Use
from zoo.core.slots import Attention, Site
from zoo.core.wires import SEGMENTS, Bus


class Mean(Attention, kind="{kind}"):
    """The mean of everything so far, guest's way.

    Source: a temporary package.
    """

    class Config(Attention.Config):
        gain: float = 1.0

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        self.gain = cfg.gain
        self.out = Linear(site.dim, site.dim, init=Use.OUTPUT)

    def forward(self, x: torch.Tensor, bus: Bus) -> torch.Tensor:
        count = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)[:, None]
        return self.out(self.gain * x.cumsum(1) / count)
'''


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A third-party package with an entry point, installed for one test."""
    site = tmp_path / "site"
    info = site / "zoo_guest-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "zoo_guest.py").write_text(GUEST.format(kind="guest_mean"))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo-guest\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[zoo.parts]\nguest = zoo_guest\n")
    monkeypatch.syspath_prepend(site)
    plugins.discover.cache_clear()
    yield "guest_mean"
    Attention.kinds.pop("guest_mean", None)
    sys.modules.pop("zoo_guest", None)
    plugins.discover.cache_clear()


def test_a_package_with_an_entry_point_is_listed_and_trains(tmp_path: Path, guest: str) -> None:
    listed = call("list", "attention").output
    assert guest in listed and "The mean of everything so far" in listed and "a temporary package" in listed
    ended = call(write(tmp_path, f"[grid]\n'model.layer.attention' = ['gqa', '{guest}']\n"))
    assert ended.exit_code == 0, ended.output
    assert f"model.layer.attention: gqa -> {guest}" in ended.output


def test_a_package_that_does_not_import_is_named(tmp_path: Path, guest: str) -> None:
    (tmp_path / "site" / "zoo_guest.py").write_text("import nothing_of_that_name\n")
    ended = call("list")
    assert ended.exit_code == 2 and "entry point 'zoo_guest'" in ended.stderr and "nothing_of_that_name" in ended.stderr


def test_a_plug_in_file_is_listed_and_trains(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GUEST.format(kind="plugged_mean"))
    recipe = write(tmp_path, "plugins = ['./mine.py']\n[grid]\n'model.layer.attention' = ['gqa', 'plugged_mean']\n")
    try:
        assert "plugged_mean" in call("list", "attention", "--plugin", tmp_path / "mine.py").output
        assert "plugged_mean" in call("list", "--recipe", recipe).output
        ended = call(recipe)
        assert ended.exit_code == 0, ended.output
    finally:
        Attention.kinds.pop("plugged_mean", None)

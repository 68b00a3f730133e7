"""What ``show`` says and draws of a model is what the model is."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import zoo
from ablate import app
from recipes import write
from zoo.core.part import Part
from zoo.core.slots import Site, Trunk
from zoo.cost import cost_of
from zoo.model import Model, ModelConfig
from zoo.recipe import Recipe
from zoo.report.anatomy import anatomy, equal_runs, shown_lines
from zoo.report.diagram import diagram
from zoo.report.topology import skips, wires
from zoo.trials.build import meta_model
from zoo.trials.grid import plan

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def compact() -> Recipe:
    return zoo.load(ROOT / "recipes" / "compact_10L.toml", profile="full")


@pytest.mark.parametrize("name", ["compact_10L", "deepseek_24L"])
def test_parts_add_up_to_the_model(name: str):
    recipe = plan(ROOT / "recipes" / f"{name}.toml", profile="full").recipe
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"vocab_size": 1024})})
    seen = anatomy(recipe)
    top = [line for line in seen.lines if line.depth == 0]
    assert sum(line.parameters for line in top) == seen.cost.parameters
    assert sum(line.active for line in top) == seen.cost.active_parameters
    assert sum(line.flops for line in top) == pytest.approx(seen.cost.flops_per_token)
    assert seen.cost == cost_of(meta_model(recipe))


def test_layers_of_one_config_are_shown_once_and_others_apart(compact: Recipe):
    lines = shown_lines(anatomy(compact))
    heads = [line.split("  ")[0] for line in lines if line.startswith("layer.")]
    assert heads == ["layer.0 to layer.5, each", "layer.6 to layer.9, each"]  # XSA in the last four
    assert any("query (512, 512)" in line and "gqa" in line for line in lines)
    assert any(line.startswith("parameters") and "24,730,705" in line for line in lines)
    assert any(line.split()[:2] == ["0", "bigram_hash"] and "table (4096, 128)" in line for line in lines)


@pytest.mark.parametrize(("items", "runs"), [("aabbba", [(0, 1), (2, 4), (5, 5)]), ("", []), ("x", [(0, 0)])])
def test_runs_of_equal_items(items: str, runs: list[tuple[int, int]]):
    assert equal_runs(items) == runs


def test_skips_and_wires_are_read_off_the_model(compact: Recipe):
    model = meta_model(compact)
    assert skips(model) == [(0, 9), (1, 8), (2, 7), (3, 6)]  # layer 4 feeds layer 5 anyway
    assert {flow.name: (flow.writer, flow.readers) for flow in wires(model)} == {
        "x0": (-1, tuple(range(10))),
        "v0": (0, tuple(range(1, 10))),
    }


def test_the_ways_of_a_trunk_that_nobody_knows_are_found():
    kinds = Part.slots["trunk"].kinds
    before = dict(kinds)
    try:

        class Odd(Trunk, kind="odd"):
            """Every layer gets what the last but one put out, too. Source: this test."""

            def __init__(self, cfg: Trunk.Config, site: Site) -> None:
                super().__init__()

            def forward(self, x: Tensor, steps: list[Callable[[Tensor], Tensor]]) -> Tensor:
                earlier = x
                for step in steps:
                    x, earlier = step(x + 0.5 * earlier), x
                return x

        with torch.device("meta"):
            model = Model(ModelConfig(vocab_size=9, dim=8, n_layers=4, trunk="odd"), seed=None)
        assert skips(model) == [(-1, 1), (0, 2), (1, 3)]
    finally:
        kinds.clear()
        kinds.update(before)


def test_the_picture_names_every_part_and_draws_every_skip(compact: Recipe):
    svg = ET.fromstring(diagram(compact, plan(ROOT / "recipes" / "compact_10L.toml", profile="full")))
    text = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    for words in (
        "layers 0 to 5: 6 alike (pre_norm)",
        "stem: bigram_hash",
        "head: tied",
        "v0",
        "skips: unet",
        " no bigram",
    ):
        assert words in text, words
    paths = [element.get("class") for element in svg.iter("{http://www.w3.org/2000/svg}path")]
    assert paths.count("skip") == 4 and paths.count("wire") == 2 + 10 + 9
    boxes = list(svg.iter("{http://www.w3.org/2000/svg}rect"))
    assert 0 <= min(float(box.get("y")) for box in boxes) < 60, "the model stands at the top, however long the list"
    assert len(boxes) == 1 + 3 + 2 + 2


def test_of_a_search_names_alone_are_listed():
    grid = plan(ROOT / "recipes" / "screen.toml", profile="full")
    svg = ET.fromstring(diagram(grid.recipe, grid))
    text = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert "screen: 75 arms x 1 seed" in text and " and 35 more" in text and not any("= 0." in t[:30] for t in text)


def test_show_draws_into_a_file_and_refuses_what_cannot_be_written(tmp_path: Path):
    recipe = write(tmp_path, '[[grid.variant]]\nname = "<b>&"\nset = { "model.dim" = 32 }\n')
    done = CliRunner().invoke(app, ["show", str(recipe), "--svg", str(tmp_path / "m.svg")])
    assert done.exit_code == 0 and "<b>" not in (tmp_path / "m.svg").read_text()
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["show", str(recipe), "--svg", str(tmp_path / "file" / "m.svg")])
    assert done.exit_code == 2 and "cannot be written" in done.stderr

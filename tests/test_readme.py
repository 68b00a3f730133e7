"""What README.md shows works as it stands there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from typer.testing import CliRunner

import ablate
import zoo
import zoo.testing
from recipes import write
from zoo import plugins
from zoo.core.part import Part
from zoo.core.wires import noise_key

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def own_block() -> str:
    return next(block for block in blocks("python") if "class PastMean" in block)


@pytest.fixture
def past_mean(tmp_path: Path) -> Path:
    """The README's block as a plug-in beside a small recipe; the registry is as before afterwards."""
    file = tmp_path / "past_mean.py"
    file.write_text(own_block(), encoding="utf-8")
    kinds = Part.slots["attention"].kinds
    yield file
    kinds.pop("past_mean", None)
    plugins._loaded.pop(file.resolve(), None)


@pytest.mark.parametrize("promise", [name for name in zoo.testing.PROMISES if name != "compiles"])
def test_the_block_of_ones_own_keeps_every_promise(past_mean: Path, promise: str) -> None:
    plugins.discover()
    plugins.load(past_mean)
    zoo.testing.check("attention.past_mean", promises=[promise])
    assert Part.slots["attention"].kinds["past_mean"].__name__ == "PastMean"


def test_the_block_of_ones_own_fails_where_its_mask_is_dropped(past_mean: Path) -> None:
    plugins.discover()
    past_mean.write_text(own_block().replace(".tril(n_keys - n_tokens)", ""), encoding="utf-8")
    plugins.load(past_mean)
    with pytest.raises(zoo.testing.BrokenPromise, match="causal"):
        zoo.testing.check("attention.past_mean", promises=["causal"])


def own_proof() -> dict[str, Any]:
    """The names of the README's test file, which finds the block as it would beside it."""
    module = types.ModuleType("past_mean")
    module.PastMean = zoo.testing.find("attention.past_mean")
    names: dict[str, Any] = {"__name__": "test_past_mean"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "past_mean", module)
        exec(next(block for block in blocks("python") if "from past_mean import" in block), names)
    return {name: value for name, value in names.items() if name.startswith("test_")}


def test_the_proof_of_ones_own_block_passes_and_fails_as_shown(past_mean: Path) -> None:
    plugins.discover()
    plugins.load(past_mean)
    tests = own_proof()
    few = settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
    tests["test_it_keeps"]("causal")
    few(tests["test_it_keeps_to_the_past_and_costs_what_it_says"])()
    few(tests["test_it_gets_on_with_others"])()


def test_the_failure_that_is_shown_is_the_one_that_comes(past_mean: Path) -> None:
    plugins.discover()
    past_mean.write_text(own_block().replace(".tril(n_keys - n_tokens)", ""), encoding="utf-8")
    plugins.load(past_mean)
    shown = next(block for block in blocks("text") if "BrokenPromise" in block)
    with pytest.raises(zoo.testing.BrokenPromise) as caught:
        own_proof()["test_it_keeps"]("causal")
    assert f"BrokenPromise: {caught.value}" == " ".join(shown.split())


def test_the_table_of_promises_names_them_all() -> None:
    section = README.split("## Proving your own block")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(line.split("|")[1] for line in table))) == sorted(
        zoo.testing.PROMISES
    )


def test_the_block_of_ones_own_trains_as_a_plug_in(past_mean: Path, tmp_path: Path) -> None:
    axis = '\nplugins = ["./past_mean.py"]\n[grid]\n"model.layer.attention" = ["gqa", "past_mean"]\n'
    recipe = write(tmp_path, axis)
    ran = CliRunner().invoke(ablate.app, [str(recipe), "--out", str(tmp_path / "out"), "--workers", "0"])
    assert ran.exit_code == 0, ran.output
    assert len(list((tmp_path / "out").glob("past_mean-*/result.json"))) == 1


def test_the_recipe_it_shows_resolves(tmp_path: Path) -> None:
    shown = next(block for block in blocks("toml") if "model.where" in block)
    file = tmp_path / "mine.toml"
    file.write_text(shown.replace("quickstart.toml", str(ROOT / "recipes" / "quickstart.toml")), encoding="utf-8")
    from zoo.trials.grid import plan

    grid = plan(file)
    assert [arm.recipe.model.layer.ffn.part.kind for arm in grid.arms] == ["swiglu", "relu2", "moe"]
    assert grid.seeds == (0, 1, 2)


def test_the_python_it_shows_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = next(block for block in blocks("python") if "zoo.build(" in block)
    torch.manual_seed(0)
    tokens = torch.randint(0, 1024, (2, 17))
    names = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    exec(compile(shown, "README.md", "exec"), names)
    assert names["out"].nll.shape == (2, 16)
    assert names["model"].training is False
    assert names["recipe"].model.n_layers == 4
    model = zoo.Model(names["config"])
    assert model(tokens, tokens, noise=noise_key(0)).losses.keys() == set()


def test_the_test_command_is_what_continuous_integration_runs() -> None:
    marked = README.split("<!-- test command -->")[1].split("```")[1]
    assert "pytest" in marked
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_recipe_it_names_is_there() -> None:
    for name in re.findall(r"recipes/(\w+)\.toml", README):
        assert name == "NAME" or (ROOT / "recipes" / f"{name}.toml").is_file()


def test_the_contract_takes_the_class_itself(past_mean: Path) -> None:
    plugins.discover()
    plugins.load(past_mean)
    own = Part.slots["attention"].kinds["past_mean"]
    zoo.testing.check(own, promises=["roles"])
    assert own.kind == "past_mean"

"""The recipe of characters against the clock: it plans on the real text, says where that is had, and follows the clock."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from realdata import real
from test_cli import ablate, call

from zoo.trials.grid import plan

RECIPE = Path(ablate.__file__).parent / "recipes" / "shakespeare_char.toml"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def test_it_plans_on_the_real_text(tmp_path: Path) -> None:
    text = real("tinyshakespeare.txt")
    (tmp_path / "data").mkdir()
    shutil.copy(text, tmp_path / "data")
    shutil.copy(RECIPE, tmp_path)
    ended = call(tmp_path / RECIPE.name, "--dry-run")
    assert ended.exit_code == 0, ended.output
    assert "baseline" in ended.output


def test_without_the_text_it_says_which_file_and_where_to_get_it(tmp_path: Path) -> None:
    shutil.copy(RECIPE, tmp_path)
    ended = call(tmp_path / RECIPE.name)
    said = " ".join((ended.output + ended.stderr).split())
    assert ended.exit_code == 2
    assert "data.source.files[0] = 'data/tinyshakespeare.txt': no such file" in said
    assert "it can be had from https://" in said and "tinyshakespeare/input.txt" in said


def test_its_split_and_scorer_are_nanogpts() -> None:
    recipe = plan(RECIPE, device="cpu").recipe
    assert (recipe.data.source.split, recipe.data.source.valid_share, recipe.data.tokenizer.part.kind) == (
        "position",
        0.1,
        "char",
    )
    assert (recipe.evaluate.scorer.part.kind, recipe.model.context, recipe.train.seconds) == ("plain", 256, 90)
    assert recipe.schedule.part.kind == "warmdown" and isinstance(
        recipe.schedule.warmdown, float
    )  # a share: of the clock

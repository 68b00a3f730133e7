"""A finished trial is found by name and answers again as it was scored."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ablate import app
from recipes import write
from zoo.core.part import ConfigError
from zoo.trials.open import open_trial


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("open")
    recipe = write(folder, '[grid]\nseeds = 2\n"model.layer.ffn.hidden_dim" = [32, 40]\n[average]\nkind = "ema"\n')
    done = CliRunner().invoke(app, [str(recipe), "--out", str(folder / "out"), "--workers", "0"])
    assert done.exit_code == 0, done.output
    return folder / "out"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_an_opened_trial_scores_as_it_did(trained: Path):
    trial = open_trial("hidden_dim=40-seed1", trained)
    model, text = trial.model(), trial.text()
    score = trial.recipe.evaluate.scorer.build().score(
        model, text.valid, text.valid_spans, trial.recipe.model.context, trial.recipe.evaluate.batch
    )
    assert score.nats_per_token == trial.result.valid_loss  # the average's weights, which were scored
    assert open_trial(trial.folder).result == trial.result
    assert trial.result.seed == 1 and trial.recipe.model.layer.ffn.hidden_dim == 40


def test_a_trial_that_is_not_there_is_named_with_the_nearest(trained: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no such trial under .*did you mean 'hidden_dim=40-seed1-"):
        open_trial("hidden_dim=41-seed1", trained)
    with pytest.raises(ConfigError, match="2 trials match"):
        open_trial("hidden_dim=40", trained)
    with pytest.raises(ConfigError, match="no such trial; there is none under"):
        open_trial("anything", tmp_path)


def test_a_trial_without_weights_or_with_another_ones_is_refused(trained: Path, tmp_path: Path):

    own, other = (open_trial(f"hidden_dim={n}-seed0", trained).folder for n in (32, 40))
    copy = tmp_path / own.name
    shutil.copytree(own, copy)
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(ConfigError, match="no weights to load"):
        open_trial(copy).model()
    shutil.copytree(other / "checkpoints", copy / "checkpoints")
    with pytest.raises(ConfigError, match=r"not this recipe's weights: size mismatch for [^\n]*$"):
        open_trial(copy).model()
    (copy / "result.json").write_text("{")
    with pytest.raises(ConfigError, match="not a trial that can be read"):
        open_trial(copy)

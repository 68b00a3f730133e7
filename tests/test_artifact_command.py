"""Artifacts of finished trials: the command, the column of a grid, the record, and what goes wrong."""

from __future__ import annotations

import json
import shutil
import statistics
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import Result as Ended
from typer.testing import CliRunner

from ablate import app
from recipes import write
from zoo.artifact import inputs_for, read_artifact, weights_of
from zoo.codecs import inputs
from zoo.codecs.slots import Codec
from zoo.core.part import ConfigError
from zoo.core.tables import tabulate
from zoo.judge import score
from zoo.trials.artifacts import artifact_of, code_bytes, codec_named, same_arm
from zoo.trials.open import Finished, open_trial

MORE = """
[grid]
seeds = 2
"codec.prune" = [0.0, 0.5]

[codec]
kind = "mixed"
small = 100
prune_above = 100
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def call(*words: object) -> Ended:
    ended = CliRunner().invoke(app, [str(word) for word in words])
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    done = call(write(folder, MORE), "--out", folder / "out", "--workers", "1", "--set", "train.steps=20")
    assert done.exit_code == 0, done.output
    return folder / "out"


def bits(trial: Finished, model: torch.nn.Module) -> float:
    return score(model, trial.recipe, trial.text(), None).bits_per_byte


def test_a_codec_in_the_recipe_makes_columns(trained: Path) -> None:
    table = (trained / "table.md").read_text()
    assert "| artifact |" in table and "artifact mixed bits/byte" in table
    trials = [open_trial(f"prune={share}-seed0", trained) for share in ("0", "0.5")]
    plain, pruned = (trial.result for trial in trials)
    assert plain.bits_per_byte == pruned.bits_per_byte  # the codec sees the weights when they are trained
    assert pruned.artifact_bytes < plain.artifact_bytes
    coded = [trial.result.scores["artifact mixed"].bits_per_byte for trial in trials]
    assert coded[0] != coded[1] and coded[0] != plain.bits_per_byte


def test_the_command_writes_what_a_reader_gets_the_same_score_from(trained: Path) -> None:
    trial = open_trial("prune=0.5-seed1", trained)
    ended = call("artifact", trial.folder)
    assert ended.exit_code == 0, ended.output
    path = trial.folder / "artifact.safetensors"
    artifact = read_artifact(path)
    before, after = bits(trial, trial.model()), bits(trial, artifact.model)
    assert before == trial.result.bits_per_byte
    assert after == trial.result.scores["artifact mixed"].bits_per_byte
    assert f"{before:.4f} -> {after:.4f} bits per byte" in ended.output
    size, code = path.stat().st_size, code_bytes(trial.recipe, trial.recipe.codec)
    for said in (f"{size:,}", f"{code:,}", f"{size + code:,}", "layer.*.attention", "int5"):
        assert said in ended.output, said
    assert size == pytest.approx(trial.result.artifact_bytes, abs=40)  # the recipe's folder is spelt from elsewhere
    assert not torch.equal(artifact.model.embedding.weight, trial.model().embedding.weight)


def test_a_record_has_what_a_submission_says(trained: Path, tmp_path: Path) -> None:
    ended = call("artifact", "prune=0-seed1", "--out", trained, "--to", tmp_path, "--record", "--codec", "int8")
    assert ended.exit_code == 0, ended.output
    told = json.loads((tmp_path / "record.json").read_text())
    trials = [open_trial(f"prune=0-seed{seed}", trained) for seed in (0, 1)]
    assert told["seeds"] == [0, 1] and told["address"] == [t.result.address for t in trials]
    scores = [bits(t, read_artifact(tmp_path / t.folder.name / "artifact.safetensors").model) for t in trials]
    assert told["val_bpb"] == pytest.approx(statistics.mean(scores), rel=1e-12)
    assert told["val_bpb_std"] == pytest.approx(statistics.stdev(scores), rel=1e-9)
    assert [told["seed_results"][str(s)]["val_bpb"] for s in (0, 1)] == scores
    sizes = [(tmp_path / t.folder.name / "artifact.safetensors").stat().st_size for t in trials]
    assert told["bytes_model"] == max(sizes) and told["bytes_total"] == told["bytes_model"] + told["bytes_code"]
    assert told["codec"].startswith("int8") and told["val_loss"] > 0 and not told["as_published"]
    assert "± " in ended.output and [t.folder for t in same_arm(trials[1])] == [t.folder for t in trials]


def test_gptq_asks_for_the_inputs_of_every_matrix(trained: Path) -> None:
    trial = open_trial("prune=0-seed0", trained)
    model, text = trial.model(), trial.text()
    codec = codec_named('{kind = "int5", small = 100, rounding = {kind = "gptq", rows = 5}}')
    found = inputs_for(codec, trial.recipe, text, model)
    matrices = {w.name for w in weights_of(model) if w.role == "matrix"}
    assert matrices <= found.keys() and inputs_for(Codec.parse("int5"), trial.recipe, text, model) is None
    taken = []
    name = "layer.1.ffn.down.weight"
    module = model.get_submodule(name.removesuffix(".weight"))
    handle = module.register_forward_pre_hook(lambda _, args: taken.append(args[0].reshape(-1, 32).double()))
    again = inputs.hessians(model, text.train, trial.recipe.model.context, 5)[name]
    handle.remove()
    x = torch.cat(taken)
    assert x.shape == (5 * 16, 32)
    torch.testing.assert_close(again, x.T @ x / len(x), rtol=1e-12, atol=0)
    assert torch.equal(again, found[name])
    ended = call(
        "artifact", trial.folder, "--codec", "{kind='int5', small=100, rounding='gptq'}", "--to", trained / "gptq"
    )
    assert ended.exit_code == 0 and read_artifact(trained / "gptq" / "artifact.safetensors")


def test_what_cannot_be_is_said_and_ends_in_exit_code_2(trained: Path, tmp_path: Path) -> None:
    trial = open_trial("prune=0-seed0", trained)
    bare = tmp_path / trial.folder.name
    shutil.copytree(trial.folder, bare)
    shutil.rmtree(bare / "checkpoints")
    for words, said in (
        (("artifact", trial.folder, "--codec", "int9"), "no codec is called 'int9', did you mean"),
        (("artifact", trial.folder, "--codec", "{kind='mixed', prun=1}"), "did you mean 'prune'?"),
        (("artifact", "nothing-seed0", "--out", trained), "no such trial under"),
        (("artifact", bare), "no weights to load"),
        (("artifact", trial.folder, "--to", trial.folder / "result.json"), "cannot be written"),
    ):
        ended = call(*words)
        assert ended.exit_code == 2 and said in " ".join(ended.stderr.split()), ended.output
    assert not list(tmp_path.rglob("artifact.safetensors*"))


def test_an_artifact_of_another_trial_is_refused(trained: Path, tmp_path: Path) -> None:
    call("artifact", "prune=0-seed0", "--out", trained, "--to", tmp_path)
    path = tmp_path / "artifact.safetensors"
    own, other = (open_trial(f"prune={share}-seed0", trained) for share in ("0", "0.5"))
    assert artifact_of(path, own.recipe).recipe.codec == own.recipe.codec
    with pytest.raises(ConfigError, match=r"of another recipe: codec\.prune is 0 in it and 0\.5 in the trial's"):
        artifact_of(path, other.recipe)


def test_a_recipe_without_a_codec_is_written_as_before(tmp_path: Path) -> None:
    """The address of a trial is the hash of this table: a codec that nobody names must not be in it."""
    import zoo

    recipe = zoo.load(write(tmp_path))
    assert recipe.codec is None and "codec" not in tabulate(recipe) and "codec" not in tomllib.loads(zoo.dumps(recipe))
    assert zoo.load(write(tmp_path), sets=["codec=none"]) == recipe
    named = zoo.load(write(tmp_path), sets=["codec=int8", "codec.coding=zstd"])
    assert named.codec.coding.part.kind == "zstd" and zoo.loads(zoo.dumps(named)) == named
    with pytest.raises(ConfigError, match=r"codec\.rounding.*no rounding is called 'gptk', did you mean 'gptq'"):
        zoo.load(write(tmp_path), sets=["codec=int8", "codec.rounding=gptk"])

"""A run that was interrupted ends in the bits of one that was not, whatever is in its state and wherever it stopped."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recipes import write
from zoo.checkpoint import Unwritable, latest
from zoo.core.part import ConfigError
from zoo.loop import Loop
from zoo.result import Progress, Result, Signals
from zoo.train import train
from zoo.trials.grid import Grid, plan
from zoo.trials.run import text_of, with_vocabulary

TIMES = {"seconds", "tokens_per_second", "peak_memory", "elapsed", "memory"}

# Every kind of state: two optimizers, an average, balance biases that the blocks move themselves, noise, accumulation.
RICH = """
average = { kind = "ema", decay = 0.9 }
schedule = { kind = "linear", warmup = 2 }
[model.layer]
ffn = { kind = "moe", n_experts = 4, hidden_dim = 16, jitter = 0.1, balance = "loss_free" }
[optim]
matrix = { kind = "muon", lr = 3e-3, momentum_warmup_from = 0.5, momentum_warmup_steps = 9 }
control = { kind = "adamw", lr = 3e-3 }
[train]
steps = 11
batch = 2
accumulate = 2
log_every = 3
evaluate_every = 4
checkpoint_every = 2
"""
PLAIN = ["train.checkpoint_every=2", "train.steps=11", "train.log_every=3"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def sets(text: str) -> list[str]:
    """The lines of a TOML text as changes on the command line."""
    found, table = [], ""
    for line in filter(None, text.splitlines()):
        if line.startswith("["):
            table = line.strip("[]") + "."
        else:
            path, _, value = line.partition(" = ")
            found.append(f"{table}{path}={value}")
    return found


class Stopped(Exception):
    """What stands for a kill."""


def go(grid: Grid, folder: Path, stop: Callable[[Loop], bool] = lambda loop: False, **more: Callable) -> Result:
    """Train the grid's recipe in ``folder``; stopped after the first step for which ``stop`` says so."""
    folder.mkdir(exist_ok=True)
    text = text_of(grid.recipe, grid.folder)
    recipe = with_vocabulary(grid.recipe, text.tokenizer.vocab_size)
    update = Loop._update

    def stopping(loop: Loop) -> None:
        update(loop)
        if stop(loop):
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_update", stopping)
        return train(recipe, text, folder, lambda progress: None, Signals(**more))


def timeless(folder: Path, result: Result) -> tuple[dict, list[dict], dict[str, torch.Tensor]]:
    """All of a trial that must not depend on interruptions: result, log, scored weights."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    scored = latest(folder / "checkpoints").checkpoint.tensors
    told = {name: value for name, value in result.model_dump().items() if name not in TIMES}
    return told, [{k: v for k, v in line.items() if k not in TIMES} for line in log], scored


@pytest.mark.parametrize(
    "knobs", [sets(RICH), [*PLAIN, 'average={kind="swa", every=2, below=2.0}']], ids=["rich", "swa"]
)
def test_a_run_stopped_after_any_step_ends_in_the_same_bits(tmp_path: Path, knobs: list[str]) -> None:
    grid = plan(write(tmp_path), device="cpu", sets=knobs)
    told, log, weights = timeless(tmp_path / "whole", go(grid, tmp_path / "whole"))
    assert [line["step"] for line in log] == sorted({line["step"] for line in log})
    for at in (1, 2, 3, 6, 11):
        folder = tmp_path / str(at)
        for stop in (at, min(11, at + 3)):  # twice each
            with pytest.raises(Stopped):
                go(grid, folder, lambda loop, stop=stop: loop.step == stop)
        own_told, own_log, own_weights = timeless(folder, go(grid, folder))
        assert own_told == told and own_log == log
        assert own_weights.keys() == weights.keys()
        assert all(torch.equal(weights[name], own_weights[name]) for name in weights)


def test_a_run_goes_on_from_its_newest_whole_checkpoint_and_names_a_damaged_one(tmp_path: Path) -> None:
    grid, folder, said = plan(write(tmp_path), device="cpu", sets=PLAIN), tmp_path / "trial", []
    whole = timeless(tmp_path / "whole", go(grid, tmp_path / "whole"))
    with pytest.raises(Stopped):
        go(grid, folder, lambda loop: loop.step == 9)
    kept = sorted(path.name for path in (folder / "resume").iterdir())
    assert kept == ["step_00000006.safetensors", "step_00000008.safetensors"]
    newest = folder / "resume" / kept[1]
    damaged = bytearray(newest.read_bytes())
    damaged[-5] ^= 1
    newest.write_bytes(damaged)
    own = timeless(folder, go(grid, folder, say=said.append))
    assert own[:2] == whole[:2] and all(torch.equal(t, own[2][name]) for name, t in whole[2].items())
    assert "step_00000008.safetensors: its contents do not match its sha256" in said[0]
    assert said[1:] == ["goes on from step 6"]


def test_a_log_that_lost_lines_is_not_gone_on_with(tmp_path: Path) -> None:
    grid, folder, said = plan(write(tmp_path), device="cpu", sets=PLAIN), tmp_path / "trial", []
    with pytest.raises(Stopped):
        go(grid, folder, lambda loop: loop.step == 9)
    (folder / "log.jsonl").write_text("")
    go(grid, folder, say=said.append)
    assert len(said) == 1 and "log beside it is shorter" in said[0]
    assert [json.loads(line)["step"] for line in (folder / "log.jsonl").open()] == [1, 3, 6, 9, 11]


def test_a_checkpoint_is_written_every_so_many_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("zoo.resume.time.monotonic", lambda: now[0])
    grid, kept = plan(write(tmp_path), device="cpu", sets=["train.checkpoint_minutes=1.5", "train.steps=9"]), {}

    def watched(loop: Loop) -> bool:
        now[0] += 40.0
        kept[loop.step] = sorted(int(p.stem[5:]) for p in (tmp_path / "trial" / "resume").glob("*.safetensors"))
        return False

    go(grid, tmp_path / "trial", watched)
    assert (kept[3], kept[4], kept[7], kept[9]) == ([], [3], [3, 6], [3, 6])


def test_a_checkpoint_of_another_trial_is_refused(tmp_path: Path) -> None:
    path, folder = write(tmp_path), tmp_path / "trial"
    with pytest.raises(Stopped):
        go(plan(path, device="cpu", sets=PLAIN), folder, lambda loop: loop.step == 5)
    with pytest.raises(ConfigError, match=r"step_00000004\.safetensors: not a checkpoint of this trial; delete it"):
        go(plan(path, device="cpu", sets=[*PLAIN, "model.dim=32"]), folder)


def test_a_full_disk_is_named_and_what_was_kept_stays(tmp_path: Path) -> None:
    grid, folder = plan(write(tmp_path), device="cpu", sets=PLAIN), tmp_path / "trial"
    whole = timeless(tmp_path / "whole", go(grid, tmp_path / "whole"))
    with pytest.raises(Stopped):
        go(grid, folder, lambda loop: loop.step == 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the system refuses to write more into any file
    try:
        with pytest.raises(Unwritable, match=r"resume: cannot be written: .*[Ff]ile too large"):
            go(grid, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert latest(folder / "resume").checkpoint.step == 4
    own = timeless(folder, go(grid, folder))
    assert own[:2] == whole[:2]


def test_a_sign_of_life_is_given_for_every_batch(tmp_path: Path) -> None:
    signs: list[int] = []
    grid = plan(write(tmp_path), device="cpu", sets=["train.accumulate=3", "train.steps=4"])
    result = go(grid, tmp_path / "trial", alive=lambda: signs.append(1))
    rows = -(-result.valid_tokens // 16)
    assert len(signs) >= 4 * 3 + rows // 16


def test_a_watcher_hears_each_logged_step_once(tmp_path: Path) -> None:
    heard: list[Progress] = []
    grid = plan(write(tmp_path), device="cpu", sets=PLAIN)
    text = text_of(grid.recipe, grid.folder)
    train(with_vocabulary(grid.recipe, text.tokenizer.vocab_size), text, tmp_path, heard.append)
    assert [p.step for p in heard if p.scoring is None] == [1, 3, 6, 9, 11]

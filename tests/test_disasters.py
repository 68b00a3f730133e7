"""Whatever befalls a trial costs that trial: the others finish, and the table says of each what became of it."""

from __future__ import annotations

import csv
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from kills import alive, command, environment, workers_of
from typer.testing import CliRunner

from ablate import app
from recipes import SMALL, write
from zoo.trials.lock import LOCKS

PLUGIN = '''
"""Stems that end badly while they train."""

import os
import resource
import signal
import time

import torch

from zoo.core.slots import Stem


class Bad(Stem, kind="bad"):
    """Does what ``how`` says at the first training step. Source: none."""

    class Config(Stem.Config):
        how: str = "nothing"

    def __init__(self, cfg, site):
        super().__init__()
        self.how = cfg.how

    def forward(self, x, bus):
        if self.training and torch.is_grad_enabled() and not x.is_meta:
            getattr(self, self.how)()
        return x

    def nothing(self):
        pass

    def raises(self):
        raise ArithmeticError("as it was told to")

    def exits(self):
        os._exit(7)

    def killed(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def hangs(self):
        time.sleep(600)

    def hungry(self):
        torch.empty(2**50)
'''

EIGHT = """
plugins = ["bad.py"]
[grid]
"model.stem" = [[{ kind = "bad" }]]
""" + "".join(
    f'[[grid.variant]]\nname = "{how}"\nset = {{ "model.stem" = [{{ kind = "bad", how = "{how}" }}] }}\n'
    for how in ("raises", "exits", "killed", "hangs", "hungry")
)
MORE = """[[grid.variant]]
name = "diverges"
set = { "optim.matrix.lr" = 1e30 }
[[grid.variant]]
name = "other"
set = { "train.steps" = 5 }
"""
REASONS = {
    "raises": "failed: ArithmeticError: as it was told to",
    "exits": "failed: its process ended with exit code 7",
    "killed": "failed: its process was ended by SIGKILL: the system may have run out of memory",
    "hangs": "failed: hung: not a single batch in 15 s (--silence-limit)",
    "hungry": "failed: RuntimeError: [enforce fail",
    "diverges": "diverged: diverged at step ",
}


def test_each_disaster_costs_one_trial(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(PLUGIN)
    recipe = write(tmp_path, EIGHT + MORE)
    ran = subprocess.run(
        command(recipe, tmp_path / "out", "--workers", "2", "--no-guards", "--silence-limit", "15"),
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 1, ran.stderr
    rows = {row["variant"]: row["status"] for row in csv.DictReader((tmp_path / "out" / "table.csv").open())}
    baseline, *others = rows
    assert set(others) == {*REASONS, "other"}
    assert rows[baseline] == rows["other"] == "done"
    for variant, reason in REASONS.items():
        assert rows[variant].startswith(reason), rows[variant]
    assert "out of memory: micro-batches of 1 instead of 4 rows" in ran.stdout  # it tried


@pytest.mark.skipif(
    not LOCKS or not Path("/proc").is_dir(), reason="finds processes through /proc, which only Linux has"
)
def test_ctrl_c_keeps_what_was_trained_and_a_dead_parent_leaves_no_orphans(tmp_path: Path) -> None:
    recipe = write(tmp_path, start=SMALL.replace("steps = 6", "steps = 1000000"))
    said = [None, None]
    for i, end in enumerate((signal.SIGINT, signal.SIGKILL)):
        ran = subprocess.Popen(
            command(recipe, tmp_path / "out", "--no-guards"),
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        wait_for_steps(tmp_path / "out", ran)
        workers = workers_of(ran.pid)
        assert len(workers) == 1
        (os.killpg if end == signal.SIGINT else os.kill)(ran.pid, end)  # a terminal interrupts the whole group
        said[i] = ran.communicate(timeout=60)
        assert ran.returncode == (130 if end == signal.SIGINT else -signal.SIGKILL)
        until = time.monotonic() + 30
        while any(map(alive, workers)):
            assert time.monotonic() < until, "the worker outlives its parent"
            time.sleep(0.1)
        assert list((tmp_path / "out").glob(".*/resume/step_*.safetensors"))  # no rule asked for one: stopping did
    assert "give the same command again to go on" in said[0][1] and "Traceback" not in said[0][1]
    assert "goes on from step" in said[1][0]


def wait_for_steps(out: Path, ran: subprocess.Popen[str]) -> None:
    """Until the trial has logged a step that it had not logged before."""
    before = {path: path.stat().st_size for path in out.glob(".*/log.jsonl")}
    until = time.monotonic() + 120
    while not any(path.stat().st_size > before.get(path, 0) for path in out.glob(".*/log.jsonl")):
        assert ran.poll() is None and time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="/proc takes no folders, not even from root; only Linux has it"
)
def test_a_place_that_takes_nothing_is_named_and_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    ended = CliRunner().invoke(app, [str(write(tmp_path)), "--out", "/proc/results", "--workers", "0", "--no-guards"])
    assert ended.exit_code == 2
    assert "error: /proc/results: cannot be written: " in ended.output and "Traceback" not in ended.output


def test_a_disk_that_fills_up_ends_in_one_message_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    start = SMALL.replace("steps = 6", "steps = 6\ncheckpoint_every = 2")
    recipe = write(tmp_path, '[grid]\n"model.layer.ffn" = ["swiglu", "relu2"]\n', start=start)
    words = [str(recipe), "--out", str(tmp_path / "out"), "--workers", "0", "--no-guards"]
    assert CliRunner().invoke(app, [*words, "--only", "swiglu"]).exit_code == 0
    (whole,) = (tmp_path / "out").glob("swiglu-*/result.json")
    before, (soft, hard) = whole.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # no file may grow beyond that, as if the disk were full
    try:
        full = CliRunner().invoke(app, words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full.exit_code == 2 and "cannot be written: " in full.output and "Traceback" not in full.output
    assert whole.read_bytes() == before
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "out").glob("[!.]*/result.json"))) == 2

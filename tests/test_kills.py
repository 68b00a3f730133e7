"""Kill -9 of workers, of the parent and of both at random moments: after resuming, everything is as if nothing had been."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from kills import environment, finished, with_kills
from typer.testing import CliRunner

from ablate import app
from recipes import SMALL, write

pytestmark = pytest.mark.skipif(
    not Path("/proc").is_dir(), reason="finds processes through /proc, which only Linux has"
)

# Twelve trials with state of every kind; a checkpoint every few steps, so that most kills find one.
TWELVE = """
average = { kind = "ema", decay = 0.9 }
[grid]
"model.layer.ffn" = ["swiglu", { kind = "moe", n_experts = 4, hidden_dim = 16, jitter = 0.1, balance = "loss_free" }]
"optim.matrix" = [{ kind = "muon", lr = 3e-3 }, { kind = "adamw", lr = 3e-3 }]
seeds = 3
"""
START = SMALL.replace("[optim]\n", '[optim]\ncontrol = { kind = "adamw", lr = 3e-3 }\n')


def survives(folder: Path, steps: int, whom: list[str], longest: float, draw: random.Random) -> None:
    """Kill all that are to be killed, in as many runs of the grid as that takes; each must end like the undisturbed one."""
    killed: list[str] = []
    start = START.replace("steps = 6\n", f"steps = {steps}\ncheckpoint_every = 5\n")
    recipe = write(folder, TWELVE, start=start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", environment(folder)["ZOO_CACHE"])
        ran = CliRunner().invoke(app, [str(recipe), "--out", str(folder / "whole"), "--workers", "0", "--no-guards"])
    assert ran.exit_code == 0, ran.output
    whole = finished(folder / "whole")
    assert sum(name.endswith("result.json") for name in whole) == 12
    while len(killed) < len(whom):
        out = folder / f"after-{len(killed)}"
        killed += with_kills(recipe, out, whom[len(killed) :], draw, longest)
        assert finished(out) == whole, f"after {killed}"
        assert not [*out.glob(".*"), *out.glob("*/resume")], "something half done is left"


def test_three_kills_leave_no_trace(tmp_path: Path) -> None:
    survives(tmp_path, 12, ["worker", "parent", "all"], longest=0.8, draw=random.Random(1))


@pytest.mark.slow
def test_fifty_kills_leave_no_trace(tmp_path: Path) -> None:
    began = time.monotonic()
    draw = random.Random(int(os.environ.get("ZOO_KILLS_SEED", "0")))
    whom = draw.choices(("worker", "parent", "all"), k=50)
    survives(tmp_path, 150, whom, longest=2.0, draw=draw)
    print(f"{len(whom)} kills {Counter(whom)} in {time.monotonic() - began:.0f} s")

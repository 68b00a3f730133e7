"""Trials side by side: the same bits as one after the other, and a death that costs one trial."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from recipes import write

ROOT = Path(__file__).parents[1]
GRID = '\n[grid]\n"model.dim" = [16, 32, 48]\n'


def command(recipe: Path, out: Path, workers: int) -> list[str]:
    return [sys.executable, str(ROOT / "ablate.py"), str(recipe), "--out", str(out), "--workers", str(workers)]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "ZOO_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}


def results(out: Path) -> dict[str, dict[str, object]]:
    timed = ("seconds", "tokens_per_second", "peak_memory", "wall")
    found = {}
    for file in out.glob("*/result.json"):
        table = json.loads(file.read_text())
        found[table["variant"]] = {name: value for name, value in table.items() if name not in timed}
    return found


def test_two_at_once_give_the_same_bits_as_one_after_the_other(tmp_path: Path) -> None:
    recipe = write(tmp_path, GRID)
    for workers in (1, 2):
        ran = subprocess.run(
            command(recipe, tmp_path / str(workers), workers), env=environment(tmp_path), capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
    one, two = results(tmp_path / "1"), results(tmp_path / "2")
    assert len(one) == 3
    assert one == two


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds a worker process through /proc, which only Linux has")
def test_a_killed_worker_costs_its_trial_and_the_grid_goes_on(tmp_path: Path) -> None:
    recipe = write(tmp_path, '\n[[grid.variant]]\nname = "long"\nset = { "train.steps" = 100000 }\n' + variants())
    process = subprocess.Popen(
        command(recipe, tmp_path / "out", 2), env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    os.kill(worker_of(tmp_path / "out", process), signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    found = results(tmp_path / "out")
    assert process.returncode == 1
    assert found["long"]["status"] == "failed"
    assert "SIGKILL" in str(found["long"]["reason"])
    assert {found[name]["status"] for name in ("a", "b", "c")} == {"done"}
    assert "SIGKILL" in said


def variants() -> str:
    return "".join(
        f'\n[[grid.variant]]\nname = "{n}"\nset = {{ "train.steps" = {i} }}\n' for i, n in enumerate("abc", 1)
    )


def worker_of(out: Path, parent: subprocess.Popen[str]) -> int:
    """The process that trains "long", once it has logged a step: the one that has its log open."""
    for _ in range(600):
        for handle in Path("/proc").glob("[0-9]*/fd/*"):
            with suppress(OSError):
                target = Path(os.readlink(handle))
                if (
                    target.name == "log.jsonl"
                    and target.parent.name.startswith(".long-")
                    and target.is_relative_to(out)
                ) and target.read_text():
                    return int(handle.parts[2])
        assert parent.poll() is None, "the grid ended before the long trial began"
        time.sleep(0.1)
    raise AssertionError("the long trial never began")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the switch is glibc's")
def test_freed_memory_is_kept() -> None:
    """Blocks as large as a step's logits, freed and asked for again, fault their pages in once, not every time."""
    code = (
        "import resource, sys, torch; from zoo import machine\n"
        "if sys.argv[1] == 'keep': assert machine.keep_freed_memory()\n"
        "for _ in range(30): torch.ones(12_000_000)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)"
    )
    keep, default = (
        int(
            subprocess.run(
                [sys.executable, "-c", code, how], capture_output=True, text=True, cwd=ROOT, check=True
            ).stdout
        )
        for how in ("keep", "default")
    )
    assert keep < default / 2

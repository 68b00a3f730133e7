"""Grids whose processes are killed at random moments, and the comparison with a grid that was left alone."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.checkpoint import read

ROOT = Path(__file__).parents[1]
TIMES = {"seconds", "tokens_per_second", "peak_memory", "wall", "elapsed", "memory"}


def command(recipe: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "ablate.py"), str(recipe), "--out", str(out), *more]


def environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "undrawn")))
    cache = {"ZOO_CACHE": str(folder / "cache"), "PYTHONPATH": path}
    return {**os.environ, **cache, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def finished(out: Path) -> dict[str, Any]:
    """What trials and their table come to, by file, without what is a time: no interruption may change it.

    Pictures and pages are drawn from these.
    """
    found: dict[str, Any] = {}
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        name = file.relative_to(out).as_posix()
        if file.name == "result.json":
            found[name] = timeless(json.loads(file.read_text()))
        elif file.name == "log.jsonl":
            found[name] = [timeless(json.loads(line)) for line in file.read_text().splitlines()]
        elif file.name == "table.csv":
            found[name] = [timeless(row) for row in csv.DictReader(file.open())]
        elif file.suffix == ".safetensors":
            found[name] = {name: t.numpy().tobytes() for name, t in read(file).tensors.items()}
        elif file.name == "recipe.toml":
            found[name] = file.read_text()
    return found


def timeless(table: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name not in TIMES}


def workers_of(parent: int) -> list[int]:
    """The processes that train for ``parent``: children of its fork server."""
    return [worker for server in children(parent) if b"forkserver" in server[1] for worker, _ in children(server[0])]


def children(parent: int) -> list[tuple[int, bytes]]:
    """The processes that ``parent`` has started, with their command lines."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append((int(stat.parent.name), (stat.parent / "cmdline").read_bytes()))
        except OSError:
            continue
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def with_kills(recipe: Path, out: Path, whom: list[str], draw: random.Random, longest: float) -> Iterator[str]:
    """Run a grid to its end and kill processes meanwhile; yields whom it has killed.

    Args:
        recipe: the grid.
        out: its results.
        whom: one after the other "worker", "parent" or "all"; the grid may come to its end before all have had their turn.
        draw: decides which worker and when.
        longest: seconds from the start of training, or from the last kill, to the next one.
    """
    left = list(whom)
    for _ in range(len(whom) + 3):
        ran = subprocess.Popen(
            command(recipe, out, "--workers", "2", "--no-guards"),
            env=environment(recipe.parent),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = ran.stdout.readline()
        while said and not said.startswith("["):  # until the first trial begins
            said = ran.stdout.readline()
        while left and ran.poll() is None:
            time.sleep(draw.uniform(0.0, longest))
            workers = workers_of(ran.pid)
            if ran.poll() is not None or not workers:
                break
            turn = left.pop(0)
            doomed = {"worker": [draw.choice(workers)], "parent": [ran.pid], "all": [*workers, ran.pid]}[turn]
            for pid in doomed:
                os.kill(pid, signal.SIGKILL)
            yield turn
            if turn != "worker":
                ran.wait(60)
                until = time.monotonic() + 60
                while any(map(alive, workers)):
                    assert time.monotonic() < until, "workers outlive their parent"
                    time.sleep(0.05)
        ran.stdout.read()
        if ran.wait(600) == 0:
            return
    raise AssertionError("the grid does not come to its end")

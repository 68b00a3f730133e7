"""Workers as processes: what they are copies of, what they know of their parent, and what they owe to the C library.

Crews whose workers come to harm: test_disasters.py and test_kills.py.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from kills import children
from rich.console import Console

from recipes import write
from zoo.report.live import view_for
from zoo.trials import processes
from zoo.trials.grid import plan
from zoo.trials.places import Limits, Place
from zoo.trials.run import make_ready, run
from zoo.trials.store import Store
from zoo.trials.workers import Crew

ROOT = Path(__file__).parents[1]


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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere each worker is started afresh")
def test_workers_are_copies_of_one_process_that_imports_and_do_as_their_parent_does_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes.warm_up()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "later"))  # after the process that workers are copies of has begun
    grid = plan(write(tmp_path), seeds=3)
    finished = []
    with Crew(grid.folder, [Place()] * 2, Limits()) as crew, view_for(Console(), manner="quiet") as view:
        crew.at_last = lambda: finished.append(len(list((tmp_path / "out").glob("[!.]*/result.json"))))
        crew.start()
        servers = [pid for pid, line in children(os.getpid()) if b"forkserver" in line]
        copies = {pid for server in servers for pid, _ in children(server)}
        assert {worker.process.pid for worker in crew.workers} <= copies
        ready = make_ready(grid, grid.arms, view)
        outcomes = list(run(ready, Store(tmp_path / "out"), grid.folder, view, crew=crew))
    assert [outcome.result.status for outcome in outcomes] == ["done"] * 3
    assert len(finished) == 1 and 1 <= finished[0] < 3  # told once, when the last of three was given out
    assert list((tmp_path / "later").glob("guards-*"))  # which workers write, the parent never
    assert not any(worker in {pid for s in servers for pid, _ in children(s)} for worker in copies)

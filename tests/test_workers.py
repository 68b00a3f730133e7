"""What a worker's process owes to the C library. Crews of workers: test_disasters.py and test_kills.py."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

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

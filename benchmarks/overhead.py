"""What a grid costs beside its trials' own work: total time against the sum of the trials' times over the workers.

    python -m benchmarks.overhead                      # 24 trials on as many workers as there are cores
    python -m benchmarks.overhead --steps 20 60 200 --workers 2

A trial's own time is what it needs wherever it runs: probes, training, scoring (``wall`` in its result; ``seconds`` there is
training alone). All else is the grid's: starting processes, preparing text, storing, waiting for the last trial, the report.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.harness import Figure, Settings

LENGTHS = (20, 60, 150)  # steps of a trial
ROOT = Path(__file__).parents[1]
RECIPE = """
extends = "{root}/recipes/quickstart.toml"
[train]
steps = {steps}
[machine]
threads = 1
[grid]
"model.layer.attention" = ["gqa", "mla", "latent_tokens"]
"model.layer.ffn" = ["swiglu", "relu2"]
seeds = 4
"""


def measure(steps: int = 60, workers: int | None = None) -> dict[str, float]:
    """Run a grid of 24 trials in a fresh folder, its text in the cache.

    Args:
        steps: of each trial.
        workers: trials at once; None: one per core.

    Returns:
        ``trials``, ``workers``, ``total`` (seconds), ``trial`` (mean own seconds), ``own`` (their sum over the workers),
        ``trained`` (likewise, training alone) and ``ratio``, total over own.
    """
    workers = workers or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "overhead.toml"
        recipe.write_text(RECIPE.format(root=ROOT.as_posix(), steps=steps), encoding="utf-8")
        began = time.perf_counter()
        command = [sys.executable, str(ROOT / "ablate.py"), str(recipe), "--out", str(folder / "out")]
        ran = subprocess.run(
            [*command, "--workers", str(workers)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        total = time.perf_counter() - began
        if ran.returncode:
            sys.exit(ran.stdout + ran.stderr)
        results = [json.loads(path.read_text()) for path in (folder / "out").glob("*/result.json")]
    own, trained = (sum(result[what] for result in results) / workers for what in ("wall", "seconds"))
    return {
        "trials": len(results),
        "workers": workers,
        "total": total,
        "trial": own * workers / len(results),
        "own": own,
        "trained": trained,
        "ratio": total / own,
    }


def figures(settings: Settings) -> list[Figure]:
    """The rows of the report: trials of three lengths."""
    from benchmarks.harness import Figure, Wanted

    rows = []
    for steps in (5,) if settings.quick else LENGTHS:
        found = measure(steps)
        work = f"{found['trials']} trials of {found['trial']:.1f} s on {found['workers']} workers"
        own = f"{found['own']:.1f} s of their own a worker"
        rows.append(Figure(work, f"{found['total']:.1f} s", own, found["ratio"], Wanted("at most", 1.1)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[60])
    parser.add_argument("--workers", type=int)
    words = parser.parse_args()
    for steps in words.steps:
        found = measure(steps, words.workers)
        print(f"{found['trials']} trials of {found['trial']:.1f} s, {steps} steps each, {found['workers']} workers")
        print(f"  total {found['total']:.1f} s, {found['ratio']:.3f} of the trials' own {found['own']:.1f} s / worker")
        print(
            f"  of that training alone {found['trained']:.1f} s: total is {found['total'] / found['trained']:.3f} of it"
        )


if __name__ == "__main__":
    main()

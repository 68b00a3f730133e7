"""What a grid costs beside its trials' own work: total time against the sum of the trials' times over the workers.

    python benchmarks/overhead.py                      # 24 trials on as many workers as there are cores
    python benchmarks/overhead.py --steps 100 --workers 1

A trial's own time is what it needs wherever it runs: probes, training, scoring (``wall`` in its result; ``seconds`` there is
training alone). All else is the grid's: starting processes, preparing text, storing, waiting for the last trial.
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


def measure(steps: int, workers: int, folder: Path) -> None:
    """Run 24 trials and print where the time went."""
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
    own, trained = (sum(result[name] for result in results) / workers for name in ("wall", "seconds"))
    print(f"{len(results)} trials, {workers} workers, total {total:.1f} s")
    print(f"trials' own time / workers      {own:8.1f} s   total is {total / own:.3f} of it")
    print(f"of that training alone          {trained:8.1f} s   total is {total / trained:.3f} of it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(words.steps, words.workers, Path(folder))


if __name__ == "__main__":
    main()

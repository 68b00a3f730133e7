"""What passes before anything is computed: ``--help``, a dry run of 100 trials, the first training step.

    python -m benchmarks.startup                # medians of five, one after the other in turn

``--help`` and the import of torch alone are processes of their own. A dry run counts from the start of the process with the
import of torch taken off: once with 20 arms of five seeds, once with 100 different arms. The first step is that of a
recipe whose text is in the cache and whose model has been probed before.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.harness import Figure, Settings

ROOT = Path(__file__).parents[1]
ATTENTIONS = '["gqa", "mla", "latent_tokens", { kind = "gqa", value = "residual" }, { kind = "gqa", output = ["xsa"] }]'
FORWARDS = '["swiglu", "relu2", "gelu", "leaky_relu2"]'
GRID = """
extends = "{root}/recipes/quickstart.toml"
[grid]
"model.layer.attention" = {attentions}
"model.layer.ffn" = {forwards}
{more}
"""


def measure(repeats: int = 5) -> dict[str, float]:
    """Medians in seconds: ``help``, ``torch`` (its import), ``dry run``, ``dry run, 100 arms`` and ``first step``.

    Dry runs are without the import of torch, which is measured beside each.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asks = _asks(folder)
        for ask in asks.values():  # text, probes and compiled files come into the caches
            ask()
        times: dict[str, list[float]] = {what: [] for what in asks}
        for _ in range(repeats):
            for what, ask in asks.items():
                times[what].append(ask())
    for what in ("dry run", "dry run, 100 arms"):
        times[what] = [whole - torch for whole, torch in zip(times[what], times["torch"], strict=True)]
    return {what: statistics.median(found) for what, found in times.items()}


def figures(settings: Settings) -> list[Figure]:
    """The rows of the report; the bounds are seconds."""
    from benchmarks.harness import Figure, Wanted

    found = measure(settings.rounds(5))
    rows = {
        "`ablate.py --help`": ("help", 0.4),
        "dry run of 100 trials (20 arms, 5 seeds), after torch's import": ("dry run", 3.0),
        "dry run of 100 arms, after torch's import": ("dry run, 100 arms", None),
        "import of torch": ("torch", None),
        "to the first training step of quickstart": ("first step", None),
    }
    return [
        Figure(work, f"{found[what]:.2f} s")
        if bound is None
        else Figure(work, f"{found[what]:.2f} s", f"{bound:g} s", found[what] / bound, Wanted("at most", 1.0))
        for work, (what, bound) in rows.items()
    ]


def _asks(folder: Path) -> dict[str, Callable[[], float]]:
    few, many = folder / "few.toml", folder / "many.toml"
    words = {"root": ROOT.as_posix(), "attentions": ATTENTIONS, "forwards": FORWARDS}
    few.write_text(GRID.format(**words, more="seeds = 5"), encoding="utf-8")
    many.write_text(GRID.format(**words, more='"model.dim" = [64, 96, 128, 160, 192]'), encoding="utf-8")
    ablate = [sys.executable, str(ROOT / "ablate.py")]
    return {
        "help": lambda: _timed([*ablate, "--help"]),
        "torch": lambda: _timed([sys.executable, "-c", "import torch"]),
        "dry run": lambda: _timed([*ablate, str(few), "--dry-run"]),
        "dry run, 100 arms": lambda: _timed([*ablate, str(many), "--dry-run"]),
        "first step": lambda: _first_step([*ablate, str(ROOT / "recipes/quickstart.toml"), "--only", "gqa"], folder),
    }


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _timed(command: list[str]) -> float:
    began = time.perf_counter()
    ran = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    elapsed = time.perf_counter() - began
    if ran.returncode:
        sys.exit(ran.stdout + ran.stderr)
    return elapsed


def _first_step(command: list[str], folder: Path) -> float:
    """Seconds until the first step is reported; the run is then stopped."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        began = time.perf_counter()
        with subprocess.Popen(
            [*command, "--out", out, "--json"],
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as ran:
            for line in ran.stdout:
                if json.loads(line)["event"] == "step":
                    elapsed = time.perf_counter() - began
                    ran.terminate()
                    ran.stdout.read()
                    return elapsed
    sys.exit("no step was reported")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    for what, seconds in measure(parser.parse_args().repeats).items():
        print(f"{what:20}{seconds:8.2f} s")


if __name__ == "__main__":
    main()

"""What it takes to probe a structure that has not been seen before, per recipe.

    python benchmarks/guards.py                        # the recipes that come with the zoo, in their CPU profiles
    python benchmarks/guards.py RECIPE [RECIPE ...]
    python benchmarks/guards.py --profile RECIPE       # where the time of the baseline's second call goes, by probe

Every recipe gets a process of its own. ``first`` is the first call in it, on the baseline, once as it comes and with nothing
warm; ``later`` are calls for every structure of the grid after that, and the slowest of them. ``text`` is what the probes of
the text take beside it, once per text and then per trial. Seconds of wall time, and of processor time behind them, at the
recipe's own number of threads.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPES = ("quickstart", "deepseek_12L", "compact_10L", "deepseek_24L")


def arms_of(path: Path) -> list[tuple[str, object]]:
    """The arms of a recipe's grid that differ in structure, the baseline first."""
    from zoo import guards
    from zoo.trials.grid import plan
    from zoo.trials.run import text_of
    from zoo.trials.vocabulary import with_vocabulary

    grid = plan(path, None)
    found: dict[str, tuple[str, object]] = {}
    for arm in grid.arms:
        prepared = text_of(arm.recipe, grid.folder)
        recipe = with_vocabulary(arm.recipe, prepared.tokenizer.vocab_size)
        found.setdefault(guards.structure(recipe, ""), (arm.name, recipe, prepared))
    return list(found.values())


def measure(path: Path) -> None:
    """One line for a recipe."""
    arms = arms_of(path)
    import torch

    from zoo import guards, machine
    from zoo.guards import text

    recipe, prepared = arms[0][1:]
    torch.set_num_threads(machine.settle_threads(recipe.machine.threads))
    seconds = []
    for _, recipe, _ in (arms[0], *arms):
        seconds.append(_timed(guards.probe, recipe))
    again = _timed(text.disjoint, prepared), _timed(text.next_tokens, arms[0][1], prepared)
    first, later = seconds[0], seconds[1:]
    slowest = max(range(len(later)), key=later.__getitem__)
    print(
        f"{path.stem:14s} first {_shown(first)}  later {_shown(tuple(map(_mean, zip(*later, strict=True))))} "
        f"(mean of {len(later)})  slowest {_shown(later[slowest])} ({arms[slowest][0]})  "
        f"text {' + '.join(map(_shown, again))}",
        flush=True,
    )


def _timed(call: Callable[..., object], *given: object) -> tuple[float, float]:
    """Wall and processor time of a call."""
    began = time.perf_counter(), time.process_time()
    call(*given)
    return time.perf_counter() - began[0], time.process_time() - began[1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _shown(seconds: tuple[float, float]) -> str:
    return f"{seconds[0]:.2f} ({seconds[1]:.2f})"


def profile(path: Path) -> None:
    """The baseline's second call, by function."""
    import cProfile
    import pstats

    from zoo import guards

    recipe = arms_of(path)[0][1]
    guards.probe(recipe)
    taken = cProfile.Profile()
    taken.runcall(guards.probe, recipe)
    pstats.Stats(taken).sort_stats("cumulative").print_stats(45)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="*", type=Path)
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.profile:
        profile(words.profile)
    elif words.alone:
        measure(words.alone)
    else:
        for path in words.recipe or [ROOT / "recipes" / f"{name}.toml" for name in RECIPES]:
            subprocess.run([sys.executable, __file__, "--alone", str(path)], check=True)


if __name__ == "__main__":
    main()

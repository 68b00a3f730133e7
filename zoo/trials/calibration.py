"""Whether the statistics keep their word, on noise that was recorded: ``python -m zoo.trials.calibration FOLDER``.

FOLDER holds the results of ``recipes/aa.toml``: two arms that differ by luck alone, so the true difference is zero and each
recorded difference might as well have had the other sign. Comparisons of a few seeds are drawn from that noise, by picking
recorded differences with random signs or from the normal distribution of the same spread, and judged as the table judges.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import optimize

from zoo.core.part import ConfigError
from zoo.trials.statistics import LEVEL, POWER, p_values, paired, power, smallest_effect, spread

COMPARISONS, REPEATS = 2_000, 100  # repeated, since 2,000 alone are uncertain by half a point

Draw = Callable[[tuple[int, int]], np.ndarray]  # noise of the shape asked for, (comparisons, seeds)


class Calibration(NamedTuple):
    """Shares of all comparisons; what they should be is 0.05, and 0.80 for all that is found."""

    called: float  # of A against A, called different at the 5 % level before any correction
    found: float  # of repeats with the effect that a first experiment of as many seeds called its smallest
    found_textbook: float  # the same, had the effect been stated as if the first experiment's spread were the true one
    found_known: float  # of repeats with the smallest effect stated from the whole record, for as many seeds as it has


def recorded(folder: Path) -> list[float]:
    """The differences in bits per byte, seed by seed, of the two arms whose trials ``folder/results.csv`` lists.

    Raises:
        ConfigError: no such file, or not two arms with at least two seeds in common.
    """
    arms: dict[str, dict[int, float]] = {}
    try:
        with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row["status"] == "done":
                    arms.setdefault(row["variant"], {})[int(row["seed"])] = float(row["bits_per_byte"])
    except (OSError, KeyError, ValueError) as fault:
        raise ConfigError(f"{folder}: no results.csv that can be read: {fault}") from None
    if len(arms) != 2:
        raise ConfigError(f"{folder}: wants two arms that differ by luck alone, it has {len(arms)}")
    baseline, other = arms.values()
    differences = paired(other, baseline)
    if len(differences) < 2:
        raise ConfigError(f"{folder}: wants at least two seeds that both arms have")
    return differences


def sources(differences: Sequence[float], generator: np.random.Generator) -> dict[str, Draw]:
    """Ways to draw differences of A against A: the recorded ones, and a normal distribution of their size."""
    sizes = np.abs(differences)
    rms = math.sqrt(float((sizes**2).mean()))  # about zero, which is the true mean
    return {
        "resampled": lambda shape: generator.choice(sizes, shape) * generator.choice([-1.0, 1.0], shape),
        "normal": lambda shape: generator.normal(0.0, rms, shape),
    }


def calibrate(draw: Draw, seeds: int, comparisons: int, record: Sequence[float]) -> Calibration:
    """Simulate ``comparisons`` experiments of ``seeds`` seeds each.

    Args:
        draw: noise.
        seeds: of one experiment, at least two.
        comparisons: how many.
        record: the recorded differences, from which an effect is stated and then looked for with as many seeds.
    """
    first, second = draw((comparisons, seeds)), draw((comparisons, seeds))
    sd = first.std(-1, ddof=1)
    stated, textbook = smallest_effect(1.0, seeds) * sd, textbook_effect(seeds) * sd
    known = smallest_effect(spread(np.asarray(record)), len(record))
    third = draw((comparisons, len(record))) + known
    return Calibration(
        called=_share(first),
        found=_share(second + stated[:, None]),
        found_textbook=_share(second + textbook[:, None]),
        found_known=_share(third),
    )


def textbook_effect(seeds: int) -> float:
    """The effect found four times out of five where the standard deviation of the differences is known to be one."""
    return float(optimize.brentq(lambda effect: power(effect, 1.0, seeds) - POWER, 0.0, 1_000.0))


def _share(differences: np.ndarray) -> float:
    return float((p_values(differences) < LEVEL).mean())


def main(words: Sequence[str]) -> None:
    """Print the shares for several numbers of seeds."""
    if len(words) != 1:
        raise SystemExit("usage: python -m zoo.trials.calibration FOLDER")
    try:
        differences = recorded(Path(words[0]))
    except ConfigError as fault:
        raise SystemExit(f"error: {fault}") from None
    d = np.asarray(differences)
    print(f"{len(d)} recorded differences: mean {d.mean():+.4f}, standard deviation {d.std(ddof=1):.4f} bits per byte")
    print(
        f"{REPEATS} times {COMPARISONS:,} comparisons; what should be called different is 5 %, what should be found 80 %"
    )
    print(
        f"{'noise':<11}{'seeds':>6}  {'called different (least to most)':<34}{'smallest effect found':<24}textbook's found"
    )
    for name, draw in sources(differences, np.random.default_rng(0)).items():
        for seeds in (3, 5, 8, 12):
            seen = [calibrate(draw, seeds, COMPARISONS, differences) for _ in range(REPEATS)]
            called, found, textbook, known = (np.array(share) for share in zip(*seen, strict=True))
            between = f"{called.mean():.1%} ({called.min():.1%} to {called.max():.1%})"
            print(f"{name:<11}{seeds:>6}  {between:<34}{found.mean():<24.1%}{textbook.mean():.1%}")
        print(f"{name:<11}{len(d):>6}  {'':<34}{known.mean():.1%}, as stated by the record itself")


if __name__ == "__main__":
    main(sys.argv[1:])

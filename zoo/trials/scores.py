"""What the outcomes of a grid say, arm by arm: scores by seed, curves over rates, means at the best rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from zoo.trials.envelope import Curve
from zoo.trials.grid import Arm
from zoo.trials.run import Outcome


def score(outcome: Outcome) -> float | None:
    """What stages decide by: bits per byte of a run that was finished."""
    return outcome.result.bits_per_byte if outcome.result.status == "done" else None


def by_arm(seen: Sequence[Outcome]) -> dict[str, dict[int, float]]:
    """Bits per byte of every arm by seed."""
    found: dict[str, dict[int, float]] = {}
    for outcome in seen:
        if (bits := score(outcome)) is not None:
            found.setdefault(outcome.trial.arm.name, {})[outcome.result.seed] = bits
    return found


def base_of(arm: Arm) -> str:
    """The arm's name without its rate."""
    return arm.name if arm.rate is None else arm.rate.arm


def curves(seen: Sequence[Outcome]) -> list[Curve]:
    """The arms over their rates, in the order in which they first occur."""
    found: dict[str, dict[float, dict[int, float]]] = {}
    for outcome in seen:
        arm = outcome.trial.arm
        if arm.rate is not None:
            at = found.setdefault(arm.rate.arm, {}).setdefault(arm.rate.value, {})
            if (bits := score(outcome)) is not None:
                at[outcome.result.seed] = bits
    return [Curve(name, scores) for name, scores in found.items()]


def best_means(seen: Sequence[Outcome]) -> dict[str, float]:
    """Mean bits per byte of each arm at its best rate, under every name that it goes by; infinite without a score."""
    found: dict[str, dict[str, list[float]]] = {}
    for outcome in seen:
        arm = outcome.trial.arm
        ending = arm.name.removeprefix(base_of(arm))
        bits = score(outcome)
        for name in (arm.name, *arm.also):
            at = found.setdefault(name.removesuffix(ending), {}).setdefault(arm.name, [])
            at += [] if bits is None else [bits]
    return {
        name: min((math.fsum(bits) / len(bits) for bits in rates.values() if bits), default=math.inf)
        for name, rates in found.items()
    }

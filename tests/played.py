"""Grids played to their end without training: a rule says what every arm scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from recipes import write
from zoo.cost import Cost
from zoo.result import Result
from zoo.trials.check import Forecast
from zoo.trials.grid import Arm, Grid, plan, trial_recipe
from zoo.trials.run import Outcome, Trial
from zoo.trials.stages import further

COST = Cost(10, {}, {}, 10, 60.0, 10)


def planned(folder: Path, more: str) -> Grid:
    return plan(write(folder, more), device="cpu")


def outcome(arm: Arm, seed: int, bits: float | None) -> Outcome:
    trial = Trial(arm, trial_recipe(arm, seed), Forecast(COST, 10, 64, frozenset(), ()), f"{arm.name}{seed}")
    status = "done" if bits is not None else "diverged"
    return Outcome(trial, Result(status=status, name="r", variant=arm.name, seed=seed, bits_per_byte=bits), True, False)


def played(grid: Grid, score: Callable[[Arm, int], float | None]) -> tuple[list[Outcome], list[set[str]]]:
    """A grid run to its end without training: every outcome, and the arms of each stage."""
    seen: list[Outcome] = []
    stages = []
    while pairs := further(grid, seen):
        assert len(stages) < 30
        stages.append({arm.name for arm, _ in pairs})
        seen += [outcome(arm, seed, score(arm, seed)) for arm, seed in pairs]
    assert len({(o.trial.arm.name, o.result.seed) for o in seen}) == len(seen), "nothing is trained twice"
    return seen, stages

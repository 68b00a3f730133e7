"""How long a step takes: three steps of one arm per distinct shape, timed once and kept.

Times belong to a machine and to the source code; either changed, they are measured again. They are taken with one trial
running alone.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zoo import machine
from zoo.core.tables import tabulate
from zoo.data.prepare import Prepared
from zoo.judge import score
from zoo.loop import Loop
from zoo.optim.slots import Schedule
from zoo.recipe import Recipe
from zoo.result import Progress
from zoo.trials.address import code_hash
from zoo.trials.store import write_whole

STEPS = 3  # that are timed; one ahead of them warms up
ONCE = (
    "steps",
    "tokens",
    "seconds",
    "seed",
    "log_every",
    "evaluate_every",
    "targets",
)  # of [train]: no part of a shape
ELSEWHERE = ("name", "variant", "base", "as_published", "data", "schedule", "card", "codec")


class Timing(NamedTuple):
    """What was timed, in seconds unless it says otherwise."""

    step: float  # median
    fastest: float  # step
    first: float  # step, compilation and warming up included
    scored: float  # tokens scored per second
    spent: float  # on all of it


def shape_of(recipe: Recipe) -> str:
    """Equal for recipes whose steps take equally long here: the same sizes and kinds, whatever their rates and budgets."""
    table = {name: value for name, value in tabulate(recipe).items() if name not in ELSEWHERE}
    table["train"] = {name: value for name, value in table["train"].items() if name not in ONCE}
    table["model"] = {name: value for name, value in table["model"].items() if name not in ("vocab_size", "init")}
    table |= {name: _motion(table[name]) for name in ("optim", "average") if name in table}
    here = [machine.facts(recipe.machine.device)["machine"], torch.__version__, code_hash(recipe)]
    text = json.dumps([table, tabulate(recipe.data.tokenizer), here], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _motion(value: Any) -> Any:
    """What says how weights move, without how far: of a real number only whether it is zero, which may spare an operation.

    Sizes and repetitions are whole numbers, and stay as they are.
    """
    if isinstance(value, dict):
        return {name: _motion(knob) for name, knob in value.items()}
    if isinstance(value, list):
        return [_motion(item) for item in value]
    return value != 0.0 if isinstance(value, float) else value


def measure(recipe: Recipe, prepared: Prepared) -> Timing:
    """Time a few steps of a recipe and the scoring of one batch.

    Args:
        recipe: settled, its vocabulary known.
        prepared: its text.
    """
    began = time.perf_counter()
    torch.set_num_threads(machine.settle_threads(recipe.machine.threads))
    told: list[Progress] = []
    budget = {"steps": STEPS + 1, "tokens": None, "seconds": None, "log_every": 1, "evaluate_every": None}
    plain = {"train": recipe.train.model_copy(update=budget), "schedule": Schedule.parse("constant")}
    loop = Loop(recipe.model_copy(update=plain), prepared, told.append, io.StringIO())
    loop.run()
    elapsed = [p.elapsed for p in told]
    steps = [b - a for a, b in itertools.pairwise(elapsed)]
    tokens = min(recipe.evaluate.batch * recipe.model.context, len(prepared.valid) - 1)
    before = time.perf_counter()
    score(loop.model, recipe, prepared, tokens)
    after = time.perf_counter()
    return Timing(statistics.median(steps), min(steps), elapsed[0], tokens / (after - before), after - began)


class Timings:
    """Timings and solved widths of this machine, kept in one file.

    Args:
        cache: the folder; made when something is kept.
    """

    def __init__(self, cache: Path) -> None:
        self.path = cache / "timings.json"

    def find(self, recipe: Recipe) -> Timing | None:
        """What was timed for this shape."""
        found = self._read("shapes").get(shape_of(recipe))
        return None if found is None else Timing(**found)

    def of(self, recipe: Recipe, prepared: Prepared) -> tuple[Timing, bool]:
        """The timing of this shape, and whether it was taken now."""
        found = self.find(recipe)
        if found is not None:
            return found, False
        found = measure(recipe, prepared)
        self._keep("shapes", shape_of(recipe), found._asdict())
        return found, True

    def width(self, baseline: Recipe, recipe: Recipe) -> dict[str, Any] | None:
        """What was found when this arm was to be made as fast as the baseline."""
        return self._read("widths").get(f"{shape_of(baseline)}-{shape_of(recipe)}")

    def keep_width(self, baseline: Recipe, recipe: Recipe, found: dict[str, Any]) -> None:
        """Remember it."""
        self._keep("widths", f"{shape_of(baseline)}-{shape_of(recipe)}", found)

    def sharing(self, recipe: Recipe, most: int) -> list[Any] | None:
        """What was chosen when up to so many trials, this the largest, were to share a device."""
        return self._read("sharing").get(f"{shape_of(recipe)}-{most}")

    def keep_sharing(self, recipe: Recipe, most: int, found: list[Any]) -> None:
        """Remember it."""
        self._keep("sharing", f"{shape_of(recipe)}-{most}", found)

    def _read(self, section: str) -> dict[str, Any]:
        try:
            return json.loads(self.path.read_text(encoding="utf-8")).get(section, {})
        except (OSError, ValueError):
            return {}

    def _keep(self, section: str, key: str, value: Any) -> None:
        table = {name: self._read(name) for name in ("shapes", "widths", "sharing")}
        table[section][key] = value
        write_whole(self.path, json.dumps(table, indent=1) + "\n")

"""Hands what a view is told to the trackers of each trial's recipe. A tracker's failure is said once and stops nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.core.tables import tabulate
from zoo.result import Progress
from zoo.track.slots import Tracker
from zoo.trials.run import Outcome, Trial, View
from zoo.trials.store import slug

FINAL = (
    "bits_per_byte",
    "valid_loss",
    "train_loss",
    "seconds",
    "tokens",
    "tokens_per_second",
    "peak_memory",
    "parameters",
)


class Tracked:
    """A view that trackers listen to.

    Args:
        view: who is told first, of everything.
        root: the folder of results, where trackers that write files write them.
    """

    def __init__(self, view: View, root: Path) -> None:
        self.view, self.root = view, root
        self.running: dict[str, list[Tracker]] = {}  # by address
        self.said: set[str] = set()

    def say(self, line: str) -> None:
        self.view.say(line)

    def preparing(self, what: str, share: float, words: str = "") -> None:
        self.view.preparing(what, share, words)

    def begin(self, trial: Trial, number: int, total: int) -> None:
        self.view.begin(trial, number, total)
        recipe = trial.recipe
        name, knobs = f"{slug(recipe.variant)}-seed{recipe.train.seed}", dict(flat(tabulate(recipe)))
        started: list[Tracker] = []
        for config in recipe.track:
            kind = str(config.part.kind)
            made: list[Tracker] = []
            if self._heard(kind, lambda c=config, m=made: m.append(c.build(self.root))):
                started += [t for t in made if self._heard(kind, lambda t=t: t.start(recipe.name, name, knobs))]
        self.running[trial.address] = started

    def step(self, trial: Trial, progress: Progress) -> None:
        self.view.step(trial, progress)
        if progress.scoring is None:
            told = progress._asdict()
            figures = {
                k: float(v) for k, v in told.items() if isinstance(v, int | float) and k not in ("step", "total")
            }
            self._tell(trial, lambda tracker: tracker.log(progress.step, figures))

    def end(self, outcome: Outcome) -> None:
        self.view.end(outcome)
        result = outcome.result
        known = {name: getattr(result, name) for name in FINAL}
        figures = {name: float(value) for name, value in known.items() if value is not None}
        self._tell(outcome.trial, lambda tracker: tracker.finish(figures, result.status))
        self.running.pop(outcome.trial.address, None)

    def _tell(self, trial: Trial, what: Callable[[Tracker], None]) -> None:
        own = self.running.get(trial.address, [])
        self.running[trial.address] = [t for t in own if self._heard(str(t.kind), lambda t=t: what(t))]

    def _heard(self, kind: str, call: Callable[[], None]) -> bool:
        """Whether a tracker took what it was told; one that did not is left out from then on."""
        try:
            call()
        except (Exception, SystemExit) as fault:  # whatever a foreign library raises; some leave by sys.exit
            line = f"tracker {kind}: {type(fault).__name__}: {str(fault).strip().partition(chr(10))[0]}"
            if line not in self.said:
                self.said.add(line)
                self.view.say(f"{line}; this trial goes on without it")
            return False
        return True


def flat(table: Any, path: str = "") -> list[tuple[str, Any]]:
    """A nested table as dotted paths and plain values."""
    if isinstance(table, dict) and table:
        return [pair for key, value in table.items() for pair in flat(value, f"{path}.{key}" if path else key)]
    if isinstance(table, list) and any(isinstance(item, dict) for item in table):
        return [pair for i, item in enumerate(table) for pair in flat(item, f"{path}[{i}]")]
    return [(path, table)]

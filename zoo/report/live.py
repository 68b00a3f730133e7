"""What is seen while a grid trains: one moving line per trial in a terminal, plain lines anywhere else."""

from __future__ import annotations

import json
import textwrap
import time
from typing import Any

from rich.console import Console
from rich.live import Live

from zoo.report.lines import Picture, Row, remaining, told
from zoo.report.standings import Standings
from zoo.report.terminal import say
from zoo.report.units import count, duration, finite, significant
from zoo.result import Progress as Step
from zoo.trials.run import Outcome, Trial

EVERY = 10.0  # seconds between plain lines of one trial


def title(trial: Trial) -> str:
    """``mla seed 0``."""
    return f"{trial.recipe.variant} seed {trial.recipe.train.seed}"


def verdict(outcome: Outcome) -> str:
    """What a trial came to, in one line."""
    result = outcome.result
    if result.status != "done":
        return f"{result.status}: {result.reason}"
    scored = f"{significant(result.bits_per_byte)} bits/byte, loss {significant(result.valid_loss)}"
    said = "; ".join(["", *result.flags])
    return f"{scored}, {result.steps} steps in {duration(result.seconds)}{'' if outcome.fresh else ' (stored)'}{said}"


class PlainView:
    """One line now and then, for logs and pipes."""

    def __init__(self, console: Console, baseline: str = "") -> None:
        self.console, self.spoke = console, dict[str, float]()
        self.prepared, self.standings = "", Standings(baseline)

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, line: str) -> None:
        """A line of its own."""
        say(self.console, line)

    def preparing(self, what: str, share: float, words: str = "") -> None:
        """Text is being prepared."""
        if what != self.prepared:
            self.prepared, self.spoke[""] = what, time.monotonic()
            self.say(f"{what} ...")
        elif words and time.monotonic() - self.spoke[""] > EVERY:
            self.spoke[""] = time.monotonic()
            self.say(f"    {words}")

    def begin(self, trial: Trial, number: int, total: int) -> None:
        """A trial starts to train."""
        self.spoke[trial.address] = time.monotonic()
        steps = "" if trial.forecast.steps is None else f", {trial.forecast.steps:,} steps"
        self.say(f"[{number}/{total}] {title(trial)}: {trial.forecast.cost.parameters:,} parameters{steps}")

    def step(self, trial: Trial, progress: Step) -> None:
        """A trial tells how far it is."""
        if time.monotonic() - self.spoke.get(trial.address, 0.0) < EVERY:
            return
        self.spoke[trial.address] = time.monotonic()
        if progress.scoring is not None:
            self.say(f"    {title(trial)}: {progress.scoring}")
            return
        bits = "" if progress.valid_bpb is None else f", {progress.valid_bpb:.4f} bits/byte"
        self.say(
            f"    {title(trial)}: step {progress.step:,}/{progress.total:,}, loss {progress.loss:.4f}{bits}, "
            f"{count(progress.tokens_per_second)} tokens/s, {duration(remaining(progress))} left"
        )

    def end(self, outcome: Outcome) -> None:
        """A trial is over, or was stored already."""
        self.say(f"    {title(outcome.trial)}: {verdict(outcome)}")
        self.standings.add(outcome)
        if outcome.fresh and (line := self.standings.line()):
            self.say(f"    {line}")


class LiveView(PlainView):
    """A line for each running trial and one for the grid, the standings below; what is over stays above as a line."""

    def __init__(self, console: Console, baseline: str = "") -> None:
        super().__init__(console, baseline)
        self.running: dict[str, Row] = {}  # by address
        self.text: Row | None = None
        self.began, self.over, self.stored, self.total = 0.0, 0, 0, 0
        self.screen = Live(get_renderable=self._shown, console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> LiveView:
        self.screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.screen.stop()

    def _shown(self) -> Picture:
        """What is seen now; called by a thread that looks four times a second."""
        rows = [row for row in (self.text, self._grid(), *list(self.running.values())) if row is not None]
        below = textwrap.wrap(self.standings.line(), max(10, self.console.width - 1), subsequent_indent="  ")
        return Picture(rows, below[:3])

    def preparing(self, what: str, share: float, words: str = "") -> None:
        self.text = Row(what, share or None, ((0, words),))

    def begin(self, trial: Trial, number: int, total: int) -> None:
        if not self.total:
            self.began = time.monotonic()
        self.text, self.total = None, total
        self.running[trial.address] = Row(title(trial), 0.0, ((0, "starting"),))

    def step(self, trial: Trial, progress: Step) -> None:
        self.running[trial.address] = Row(title(trial), progress.step / progress.total, told(progress))

    def end(self, outcome: Outcome) -> None:
        self.say(f"{title(outcome.trial)}: {verdict(outcome)}")
        self.standings.add(outcome)
        self.running.pop(outcome.trial.address, None)
        self.over, self.stored = self.over + outcome.fresh, self.stored + (not outcome.fresh)

    def _grid(self) -> Row | None:
        """The whole grid: what is left is estimated from what was trained now."""
        if not self.total:
            return None
        trained = self.over + sum(row.share or 0.0 for row in list(self.running.values()))
        left = self.total - self.stored - trained
        seconds = (time.monotonic() - self.began) / trained * left if trained else 0.0
        estimate = ((1, f"{duration(seconds)} left"),) if seconds else ()
        return Row(
            "grid", (self.stored + trained) / self.total, ((0, f"{self.over + self.stored}/{self.total}"), *estimate)
        )


class QuietView(PlainView):
    """Says nothing while the grid runs: the table at the end is all."""

    def say(self, line: str) -> None:
        """Nothing."""


class JsonView(PlainView):
    """One JSON object per line and event, for machines: ``event`` is say, preparing, begin, step or end.

    A figure that is no number, such as the loss of a trial that diverged, is null: JSON has no other word for it.

    Args:
        console: where the objects go.
    """

    def _tell(self, event: dict[str, Any], trial: Trial | None = None) -> None:
        who = {} if trial is None else {"variant": trial.recipe.variant, "seed": trial.recipe.train.seed}
        line = finite({"event": event["event"], **who, **event})
        self.console.file.write(json.dumps(line, allow_nan=False) + "\n")
        self.console.file.flush()

    def say(self, line: str) -> None:
        self._tell({"event": "say", "line": line})

    def preparing(self, what: str, share: float, words: str = "") -> None:
        if what != self.prepared:
            self.prepared = what
            self._tell({"event": "preparing", "what": what})

    def begin(self, trial: Trial, number: int, total: int) -> None:
        self._tell({"event": "begin", "number": number, "total": total, "address": trial.address}, trial)

    def step(self, trial: Trial, progress: Step) -> None:
        self._tell({"event": "step", **progress._asdict()}, trial)

    def end(self, outcome: Outcome) -> None:
        result = outcome.result.model_dump(mode="json", exclude={"variant", "seed"})
        self._tell({"event": "end", "fresh": outcome.fresh, **result}, outcome.trial)


VIEWS: dict[str, type[PlainView]] = {"quiet": QuietView, "json": JsonView}


def view_for(console: Console, baseline: str = "", manner: str = "auto") -> PlainView:
    """The moving view in a terminal, plain lines elsewhere; ``manner`` "quiet" or "json" instead.

    Args:
        console: where it is shown; with "json" events go to standard output whatever the console.
        baseline: the arm that the standings compare with.
        manner: auto, quiet or json.
    """
    if manner == "json":
        return JsonView(Console(), baseline)
    chosen = VIEWS.get(manner, LiveView if console.is_terminal else PlainView)
    return chosen(console, baseline)

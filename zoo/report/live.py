"""What is seen while a grid trains: one moving line per trial in a terminal, plain lines anywhere else."""

from __future__ import annotations

import json
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TaskID, TextColumn
from rich.text import Text

from zoo.report.standings import Standings
from zoo.report.units import count, duration, significant
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


def remaining(step: Step) -> float:
    """Seconds of training that are left."""
    return step.elapsed / step.step * max(0, step.total - step.step)


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
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

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
    """A bar for each running trial and one for the grid, the standings below; what is over stays above as a line."""

    def __init__(self, console: Console, baseline: str = "") -> None:
        super().__init__(console, baseline)
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            Words(),
            console=console,
            auto_refresh=False,
        )
        self.screen = Live(get_renderable=self._shown, console=console, transient=True, refresh_per_second=4)
        self.text: TaskID | None = None
        self.grid: TaskID | None = None
        self.tasks: dict[str, TaskID] = {}  # by address
        self.shares: dict[str, float] = {}
        self.began, self.over, self.stored, self.total = 0.0, 0, 0, 0

    def __enter__(self) -> LiveView:
        self.screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.screen.stop()

    def _shown(self) -> Group:
        return Group(self.bars, *([Text(line)] if (line := self.standings.line()) else []))

    def preparing(self, what: str, share: float, words: str = "") -> None:
        if self.text is None:
            self.text = self.bars.add_task(what, total=None, words="")
        self.bars.update(self.text, description=what, completed=share, total=1.0 if share else None, words=words)

    def begin(self, trial: Trial, number: int, total: int) -> None:
        if self.text is not None:
            self.bars.remove_task(self.text)
            self.text = None
        if self.grid is None:
            self.grid = self.bars.add_task("grid", total=total, words="")
            self.began = time.monotonic()
        self.total = total
        self.tasks[trial.address] = self.bars.add_task(title(trial), total=1.0, words="starting")
        self.shares[trial.address] = 0.0

    def step(self, trial: Trial, progress: Step) -> None:
        bits = "" if progress.valid_bpb is None else f"  {progress.valid_bpb:.4f} bits/byte"
        words = (
            f"{progress.step:,}/{progress.total:,}  loss {progress.loss:.4f}{bits}  "
            f"{count(progress.tokens_per_second)} tokens/s  {duration(remaining(progress))} left"
        )
        words = words if progress.scoring is None else progress.scoring
        share = self.shares[trial.address] = progress.step / progress.total
        self.bars.update(self.tasks[trial.address], completed=share, words=words)
        self._grid()

    def end(self, outcome: Outcome) -> None:
        self.say(f"{title(outcome.trial)}: {verdict(outcome)}")
        self.standings.add(outcome)
        task = self.tasks.pop(outcome.trial.address, None)
        self.shares.pop(outcome.trial.address, None)
        self.over, self.stored = self.over + outcome.fresh, self.stored + (not outcome.fresh)
        if task is not None:
            self.bars.remove_task(task)
            self._grid()

    def _grid(self) -> None:
        """The grid's bar: what is left is estimated from what was trained now."""
        if self.grid is None:
            return
        trained = self.over + sum(self.shares.values())
        left = self.total - self.stored - trained
        seconds = (time.monotonic() - self.began) / trained * left if trained else 0.0
        words = f"{self.over + self.stored}/{self.total}" + (f"  {duration(seconds)} left" if seconds else "")
        self.bars.update(self.grid, completed=self.stored + trained, total=self.total, words=words)


class Words(ProgressColumn):
    """The words of a task as they are, no markup."""

    def render(self, task: Any) -> Text:
        return Text(task.fields.get("words", ""))


class QuietView(PlainView):
    """Says nothing while the grid runs: the table at the end is all."""

    def say(self, line: str) -> None:
        """Nothing."""


class JsonView(PlainView):
    """One JSON object per line and event, for machines: ``event`` is say, preparing, begin, step or end.

    Args:
        console: where the objects go.
    """

    def _tell(self, event: dict[str, Any], trial: Trial | None = None) -> None:
        who = {} if trial is None else {"variant": trial.recipe.variant, "seed": trial.recipe.train.seed}
        self.console.file.write(json.dumps({"event": event["event"], **who, **event}) + "\n")
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

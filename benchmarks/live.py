"""What the moving view takes of the processor while a grid trains.

    python -m benchmarks.live [--steps 150] [--rounds 2]

Trains quickstart's first arm with the view and without it, in turns and in one process, as `--workers 0` does (with worker
processes the view is in the parent, which does nothing else). The figure is processor time over processor time: the view's
own, in its calls and in the thread that looks four times a second, over that of the whole trial. The ratio of the two trials'
times stands beside it, and scatters far more than what it measures. Then the worst case: thirty trials that each say
something ten times a second.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console

from zoo import machine
from zoo.report.live import LiveView, QuietView
from zoo.result import Progress
from zoo.trials.grid import plan
from zoo.trials.run import Ready, Trial, make_ready, run
from zoo.trials.store import Store

ROOT = Path(__file__).parents[1]


class Clocked(LiveView):
    """The moving view on a terminal that is thrown away, with a count of the processor's seconds."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO(), force_terminal=True, width=120, height=40), "gqa")
        self.used = 0.0

    def __enter__(self) -> Clocked:
        before = set(threading.enumerate())
        super().__enter__()
        (self.thread,) = set(threading.enumerate()) - before
        return self

    def __exit__(self, *_: object) -> None:
        self.used += time.clock_gettime(time.pthread_getcpuclockid(self.thread.ident))
        super().__exit__()

    def begin(self, trial: Trial, number: int, total: int) -> None:
        began = time.thread_time()
        super().begin(trial, number, total)
        self.used += time.thread_time() - began

    def step(self, trial: Trial, progress: Progress) -> None:
        began = time.thread_time()
        super().step(trial, progress)
        self.used += time.thread_time() - began


def trained(ready: Ready, view: LiveView | QuietView) -> tuple[float, float]:
    """Seconds of training of the first arm, told to ``view``, and the processor's seconds of all of it."""
    began = time.process_time()
    trial = ready.trials[0]._replace(guarded=False)
    with tempfile.TemporaryDirectory() as folder, view:
        (outcome,) = run(ready._replace(trials=(trial,)), Store(Path(folder)), ROOT / "recipes", view)
    assert outcome.result.status == "done", outcome.result.reason
    return outcome.result.seconds, time.process_time() - began


def crowd(ready: Ready, trials: int, seconds: float) -> float:
    """Processor's seconds per second of a view that ``trials`` trials talk to ten times a second."""
    many = [ready.trials[0]._replace(address=str(i)) for i in range(trials)]
    view, step, began = Clocked(), 0, time.perf_counter()
    with view:
        for number, trial in enumerate(many, 1):
            view.begin(trial, number, trials)
        while (elapsed := time.perf_counter() - began) < seconds:
            step += 10
            for trial in many:
                view.step(trial, Progress(step, 100_000, 3.21, 1e-3, step * 1024, 4321.0, elapsed, 10**9, 2.4))
            time.sleep(0.1)
    return view.used / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    grid = plan(ROOT / "recipes" / "quickstart.toml", sets=[f"train.steps={given.steps}"])
    ready = make_ready(grid, grid.arms[:1], QuietView(Console(quiet=True)))
    shares, ratios = [], []
    for _ in range(given.rounds):
        view = Clocked()
        (without, _), (with_it, processor) = trained(ready, QuietView(Console(quiet=True))), trained(ready, view)
        shares.append(view.used / processor)
        ratios.append(with_it / without)
    facts = machine.facts("cpu")
    print(f"{facts['machine']}, torch {facts['torch']}; {given.steps} steps, {given.rounds} rounds")
    print(f"the view's processor time over the trial's: {statistics.median(shares):.3%} (most {max(shares):.3%})")
    print(f"time with the view over time without: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    print(f"thirty trials, ten words a second each: {crowd(ready, 30, 5.0):.3%} of one core")


if __name__ == "__main__":
    main()

"""The loop: batches, gradients, optimizers, averages and reports of one run, step by step.

The reported loss is the mean nats per token of the next-token targets and nothing else; auxiliary losses are optimised
beside it and logged under their own names.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import torch
from torch import Tensor

from zoo import machine
from zoo.budget import UNKNOWN, batches_of, check_schedule, take, tokens_per_step, total_steps
from zoo.checkpoint import writing
from zoo.core.params import Role
from zoo.core.wires import noise_key
from zoo.fallback import with_less, without_compiler
from zoo.graphs import Given, Graphs, Said
from zoo.judge import score
from zoo.model import Model
from zoo.optim.build import build_optimizers
from zoo.optim.slots import Average, Schedule
from zoo.parallel import ALONE, World
from zoo.recipe import Recipe
from zoo.result import Progress, Signals, Watch, loads
from zoo.scoring.slots import Score

if TYPE_CHECKING:
    from zoo.data.prepare import Prepared


GRAPHS = 64  # of one stage: layers of every structure, training and scoring, rows of every number


class Diverged(Exception):
    """The loss or the gradient left the finite numbers at ``step``."""

    def __init__(self, step: int) -> None:
        super().__init__(f"diverged at step {step}: last good step {step - 1}")
        self.step = step


class Loop:
    """The state of one run: model, optimizers, schedule, average, data position, log."""

    def __init__(
        self,
        recipe: Recipe,
        prepared: Prepared,
        watch: Watch,
        log: TextIO,
        signals: Signals = Signals(),
        world: World = ALONE,
    ) -> None:
        self.recipe, self.prepared, self.watch, self.log, self.signals = recipe, prepared, watch, log, signals
        self.world = world
        self.device = machine.settle_device(recipe.machine.device)
        self.dtype = machine.settle_dtype(recipe.machine.dtype, self.device)
        self.total = total_steps(recipe)
        self.schedule: Schedule = recipe.schedule.build()
        check_schedule(recipe)
        self.memory, self.earlier_peak = machine.PeakMemory(self.device), 0  # of other parts and processes
        torch.manual_seed(recipe.train.seed)  # nothing of ours draws from it; a guest's block that does is repeatable
        self.compiled: bool | None = True if recipe.train.compile == "layers" else None
        self.model = self._build_model()
        self.model.register_forward_pre_hook(lambda *_: signals.alive())
        self.graphs = self._build_graphs()
        self.optimizers = build_optimizers(self.model, recipe.optim)
        for optimizer in self.optimizers.values():
            optimizer.world = world
        self.average: Average = recipe.average.build(self.model)
        self.batches = batches_of(recipe, prepared, (world.rank, world.size))
        if world.rank:
            torch.manual_seed(recipe.train.seed + (world.rank << 40))  # other rows, other draws
        self.rows, self.accumulate = recipe.train.batch, recipe.train.accumulate
        self.step, self.seconds = 0, 0.0
        self.stats: dict[str, Tensor] = {}  # what the blocks reported of the last update
        self.checked = 0  # of the losses below, how many are known to be numbers
        self.told: Progress | None = None
        self.remarks: list[str] = []  # what a reader of the result has to know of this run
        self.losses: list[Tensor] = []  # one scalar per step, on the device

    def _build_model(self) -> Model:
        recipe = self.recipe
        stream = machine.DTYPES[self.dtype]
        model = Model(recipe.model, stream=stream, seed=recipe.train.seed)
        if stream is torch.float64:
            model = model.double()
        model = model.to(self.device)
        model.recompute = recipe.train.recompute == "layers"
        if self.compiled:
            config = torch._dynamo.config
            config.recompile_limit, config.fail_on_recompile_limit_hit = GRAPHS, True  # else it goes on without, unsaid
            model.compile_stages()
        return model

    def _build_graphs(self) -> Graphs | None:
        """Recordings of micro-batches, where there is a GPU of one's own to record."""
        wanted = self.recipe.machine.graphs == "auto" and self.device.startswith("cuda") and self.world.size == 1
        return Graphs(self.model, self._micro_batch) if wanted else None

    def anew(self) -> None:
        """Forget what was recorded: micro-batches are computed in another way from now on."""
        if self.graphs is not None:
            self.graphs.forget()

    def run(self, after_step: Callable[[], None] = lambda: None) -> None:
        """Updates until the budget is spent. ``after_step`` is called after each one, when its report has been made."""
        plan = self.recipe.train
        while not self._spent():
            began = time.perf_counter()
            self._update()
            last = self._spent_after(self._since(began))
            if self.step % plan.log_every == 0 or self.step == 1 or last:
                self._check_finite()
                self.world.check_equal(self.model.parameters())
                self.seconds += self._since(began)
                self._report(self._evaluated(last))
            else:
                self.seconds += self._since(began)
            after_step()

    def _since(self, began: float) -> float:
        """Seconds; where a decision hangs on them, by one clock for all processes."""
        own = time.perf_counter() - began
        return own if self.total is not None else self.world.of_first(own)

    def _spent(self) -> bool:
        return self._spent_after(0.0)

    def _spent_after(self, more: float) -> bool:
        if self.total is not None:
            return self.step >= self.total
        return self.seconds + more >= self.recipe.train.seconds

    def expected_steps(self) -> int:
        """The number of updates of the whole run; with a budget in seconds, the estimate at this moment."""
        if self.total is not None:
            return self.total
        share = self.seconds / self.recipe.train.seconds
        return max(self.step + 1, round(self.step / share)) if share > 0 and self.step else UNKNOWN

    def _update(self) -> None:
        """One update: micro-batches, clipping, optimizers, averages, and what the blocks do after a step."""
        recipe, step = self.recipe, self.step + 1
        self.model.train()
        nll, stats = with_less(self, lambda: self._gradients(step))
        self.world.sum_gradients(self.model.parameters())
        nll, *sums = self.world.sum([nll, *stats.values()])
        stats = dict(zip(stats, sums, strict=True))
        if recipe.train.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.train.clip)
        total = self.expected_steps()
        scale = self.schedule.scale(step, total)
        for optimizer in self.optimizers.values():
            optimizer.step(scale, step)
        self.model.zero_grad(set_to_none=True)
        self.model.after_step(stats)
        self.average.update(self.model, step, total, scale)
        self.losses.append(nll)
        self.step, self.scale, self.stats = step, scale, stats

    def _gradients(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradients of one update, into ``.grad``; of several processes, this one's part of the sum.

        Returns:
            the mean loss, a scalar, and what the blocks report, summed.
        """
        stats: dict[str, Tensor] = {}
        nll = torch.zeros((), device=self.device)
        self.model.zero_grad(set_to_none=True)
        for micro in range(self.accumulate):
            said = self._computed(self._given(step, micro), micro == 0)
            nll += said.nll
            gather(stats, said.stats)
            self._note_auxiliary(said.losses)
        return nll, stats

    def _computed(self, given: Given, first: bool) -> Said:
        """One micro-batch, call by call or recorded."""
        if self.graphs is None or self.graphs.refused:
            return self._micro_batch(given)
        self.signals.alive()
        said = self.graphs(given, first)
        if self.graphs.refused:
            self.remarks = [*self.remarks, f"not recorded as a CUDA graph: {self.graphs.refused}"[:240]]
        return said

    def _micro_batch(self, given: Given) -> Said:
        """Forward and backward; the gradients are added to ``.grad``."""
        parts = self.accumulate * self.world.size
        out = self.model(given.tokens, given.targets, segments=given.segments, noise=given.noise)
        mean = out.nll.mean() * given.scale
        (sum(out.losses.values(), mean) / parts).backward()
        return Said(mean.detach().float() / parts, {name: t.detach() for name, t in out.losses.items()}, out.stats)

    def _note_auxiliary(self, losses: dict[str, Tensor]) -> None:
        """Say that a loss which is no mean over tokens is another one where several processes share a micro-batch."""
        if self.world.size == 1 or not losses:
            return
        names, each = ", ".join(sorted(losses)), self.rows // self.world.size
        said = (
            f"auxiliary losses ({names}) of {each} of the {self.rows} rows of a micro-batch at a time, in each process"
        )
        if said not in self.remarks:
            self.remarks = [*self.remarks, said]

    def split(self, rows: int) -> None:
        """Make micro-batches of ``rows`` rows, and as many more of them that an update sees the same tokens."""
        self.accumulate = self.recipe.train.accumulate * self.recipe.train.batch // rows
        self.rows = self.batches.rows = rows
        self.batches.accumulate = self.accumulate
        self.anew()

    def peak_memory(self) -> int:
        """Bytes, those of earlier parts of an interrupted run and, at the last report, of other processes included."""
        return max(self.memory.read(), self.earlier_peak)

    def _given(self, step: int, micro: int) -> Given:
        taken = take(self.recipe, self.batches, step, micro, self.expected_steps())
        noise = noise_key(self.recipe.train.seed, step, micro, self.world.rank)
        put = [None if t is None else t.to(self.device, non_blocking=True) for t in (*taken, noise)]
        return Given(*put, self.batches.scale(step))

    def _check_finite(self) -> None:
        """Raise Diverged at the first step since the last look whose loss is no number."""
        recent = torch.stack(self.losses[self.checked :])
        bad = (~recent.isfinite()).nonzero()
        if len(bad):
            raise Diverged(self.checked + int(bad[0]) + 1)
        self.checked = len(self.losses)

    def _evaluated(self, last: bool) -> Score | None:
        every = self.recipe.train.evaluate_every
        if last or every is None or self.step % every or self.world.rank:
            return None
        n_tokens = self.recipe.evaluate.during_tokens
        return without_compiler(self, lambda: score(self.model, self.recipe, self.prepared, n_tokens))

    def _report(self, score: Score | None) -> None:
        every = self.recipe.train.log_every
        self.earlier_peak = int(self.world.most(self.peak_memory())[0])
        recent = self.losses[-((self.step - 1) % every + 1) :]
        tokens = self.step * tokens_per_step(self.recipe)
        progress = Progress(
            step=self.step,
            total=self.expected_steps(),
            loss=float(torch.stack(recent).double().mean()),
            lr=self.learning_rates()[0] * self.scale,
            tokens=tokens,
            tokens_per_second=tokens / self.seconds,
            elapsed=self.seconds,
            memory=self.peak_memory(),
            valid_bpb=None if score is None else score.bits_per_byte,
        )
        with writing(Path(getattr(self.log, "name", "log"))):
            line = {k: v for k, v in progress._asdict().items() if v is not None} | loads(self.stats)
            self.log.write(json.dumps(line) + "\n")
            self.log.flush()
        self.watch(progress)
        self.told = progress

    def scoring(self, what: str) -> None:
        """Tell the watcher how far scoring is."""
        if self.told is not None:
            self.watch(self.told._replace(scoring=what))

    def learning_rates(self) -> list[float]:
        """The base rates by role, that of matrices first."""
        order = sorted(self.optimizers, key=lambda role: role is not Role.MATRIX)
        return [self.optimizers[role].config.lr for role in order]

    def save(self, folder: Path) -> None:
        """The weights that were scored, and nothing else."""
        from zoo.checkpoint import save

        save(folder, self.step, dict(self.model.state_dict()), {"step": self.step})


def gather(total: dict[str, Tensor], new: dict[str, Tensor]) -> None:
    """Add one micro-batch's stats to the step's: figures are summed by name."""
    for name, value in new.items():
        total[name] = total[name] + value if name in total else value

"""Going on after an interruption: what a run keeps while it trains, when, and how it takes it up again.

Everything that the rest of a run depends on is kept: weights and buffers, optimizers, averages, the losses so far, the seconds
spent, the state of torch's generator, the size of a micro-batch. Batches, noise and rates follow from the number of the step
alone. So a run that goes on ends in the bits of one that was never interrupted, on the same device, dtype and threads. Of
processes that train together the first keeps and reads, since all hold the same but for their generators.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo import machine
from zoo.checkpoint import Checkpoint, join, latest, prune, save, writing
from zoo.core.part import ConfigError

if TYPE_CHECKING:
    from zoo.loop import Loop

FOLDER = "resume"  # in a trial's folder, until the trial is over
KEEP = 2  # the newest may be damaged


class Stopped(Exception):
    """A run that was asked to stop has been kept as it is."""


class Keeper:
    """Writes a run's checkpoints when they are due, and brings the newest whole one back.

    Args:
        loop: the run.
        folder: the trial's; the checkpoints go into ``resume/`` in it. None: in another process.
    """

    def __init__(self, loop: Loop, folder: Path | None) -> None:
        self.loop, self.folder = loop, None if folder is None else folder / FOLDER
        self.saved = time.monotonic()

    def restore(self) -> None:
        """Bring the run to where its newest whole checkpoint was, and its log with it; without one, begin an empty log.

        Raises:
            ConfigError: a checkpoint of another trial.
        """
        facts, tensors = self.loop.world.of_first_table(self._newest)
        if facts is not None:
            step, known, path = facts
            self._load(Checkpoint(step, tensors, known, path))
            self.loop.signals.say(f"goes on from step {step:,}")

    def _newest(self) -> tuple[tuple[int, dict[str, Any], Path] | None, dict[str, Tensor]]:
        """The newest checkpoint that the log is no shorter than, and the log cut to what it was then."""
        found = latest(self.folder)
        for complaint in found.complaints:
            self.loop.signals.say(complaint)
        kept = found.checkpoint
        length = 0 if kept is None else kept.facts["log"]
        log = self.loop.log
        if os.fstat(log.fileno()).st_size < length:
            self.loop.signals.say(f"checkpoint passed over: {kept.path}: the log beside it is shorter than it was")
            kept, length = None, 0
        with writing(self.folder):
            log.truncate(length)
        return (None, {}) if kept is None else ((kept.step, kept.facts, kept.path), kept.tensors)

    def after_step(self) -> None:
        """Keep the run as it is now, if it is time.

        Raises:
            Stopped: it was asked for.
            Unwritable: the disk is full or the folder cannot be written; earlier checkpoints stay.
        """
        stop, due = self.loop.world.most(self.loop.signals.stop(), self._due())
        if stop or due:
            self.keep()
        if stop:
            raise Stopped

    def _due(self) -> bool:
        plan, step = self.loop.recipe.train, self.loop.step
        if plan.checkpoint_every is not None and step % plan.checkpoint_every == 0:
            return True
        minutes = plan.checkpoint_minutes
        return minutes is not None and time.monotonic() - self.saved >= 60.0 * minutes

    def keep(self) -> None:
        """Write a checkpoint now."""
        loop, tensors = self.loop, _tensors(self.loop)
        self.saved = time.monotonic()
        if self.folder is None:
            return
        with writing(self.folder):
            loop.log.flush()
            length = os.fstat(loop.log.fileno()).st_size
            os.fsync(loop.log.fileno())  # the checkpoint must never know of more log than the disk
            facts = {
                "log": length,
                "seconds": loop.seconds,
                "checked": loop.checked,
                "rows": loop.rows,
                "compiled": loop.compiled,
                "remarks": loop.remarks,
                "memory": loop.peak_memory(),
                "machine": machine.facts(loop.device),
            }
            save(self.folder, loop.step, tensors, facts)
            prune(self.folder, KEEP)

    def _load(self, kept: Checkpoint) -> None:
        loop, facts = self.loop, kept.facts
        try:
            loop.model.load_state_dict(kept.section("model"), strict=True)
            for role, optimizer in loop.optimizers.items():
                optimizer.load(kept.section(f"optim/{role}"))
            loop.average.load(kept.section("average"))
        except (RuntimeError, ValueError) as fault:
            why = f"{kept.path}: not a checkpoint of this trial; delete it to begin again: {fault}"
            raise ConfigError(why) from None
        run = kept.section("run")
        loop.losses = list(run["losses"].to(loop.device).unbind())
        torch.set_rng_state(run["generator"][loop.world.rank].clone())  # torch wants one that begins its memory
        if "cuda_generator" in run:
            torch.cuda.set_rng_state(run["cuda_generator"][loop.world.rank].clone(), loop.device)
        loop.step, loop.seconds, loop.checked = kept.step, facts["seconds"], facts["checked"]
        loop.earlier_peak, loop.remarks = facts["memory"], facts["remarks"]
        loop.split(facts["rows"])
        if loop.compiled and not facts["compiled"]:
            loop.model.compile_stages(None)
            loop.compiled = False
        now = machine.facts(loop.device)
        if changed := [name for name, value in facts["machine"].items() if now.get(name) != value]:
            loop.remarks.append(f"trained in parts on different {', '.join(changed)}")


def _tensors(loop: Loop) -> dict[str, Tensor]:
    sections = {"model": loop.model.state_dict(), "average": loop.average.state()}
    sections |= {f"optim/{role}": optimizer.state() for role, optimizer in loop.optimizers.items()}
    run = {"losses": torch.stack(loop.losses), "generator": loop.world.gather(torch.get_rng_state())}
    if loop.device.startswith("cuda"):
        run["cuda_generator"] = loop.world.gather(torch.cuda.get_rng_state(loop.device))
    return join({**sections, "run": run})

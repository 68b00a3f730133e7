"""Schedules: constant, linear, cosine and warm-down, each after an optional linear warm-up.

Lengths (``warmup``, ``warmdown``) are whole numbers of updates, or a share of the run written as a fraction below 1; a
share is rounded down to whole updates. Updates are counted from 1, and update s of a warm-up of W runs at s / W.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BeforeValidator, Field

from zoo.core.part import ConfigError
from zoo.optim.slots import Schedule


def _length(value: object) -> object:
    """Tell updates (int) from shares (float below 1); 1.0 could be either, so it is neither."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number of updates such as 1000, or a share of the run such as 0.1")
    if isinstance(value, float) and not 0.0 <= value < 1.0:
        raise ValueError("a share of the run is below 1, a number of updates is a whole number without a point")
    if value < 0:
        raise ValueError("must not be negative")
    return value


Length = Annotated[int | float, BeforeValidator(_length)]
Factor = Annotated[float, Field(ge=0.0, le=1.0)]


def updates(length: int | float, total: int) -> int:
    """A length in updates: itself, or that share of ``total``, rounded down (but not by a rounding error)."""
    return length if isinstance(length, int) else math.floor(length * total + 1e-9)


class WarmedUp(Schedule):
    """s / W for the first W updates, then what the kind says."""

    class Config(Schedule.Config):
        """Knobs that survive a swap of schedule."""

        warmup: Length = 0  # updates, or share of the run

    def scale(self, step: int, total: int) -> float:
        warmup = updates(self.config.warmup, total)
        return step / warmup if step <= warmup else self.after(step, total, warmup)

    def after(self, step: int, total: int, warmup: int) -> float:
        """The factor of an update ``step`` > ``warmup``."""
        raise NotImplementedError

    def check(self, total: int) -> None:
        warmup = updates(self.config.warmup, total)
        if warmup > total:
            raise ConfigError(f"is longer than the run, which has {total} updates", "warmup", self.config.warmup)

    @staticmethod
    def progress(step: int, total: int, warmup: int) -> float:
        """How much of the updates after the warm-up is done with update ``step``: 1 at the last one."""
        return min(1.0, (step - warmup) / max(1, total - warmup))


class Constant(WarmedUp, kind="constant"):
    """The base rate throughout.

    Source: common practice; the baseline that the other schedules are measured against.
    """

    class Config(WarmedUp.Config):
        pass

    def after(self, step: int, total: int, warmup: int) -> float:
        return 1.0


class Decaying(WarmedUp):
    """What schedules share that run down to ``final`` over all updates after the warm-up."""

    class Config(WarmedUp.Config):
        """Knobs that survive a swap of decaying schedules."""

        final: Factor = 0.0  # factor of the last update


class Linear(Decaying, kind="linear"):
    """Straight from the peak to ``final`` at the last update: (N - s) / (N - W).

    Source: arXiv:1810.04805 (BERT); transformers ``get_linear_schedule_with_warmup``, whose count of past updates is s.
    """

    class Config(Decaying.Config):
        pass

    def after(self, step: int, total: int, warmup: int) -> float:
        return self.config.final + (1.0 - self.config.final) * (1.0 - self.progress(step, total, warmup))


class Cosine(Decaying, kind="cosine"):
    """Half a cosine from the peak to ``final`` at the last update.

    Source: arXiv:1608.03983 (SGDR), without restarts.
    """

    class Config(Decaying.Config):
        pass

    def after(self, step: int, total: int, warmup: int) -> float:
        wave = 0.5 * (1.0 + math.cos(math.pi * self.progress(step, total, warmup)))
        return self.config.final + (1.0 - self.config.final) * wave


class Warmdown(WarmedUp, kind="warmdown"):
    """The base rate, then straight down over the last W updates: (N - s + 1) / W, so the last one still moves by 1 / W.

    Source: KellerJordan/modded-nanogpt; arXiv:2405.18392 (constant rate with cooldown).
    """

    class Config(WarmedUp.Config):
        warmdown: Length = 0.5  # updates, or share of the run
        floor: Factor = 0.0  # the factor never falls below this

    def after(self, step: int, total: int, warmup: int) -> float:
        warmdown = updates(self.config.warmdown, total)
        left = max(1, total - step + 1)  # a total that is an estimate may already have been passed
        return max(self.config.floor, left / warmdown) if left < warmdown else 1.0

    def check(self, total: int) -> None:
        super().check(total)
        warmup, warmdown = updates(self.config.warmup, total), updates(self.config.warmdown, total)
        if warmup + warmdown > total:
            room = f"a warm-up of {warmup} and a run of {total} updates leave room for {total - warmup}"
            raise ConfigError(f"is longer than what remains: {room}", "warmdown", self.config.warmdown)

"""Scorer `sliding`: windows that overlap, so that every token sees a long past."""

from __future__ import annotations

import numpy as np
from pydantic import PositiveInt

from zoo.core.part import ConfigError
from zoo.scoring.slots import Scorer
from zoo.scoring.windows import Plan, Windowed


class Sliding(Windowed, kind="sliding"):
    """Windows of the model's context, ``stride`` tokens apart; each scores only the tokens that no earlier one has.

    Behind the first window every token sees at least context - stride tokens before it. With S the context, s the stride and
    N targets, windows start at 0, s, 2 s, ... for as long as start + S - s < N; the first scores all its targets, each later
    one those from start + S - s on. A window costs what a plain one does, so the whole costs S / s times as much.

    Source: Baevski and Auli, arXiv:1809.10853, section 4.3 (context and stride); parameter-golf scores its records at
    stride 64.
    """

    class Config(Scorer.Config):
        stride: PositiveInt = 64  # tokens; the model's context or less

    config: Config

    def check(self, n_tokens: int, context: int) -> None:
        check_stride(self.config.stride, n_tokens, context)

    def plan(self, n_targets: int, context: int) -> Plan:
        return strided(n_targets, context, self.config.stride)

    def first(self, target: int, context: int) -> int:
        return window_of(target, context, self.config.stride)


def check_stride(stride: int, n_tokens: int, context: int) -> None:
    """Whether such windows fit into a text.

    Raises:
        ConfigError: a stride beyond the context, or a text that does not fill one window.
    """
    if stride > context:
        raise ConfigError(f"exceeds the context of {context}: tokens would be left out", "stride", stride)
    if n_tokens <= context:
        raise ConfigError(
            f"the text has {n_tokens:,} tokens, which do not fill one window of {context:,} with a target for each: "
            "use plain, a longer text or a shorter context"
        )


def strided(n_targets: int, context: int, stride: int) -> Plan:
    """The windows of a stride."""
    starts = np.arange(0, max(1, n_targets - context + stride), stride)
    scored = np.where(starts > 0, starts + context - stride, 0)
    return Plan(starts, scored, np.minimum(starts + context, n_targets))


def window_of(target: int, context: int, stride: int) -> int:
    """Where the window begins that scores ``target``."""
    return 0 if target < context else ((target - context) // stride + 1) * stride

"""Scorer `plain`: the text in windows that do not overlap."""

from __future__ import annotations

import numpy as np

from zoo.scoring.windows import Plan, Windowed


class Plain(Windowed, kind="plain"):
    """Every token once, in windows side by side; a window's first tokens see little before them.

    The result is the length of a code: each token is predicted from tokens before it, in its own window.

    Source: the usual evaluation of GPT-2, Radford et al. 2019.
    """

    def plan(self, n_targets: int, context: int) -> Plan:
        starts = np.arange(0, n_targets, context)
        return Plan(starts, starts, np.minimum(starts + context, n_targets))

    def first(self, target: int, context: int) -> int:
        return target // context * context

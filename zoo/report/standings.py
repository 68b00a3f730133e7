"""Who leads while a grid still runs."""

from __future__ import annotations

import math

from zoo.report.lines import cut
from zoo.report.units import signed, significant
from zoo.trials.run import Outcome

NAME = 40  # characters of an arm's name


class Standings:
    """Mean bits per byte of every arm over the seeds that are done, beside the baseline's over the same seeds.

    Args:
        baseline: the arm that others are compared with.
    """

    def __init__(self, baseline: str) -> None:
        self.baseline = baseline
        self.scores: dict[str, dict[int, float]] = {}

    def add(self, outcome: Outcome) -> None:
        """Take in a trial that is over; only one that is done counts, and only scores that are lengths of codes."""
        result = outcome.result
        recipe = outcome.trial.recipe
        if result.status == "done" and result.bits_per_byte is not None and recipe.evaluate.scorer.part.code_length:
            self.scores.setdefault(outcome.trial.arm.name, {})[result.seed] = result.bits_per_byte

    def line(self, most: int = 4) -> str:
        """``so far: mla 2.4012 (-0.0123), gqa 2.4135``; nothing before two arms have a score."""
        if len(self.scores) < 2:
            return ""
        means = {arm: math.fsum(scores.values()) / len(scores) for arm, scores in self.scores.items()}
        leaders = sorted(means, key=means.get)[:most]
        shown = leaders if self.baseline in leaders or self.baseline not in means else [*leaders, self.baseline]
        more = len(means) - len(shown)
        said = ", ".join(f"{cut(arm, NAME)} {significant(means[arm])}{self._beside(arm)}" for arm in shown)
        return f"so far: {said}{f', and {more} more' if more > 0 else ''}"

    def _beside(self, arm: str) -> str:
        """The difference to the baseline over the seeds that both have, in brackets."""
        theirs, own = self.scores.get(self.baseline, {}), self.scores[arm]
        both = own.keys() & theirs.keys()
        if arm == self.baseline or not both:
            return ""
        return f" ({signed(math.fsum(own[seed] - theirs[seed] for seed in both) / len(both))})"

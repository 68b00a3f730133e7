"""The columns of further scorers: each has its own, so that test-time figures never stand among plain ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from zoo.result import Result

NO_CODE = "not a code length"


def heading(label: str, code_length: bool) -> str:
    """What stands above a scorer's column; it says so where no code has the lengths below it."""
    return f"{label} bits/byte" if code_length else f"{label} ({NO_CODE})"


def score_headings(results: Iterable[Result]) -> dict[str, str]:
    """The heading of each further scorer that any of ``results`` knows, by its label, in the order of their first mention."""
    return {label: heading(label, scored.code_length) for result in results for label, scored in result.scores.items()}


def mean_scores(results: Iterable[Result], headings: Mapping[str, str]) -> tuple[tuple[str, float | None], ...]:
    """One arm's mean bits per byte under each heading; None where none of its trials that are done has that score."""
    done = [result for result in results if result.status == "done"]
    found = []
    for label, words in headings.items():
        values = [result.scores[label].bits_per_byte for result in done if label in result.scores]
        found.append((words, math.fsum(values) / len(values) if values else None))
    return tuple(found)

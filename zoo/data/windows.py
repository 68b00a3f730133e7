"""Which stretches of a token stream are rows: windows side by side, or whole documents; and which group a row is drawn from."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

BLOCK = 2**22  # tokens looked at together
DRAWS = 4096  # rows whose groups are drawn together


class Group(NamedTuple):
    """A stretch of the training stream that is drawn from with a weight of its own."""

    start: int  # tokens
    stop: int
    weight: float


class SideBySide:
    """Windows of ``context`` inputs one behind the other, across documents; what is left at the end is not used."""

    def __init__(self, start: int, stop: int, context: int) -> None:
        self.start, self.context = start, context
        self.count = max(0, (stop - start - 1) // context)
        self.unused = stop - start - 1 - self.count * context  # tokens

    def place(self, row: int) -> tuple[int, int]:
        """Where a row begins in the stream, and how many of its inputs are text."""
        return self.start + row * self.context, self.context


class WholeDocuments:
    """Rows of whole documents, as many in order as fit; a longer one gives its first ``context`` tokens, the rest is cut.

    The last target of a row is the token after it in the stream: the bos that ends its last document.
    """

    def __init__(self, tokens: np.ndarray, start: int, stop: int, context: int, bos: int) -> None:
        self.context = context
        edges = np.append(document_starts(tokens, start, stop, bos), stop - 1)
        starts, lengths, i = [], [], 0
        reach = (
            np.searchsorted(edges, edges + context, side="right") - 1
        )  # the last edge within a row from each edge on
        while i < len(edges) - 1:
            last = max(int(reach[i]), i + 1)
            length = min(context, int(edges[last] - edges[i]))
            if length:
                starts.append(int(edges[i]))
                lengths.append(length)
            i = last
        self.starts, self.lengths = np.array(starts, np.int64), np.array(lengths, np.int64)
        self.count = len(starts)
        self.unused = stop - 1 - start - int(self.lengths.sum())  # tokens

    def place(self, row: int) -> tuple[int, int]:
        """Where a row begins in the stream, and how many of its inputs are text."""
        return int(self.starts[row]), int(self.lengths[row])


def document_starts(tokens: np.ndarray, start: int, stop: int, bos: int) -> np.ndarray:
    """Where documents begin between ``start`` and ``stop``."""
    found = [np.flatnonzero(np.asarray(tokens[i : min(i + BLOCK, stop)]) == bos) + i for i in range(start, stop, BLOCK)]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


class Draw:
    """Which group the rows of a run come from: row ``n`` from group g with probability proportional to g's weight.

    The seed and the number alone decide.
    """

    def __init__(self, weights: tuple[float, ...], seed: int) -> None:
        self.edges = np.cumsum(weights) / np.sum(weights)
        self.seed = seed
        self.before = [np.zeros(len(weights), np.int64)]  # how often each group was drawn before each block
        self.block, self.drawn = -1, np.zeros(0, np.int64)

    def __call__(self, n: int) -> tuple[int, int]:
        """The group of row ``n``, and how many rows before it came from that group."""
        block, place = divmod(n, DRAWS)
        while len(self.before) <= block:
            self._enter(len(self.before) - 1)
            counts = np.bincount(self.drawn, minlength=len(self.edges))
            self.before.append(self.before[-1] + counts)
        self._enter(block)
        group = int(self.drawn[place])
        return group, int(self.before[block][group] + (self.drawn[:place] == group).sum())

    def _enter(self, block: int) -> None:
        if block != self.block:
            uniform = generator(f"{self.seed} groups {block}").random_sample(DRAWS)
            self.block, self.drawn = (
                block,
                np.searchsorted(self.edges, uniform, side="right").clip(max=len(self.edges) - 1),
            )


def generator(name: str) -> np.random.RandomState:
    """Random numbers that the name decides; numpy promises never to change this generator's stream."""
    return np.random.RandomState(np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint32))

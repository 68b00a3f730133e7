"""An arithmetic coder in whole numbers, and the frequencies it works with.

Source: Witten, Neal and Cleary, Communications of the ACM 30(6), 1987.
"""

from __future__ import annotations

import numpy as np

from zoo.core.part import ConfigError

TOTAL_BITS = 16
TOTAL = 1 << TOTAL_BITS  # what the frequencies of one choice sum to
BITS = 32  # of the interval's ends
WHOLE, HALF, QUARTER = 1 << BITS, 1 << (BITS - 1), 1 << (BITS - 2)


class Encoder:
    """Narrows an interval choice by choice, and writes the bits that its two ends share."""

    def __init__(self) -> None:
        self.low, self.high = 0, WHOLE - 1
        self.waiting = 0  # bits that will be the opposite of the next one
        self.bits = bytearray()  # one bit each

    def put(self, start: int, size: int) -> None:
        """The choice that has ``size`` of ``TOTAL``, behind ``start`` of others."""
        span = self.high - self.low + 1
        self.low, self.high = (
            self.low + (span * start >> TOTAL_BITS),
            self.low + (span * (start + size) >> TOTAL_BITS) - 1,
        )
        while True:
            if self.high < HALF:
                self._bit(0)
                shift = 0
            elif self.low >= HALF:
                self._bit(1)
                shift = HALF
            elif self.low >= QUARTER and self.high < HALF + QUARTER:
                self.waiting += 1
                shift = QUARTER
            else:
                return
            self.low, self.high = (self.low - shift) << 1, ((self.high - shift) << 1) | 1

    def finish(self) -> bytes:
        """The code: whole bytes, those at the end left out that a reader takes for zeros anyway."""
        self.waiting += 1
        self._bit(0 if self.low < QUARTER else 1)
        return np.packbits(np.frombuffer(self.bits, np.uint8)).tobytes().rstrip(b"\0")

    def _bit(self, bit: int) -> None:
        self.bits.append(bit)
        self.bits += bytes([1 - bit]) * self.waiting
        self.waiting = 0


class Decoder:
    """The same interval, narrowed by what the code says."""

    def __init__(self, code: bytes) -> None:
        self.bits = np.unpackbits(np.frombuffer(code, np.uint8)).tolist()
        self.at = 0
        self.low, self.high, self.value = 0, WHOLE - 1, 0
        for _ in range(BITS):
            self._take()

    def get(self, starts: np.ndarray) -> int:
        """Which choice comes next; ``starts`` (K + 1,) are the cumulated frequencies, from 0 to ``TOTAL``."""
        span = self.high - self.low + 1
        share = (((self.value - self.low + 1) << TOTAL_BITS) - 1) // span
        found = int(np.searchsorted(starts, share, side="right")) - 1
        start, end = int(starts[found]), int(starts[found + 1])
        self.low, self.high = self.low + (span * start >> TOTAL_BITS), self.low + (span * end >> TOTAL_BITS) - 1
        while True:
            if self.high < HALF:
                shift = 0
            elif self.low >= HALF:
                shift = HALF
            elif self.low >= QUARTER and self.high < HALF + QUARTER:
                shift = QUARTER
            else:
                return found
            self.low, self.high = (self.low - shift) << 1, ((self.high - shift) << 1) | 1
            self.value -= shift
            self._take()

    def _take(self) -> None:
        self.value = (self.value << 1) | (self.bits[self.at] if self.at < len(self.bits) else 0)
        self.at += 1


def frequencies(shares: np.ndarray) -> np.ndarray:
    """Whole numbers (K,) of at least 1 that sum to ``TOTAL``, near ``shares`` (K,), which need not sum to one.

    Raises:
        ConfigError: shares that are no numbers, or more than ``TOTAL``.
    """
    total = float(shares.sum())
    if not np.isfinite(total) or float(shares.min()) < 0:
        raise ConfigError("the model's probabilities are no numbers: nothing can be coded with them")
    if len(shares) > TOTAL:
        raise ConfigError(f"{len(shares):,} choices at once do not fit into {TOTAL:,} frequencies")
    even = np.full(len(shares), 1 / len(shares)) if total == 0 else shares / total
    found = np.floor(even * (TOTAL - len(shares))).astype(np.int64) + 1
    found[int(np.argmax(found))] += TOTAL - int(found.sum())
    return found


class Choices:
    """A token as two choices, a group of neighbouring ids and one id in it: each has few members, so that none of the
    ``TOTAL`` frequencies is wasted on a vocabulary of tokens that will not come.

    Args:
        probabilities: (V,) fp64.
    """

    def __init__(self, probabilities: np.ndarray) -> None:
        self.probabilities = probabilities
        self.width = -int(-(len(probabilities) ** 0.5) // 1)  # ids in a group
        edges = np.arange(0, len(probabilities), self.width)
        self.groups = _starts(np.add.reduceat(probabilities, edges))

    def within(self, group: int) -> np.ndarray:
        """The cumulated frequencies of the ids in a group."""
        return _starts(self.probabilities[group * self.width : (group + 1) * self.width])


def _starts(shares: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(frequencies(shares))])

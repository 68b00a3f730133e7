"""Counts of contexts and of what followed them, exact: for a whole stream at once, and one token at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Level(NamedTuple):
    """What was known of contexts of ``width`` tokens when the tokens behind them were scored, before each was counted itself.

    Only places whose context occurs more than once in the stream are listed: nothing is ever known of the others.
    """

    width: int
    places: np.ndarray  # (M,) positions in the stream of the tokens that are scored
    seen: np.ndarray  # (M,) n: how often the context had been seen
    kinds: np.ndarray  # (M,) t: how many different tokens had followed it
    hits: np.ndarray  # (M,) c: how often this very token had


def levels(tokens: np.ndarray, widths: range, vocab_size: int) -> Iterator[Level]:
    """Levels by rising width, each token of the stream scored first and counted then.

    One sort for each width, and no loop over tokens. A context of w + 1 tokens is a known gram of the width before: grams
    are numbered, so that the key of the next one is a number and a token, and places that have become unique drop out. How
    often a context had been seen is how often that gram had been hit. Time is that of sorting; memory at most about 60 bytes
    a token beside the stream, at the first width.

    Args:
        tokens: (N,) ids below ``vocab_size``; the first is given and never scored.
        widths: rising by one, from 1 on; smaller ones than ``widths.start`` are worked through in silence.
        vocab_size: V.
    """
    n = len(tokens)
    order, fresh = _grouped(np.asarray(tokens, np.int64))
    for width in range(1, widths.stop):
        order, fresh = _recurring(order, fresh, n)
        if not len(order):
            return
        places = order + 1
        key = np.cumsum(fresh, dtype=np.int64)  # the number of the context, (M,), rising
        key *= vocab_size
        key += tokens[places]
        within, new = _grouped(key)  # sorted by context, token, place
        del key
        hits = np.empty_like(within)
        hits[within] = _ranks(new)
        if width >= widths.start:
            yield Level(width, places, _ranks(fresh), _firsts(hits, fresh), hits)
        order, fresh = places[within], new


def _grouped(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places (M,) of ``keys`` in a stable sort, and whether each opens a group of equal keys.

    Sorting a key and its place as one number is several times as fast as asking for the order of the keys.
    """
    bits = max(1, len(keys) - 1).bit_length()
    if not len(keys) or int(keys.max()).bit_length() + bits > 63:
        places = np.argsort(keys, kind="stable")
        ordered = keys[places]
    else:
        packed = keys << bits
        packed |= np.arange(len(keys))
        packed.sort()
        places = (packed & ((1 << bits) - 1)).astype(_small(len(keys)))
        packed >>= bits
        ordered = packed
    fresh = np.ones(len(keys), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=fresh[1:])
    return places, fresh


def _recurring(order: np.ndarray, fresh: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups without the stream's last token, behind which nothing stands, and only those that have two members left."""
    last = np.flatnonzero(order == n - 1)  # also the last of its group, so that no other one's opening goes with it
    order, fresh = np.delete(order, last), np.delete(fresh, last)
    alone = fresh & np.append(fresh[1:], True)
    return order[~alone], fresh[~alone]


def _starts(fresh: np.ndarray) -> np.ndarray:
    """Where each member's group begins, (M,)."""
    first = np.flatnonzero(fresh).astype(_small(len(fresh)))
    return np.repeat(first, np.diff(first, append=len(fresh)))


def _ranks(fresh: np.ndarray) -> np.ndarray:
    """Each member's place within its group, from 0."""
    ranks = np.arange(len(fresh), dtype=_small(len(fresh)))
    ranks -= _starts(fresh)
    return ranks


def _firsts(hits: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """How many members before each one, in its group, were the first of their kind."""
    before = np.cumsum(hits == 0, dtype=hits.dtype)
    before -= hits == 0
    return before - before[_starts(fresh)]


def _small(n: int) -> type[np.signedinteger]:
    """What holds numbers up to ``n``: half of the memory where that is enough."""
    return np.int32 if n < 2**31 else np.int64


class Counts:
    """The same counts in dictionaries, one token at a time.

    Args:
        widths: of the contexts.
    """

    def __init__(self, widths: range) -> None:
        self.widths = widths
        self.tokens: list[int] = []
        self.followed: dict[tuple[int, ...], dict[int, int]] = {}  # by context

    def add(self, token: int) -> None:
        """Count ``token`` behind the contexts that it stands behind, and go on."""
        for context in self._contexts():
            after = self.followed.setdefault(context, {})
            after[token] = after.get(token, 0) + 1
        self.tokens.append(token)
        del self.tokens[: -self.widths.stop]

    def now(self) -> list[dict[int, int]]:
        """What has followed the present contexts, by rising width, for those that have been seen."""
        return [self.followed[context] for context in self._contexts() if context in self.followed]

    def _contexts(self) -> list[tuple[int, ...]]:
        return [tuple(self.tokens[-w:]) for w in self.widths if w <= len(self.tokens)]

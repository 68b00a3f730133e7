"""Text that stands on both sides of a split, found in one pass and in memory that does not grow with the training text.

Of every document a few 64-bit marks are kept: one of the whole text, and one of each stretch of WIDTH bytes behind an anchor,
which the content alone chooses (about one place in EVERY). Copies share the first kind, near copies most of the second.
Training marks go to a file; at the end the marks of the few validation documents are looked up in it, block by block.

Source: content-chosen fingerprints, Manber 1994; copies between training and test text, Lee et al., arXiv:2107.06499.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

WIDTH = 48  # bytes of a stretch
EVERY = 64  # a power of two: one place in so many is an anchor
ENOUGH = 4  # stretches that a document must have before some of them can make it a near copy
BLOCK = 2**20  # marks, or bytes of text, looked at together
_ANCHOR, _MIX = np.uint32(2_654_435_761), np.uint64(0x9E37_79B9_7F4A_7C15)
_FACTORS = np.random.RandomState(0).randint(1, 2**63, WIDTH // 8, dtype=np.uint64) | np.uint64(1)


def marks(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Marks of documents, (M,) uint64, and the number of the document (M,) that each is of; first those of whole texts."""
    whole = np.frombuffer(b"".join(hashlib.sha256(text).digest()[:8] for text in texts), np.uint64)
    joined = np.frombuffer(b"".join(texts), np.uint8)
    ends = np.cumsum([len(text) for text in texts])
    places = np.concatenate([np.zeros(0, np.int64), *_anchors(joined)])
    owners = np.searchsorted(ends, places, side="right")
    inside = places + WIDTH <= ends[owners] if len(places) else np.zeros(0, bool)
    places, owners = places[inside], owners[inside]
    stretches = np.concatenate([np.zeros(0, np.uint64), *_stretches(joined, places)])
    return np.concatenate([whole, stretches]), np.concatenate([np.arange(len(texts)), owners])


def _anchors(text: np.ndarray) -> Iterator[np.ndarray]:
    """Where four bytes hash to zero, by blocks, so that a text of any length takes little memory."""
    places = len(text) - WIDTH + 1
    for start in range(0, places, BLOCK):
        n, found = min(BLOCK, places - start), []
        for offset in range(4):  # words that begin at every fourth byte need no arithmetic to be read
            n_words = (n - offset + 3) // 4
            words = text[start + offset : start + offset + 4 * n_words].copy().view("<u4")
            found.append(4 * np.flatnonzero(words * _ANCHOR < 2**32 // EVERY) + offset)
        yield start + np.sort(np.concatenate(found))


def _stretches(text: np.ndarray, places: np.ndarray) -> Iterator[np.ndarray]:
    """A hash of WIDTH bytes at each place."""
    step = BLOCK // EVERY
    for i in range(0, len(places), step):
        words = text[places[i : i + step, None] + np.arange(WIDTH)].view(np.uint64)  # (n, WIDTH / 8)
        words = (words ^ words >> np.uint64(29)) * _FACTORS
        total = (words ^ words >> np.uint64(32)).sum(1, dtype=np.uint64) * _MIX
        yield total ^ total >> np.uint64(31)


class Copies(NamedTuple):
    """Which of some documents are (nearly) training documents, by number."""

    exact: tuple[int, ...]
    near: tuple[int, ...]

    def __bool__(self) -> bool:
        return bool(self.exact or self.near)


def find_copies(texts: Sequence[bytes], seen: Path, near: float) -> Copies:
    """The documents whose whole text, or more than a share ``near`` of whose stretches, stand among the marks in ``seen``.

    Args:
        texts: documents.
        seen: a file of training marks, uint64.
        near: 1 finds copies only.
    """
    if not texts:
        return Copies((), ())
    found, owners = marks(texts)
    wanted = np.unique(found)
    hit = np.zeros(len(wanted), bool)
    for block in _blocks(seen):
        place = np.minimum(np.searchsorted(wanted, block), len(wanted) - 1)
        hit[place[wanted[place] == block]] = True
    known = hit[np.searchsorted(wanted, found)]
    exact = np.flatnonzero(known[: len(texts)])
    total, shared = (
        np.bincount(owners[len(texts) :], weights, minlength=len(texts)) for weights in (None, known[len(texts) :])
    )
    close = (total >= ENOUGH) & (shared > near * total)
    close[exact] = False
    return Copies(tuple(exact.tolist()), tuple(np.flatnonzero(close).tolist()))


def _blocks(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        while raw := file.read(8 * BLOCK):
            yield np.frombuffer(raw, np.uint64)

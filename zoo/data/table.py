"""What tokenizers share: a table of bytes per id, and bytes per occurrence where no such table can be exact."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from zoo.data.slots import Tokenizer


class Bytewise(Tokenizer):
    """A tokenizer with a table ``pieces``: the bytes that each id stands for, b"" for special tokens."""

    pieces: list[bytes]

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def decode(self, ids: Iterable[int]) -> str:
        numbers = ids.tolist() if isinstance(ids, np.ndarray) else map(int, ids)
        return b"".join(map(self.pieces.__getitem__, numbers)).decode("utf-8", errors="replace")

    def byte_lengths(self) -> np.ndarray:
        return np.fromiter(map(len, self.pieces), np.int32, len(self.pieces))


def tile(ends: np.ndarray, n_bytes: int) -> np.ndarray:
    """Share all ``n_bytes`` of a text among its tokens, (T,) int64, from the byte offset at which each token ends.

    A token covers what lies between the end of its predecessor and its own end, so text that a tokenizer drops goes to the
    token after it, and text dropped at the end to the last token.
    """
    if not len(ends):
        return np.zeros(0, np.int64)
    edges = np.maximum.accumulate(np.asarray(ends, np.int64))
    edges[-1] = n_bytes
    return np.diff(edges, prepend=0)


def byte_offsets(text: str) -> np.ndarray:
    """(characters + 1,) int64: the byte at which each character of ``text`` begins in UTF-8, and the total."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points > 0x7F) + (points > 0x7FF).astype(np.int64) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(widths)])

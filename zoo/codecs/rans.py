"""A range coder over bytes: rANS with many interleaved states, so that numpy codes a thousand symbols at a time.

Integers only, in stated widths and byte order: the same bytes on every machine. A state x stays within [2^16, 2^32); a symbol
of frequency f (of 2^14) that starts at c takes x to (x // f) 2^14 + c + x mod f, and words of 16 bits leave the state before
it grows too large. Symbols are coded last to first and come back first to last; symbol i belongs to state i mod (number of
states).

Source: arXiv:1311.2540 (asymmetric numeral systems); arXiv:1402.3392 (interleaved states).
"""

from __future__ import annotations

import numpy as np

BITS = 14  # frequencies add up to 2^14
TOTAL, LOWEST = 1 << BITS, 1 << 16
MOST_LANES, SYMBOLS_PER_LANE = 1024, 4096  # a state costs about 3 bytes, a step of all states some Python


def frequencies(counts: np.ndarray) -> np.ndarray:
    """(K, A) counts -> (K, A) uint16 that add up to 2^14 in each row; what occurs gets at least 1. A <= 2^14.

    A row without counts says that its first symbol is certain.
    """
    counts = np.asarray(counts, np.int64).copy()
    counts[counts.sum(1) == 0, 0] = 1
    found = np.where(counts > 0, np.maximum(1, counts * TOTAL // counts.sum(1, keepdims=True)), 0)
    for row in found:
        while (excess := int(row.sum()) - TOTAL) > 0:  # many rare symbols, each raised to 1: the frequent ones pay
            largest = int(row.argmax())
            row[largest] -= min(excess, max(1, int(row[largest]) // 2))
        row[int(row.argmax())] -= excess
    return found.astype(np.uint16)


def encode(symbols: np.ndarray, tables: np.ndarray, freqs: np.ndarray) -> bytes:
    """Symbols (S,) under the tables (S,) that each is to be coded by; ``freqs`` is (K, A), see ``frequencies``."""
    n_lanes = lanes(len(symbols))
    flat, starts = freqs.astype(np.int64).reshape(-1), _starts(freqs).reshape(-1)
    places = tables.astype(np.int32) * freqs.shape[1] + symbols
    state = np.full(n_lanes, LOWEST, np.int64)
    words: list[np.ndarray] = []
    for begin in reversed(range(0, len(symbols), n_lanes)):
        at = places[begin : begin + n_lanes]
        f, x = flat[at], state[: len(at)]
        full = x >= f << (32 - BITS)
        words.append((x[full] & 0xFFFF).astype("<u2"))
        x = np.where(full, x >> 16, x)
        state[: len(at)] = (x // f << BITS) + x % f + starts[at]
    words.append(state.astype("<u4").view("<u2"))
    return b"".join(w.tobytes() for w in reversed(words))


def decode(data: bytes, tables: np.ndarray, freqs: np.ndarray) -> np.ndarray:
    """Symbols (S,) uint8: the inverse of ``encode``.

    Raises:
        ValueError: data that was not encoded with these tables.
    """
    n, n_lanes = len(tables), lanes(len(tables))
    if (freqs.sum(1, dtype=np.int64) != TOTAL).any() or len(data) < 4 * n_lanes or len(data) % 2:
        raise ValueError("not what the range coder wrote")
    flat, starts, symbol_at = freqs.astype(np.int64).reshape(-1), _starts(freqs).reshape(-1), _symbols(freqs)
    state = np.frombuffer(data[: 4 * n_lanes], "<u4").astype(np.int64)
    words, read = np.frombuffer(data[4 * n_lanes :], "<u2").astype(np.int64), 0
    found = np.empty(n, np.uint8)
    for begin in range(0, n, n_lanes):
        table = tables[begin : begin + n_lanes].astype(np.int32)
        x = state[: len(table)]
        slot = x & (TOTAL - 1)
        symbol = symbol_at[(table << BITS) + slot]
        at = table * freqs.shape[1] + symbol
        x = flat[at] * (x >> BITS) + slot - starts[at]
        low = np.flatnonzero(x < LOWEST)
        if read + len(low) > len(words):
            raise ValueError("ends before all symbols are decoded")
        x[low] = x[low] << 16 | words[read : read + len(low)]
        read += len(low)
        state[: len(table)] = x
        found[begin : begin + n_lanes] = symbol
    if read != len(words) or (state != LOWEST).any():
        raise ValueError("goes on after all symbols are decoded")
    return found


def lanes(n_symbols: int) -> int:
    """How many states code so many symbols."""
    return max(1, min(MOST_LANES, n_symbols // SYMBOLS_PER_LANE))


def _starts(freqs: np.ndarray) -> np.ndarray:
    """(K, A): where each symbol's stretch begins."""
    wide = freqs.astype(np.int64)
    return wide.cumsum(1) - wide


def _symbols(freqs: np.ndarray) -> np.ndarray:
    """(K 2^14,) uint8: the symbol of each slot, table after table."""
    alphabet = np.arange(freqs.shape[1], dtype=np.uint8)
    return np.concatenate([np.repeat(alphabet, row) for row in freqs.astype(np.int64)])

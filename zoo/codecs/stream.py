"""Streams: bytes in stretches (rows of a matrix, say), each stretch under the one of several shared tables that suits it.

Rows of one matrix differ in spread, so one table for all wastes bits, and one for each row costs more than it saves. The
tables are found by moving every row to the table under which it is shortest and making each table anew from its rows, for
1, 2, 4 ... tables; the shortest sum of codes, choices and tables wins.

A stream is one byte and what follows from it: 0: the bytes as they are. 1: number of tables, smallest symbol, alphabet size
less one (a byte each); length (uint32) and bytes of the tables (uint16 frequencies, deflated); length (uint32) and bytes of
the choices (a stream; nothing where there is one table); the range coder's words. All integers are little-endian.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

import numpy as np

from zoo.codecs import rans

MOST_TABLES = 32
ROUNDS = 6  # of moving rows to tables
TABLE_BITS = 10  # a guess at what one frequency costs in the file


class Stream(NamedTuple):
    """Encoded bytes, and what each stretch costs of them (R,), tables left out."""

    data: bytes
    costs: np.ndarray


def pack(symbols: np.ndarray, lengths: np.ndarray) -> Stream:
    """Encode symbols (S,) uint8 in stretches of ``lengths`` (R,), whose sum is S."""
    symbols, lengths = np.ascontiguousarray(symbols, np.uint8), np.asarray(lengths, np.int64)
    plain = Stream(b"\0" + symbols.tobytes(), lengths.astype(np.float64))
    if not len(symbols):
        return plain
    least, alphabet = int(symbols.min()), int(symbols.max()) - int(symbols.min()) + 1
    counts = _counts(symbols - np.uint8(least), lengths, alphabet)
    choice = _tables(counts)
    freqs = rans.frequencies(_sums(counts, choice))
    bits = -(counts * np.log2(np.maximum(freqs, 1)[choice] / rans.TOTAL)).sum(1)
    tables = zlib.compress(freqs.astype("<u2").tobytes(), 9)
    choices = pack(choice.astype(np.uint8), np.array([len(choice)])).data if len(freqs) > 1 else b""
    words = rans.encode(symbols - np.uint8(least), np.repeat(choice.astype(np.uint8), lengths), freqs)
    head = struct.pack("<BBBB", 1, len(freqs), least, alphabet - 1)
    data = b"".join((head, _framed(tables), _framed(choices), words))
    return Stream(data, bits / 8) if len(data) < len(plain.data) else plain


def unpack(data: bytes, lengths: np.ndarray) -> np.ndarray:
    """Symbols (S,) uint8: the inverse of ``pack``.

    Raises:
        ValueError: bytes that ``pack`` did not make from such stretches.
    """
    lengths = np.asarray(lengths, np.int64)
    n = int(lengths.sum())
    if data[:1] == b"\0":
        if len(data) != n + 1:
            raise ValueError(f"{len(data) - 1:,} bytes stand for {n:,} symbols")
        return np.frombuffer(data, np.uint8, offset=1)
    try:
        _, n_tables, least, top = struct.unpack_from("<BBBB", data)
        tables, rest = unframed(data[4:])
        choices, words = unframed(rest)
        freqs = np.frombuffer(zlib.decompress(tables), "<u2").reshape(n_tables, top + 1)
    except (struct.error, zlib.error) as fault:
        raise ValueError(f"no stream: {fault}") from None
    one = np.array([len(lengths)])
    choice = unpack(choices, one) if n_tables > 1 else np.zeros(len(lengths), np.uint8)
    return rans.decode(words, np.repeat(choice, lengths), freqs) + np.uint8(least)


def unframed(data: bytes) -> tuple[bytes, bytes]:
    """The first of several byte strings that stand behind their lengths, and what follows it.

    Raises:
        ValueError: fewer bytes than the length says.
    """
    if len(data) < 4 or len(data) - 4 < (length := int.from_bytes(data[:4], "little")):
        raise ValueError("ends early")
    return data[4 : 4 + length], data[4 + length :]


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def join(streams: list[bytes]) -> bytes:
    """Several byte strings as one, each behind its length."""
    return b"".join(map(_framed, streams))


def _counts(symbols: np.ndarray, lengths: np.ndarray, alphabet: int) -> np.ndarray:
    """(R, A): how often each symbol occurs in each stretch."""
    row = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    return np.bincount(row * alphabet + symbols, minlength=len(lengths) * alphabet).reshape(-1, alphabet)


def _tables(counts: np.ndarray) -> np.ndarray:
    """(R,): the number of the table for each stretch; tables are numbered without gaps."""
    best = np.zeros(len(counts), np.int64)
    shortest = _length(counts, best)
    spread = np.abs(np.arange(counts.shape[1]) - (counts.shape[1] - 1) / 2)
    mean = counts @ spread / np.maximum(1, counts.sum(1))
    order = np.argsort(np.argsort(mean, kind="stable"), kind="stable")
    n_tables = 2
    while n_tables <= min(MOST_TABLES, len(counts)):
        choice = order * n_tables // len(counts)
        for _ in range(ROUNDS):
            _, choice = np.unique(choice, return_inverse=True)
            sums = _sums(counts, choice)
            share = (sums + 0.05) / (sums + 0.05).sum(1, keepdims=True)
            choice = (counts @ -np.log2(share).T).argmin(1)
        _, choice = np.unique(choice, return_inverse=True)
        if (length := _length(counts, choice)) < shortest:
            best, shortest = choice, length
        n_tables *= 2
    return best


def _sums(counts: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """(K, A): the counts of each table's stretches; every one of the K tables is chosen by some stretch."""
    order = np.argsort(choice, kind="stable")
    return np.add.reduceat(counts[order], np.searchsorted(choice[order], np.arange(choice.max() + 1)))


def _length(counts: np.ndarray, choice: np.ndarray) -> float:
    """Bits of codes, choices and tables."""
    sums = _sums(counts, choice)
    chosen = np.bincount(choice).astype(np.float64)
    return entropy_bits(sums) + entropy_bits(chosen[None]) + TABLE_BITS * np.count_nonzero(sums)


def entropy_bits(counts: np.ndarray) -> float:
    """(K, A) counts -> bits of all of them under each row's own shares: the floor of a code with one table a row."""
    totals = counts.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(counts > 0, counts * np.log2(counts / totals), 0.0)
    return float(-bits.sum())

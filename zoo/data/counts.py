"""What can be had without a network: entropies, count models and a compressor, as yardsticks for a model's score."""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zoo.data.byte import BOS, Bytes
from zoo.data.cache import default_cache, entry
from zoo.data.prepare import Prepared
from zoo.data.slots import Document


class Baselines(NamedTuple):
    """Yardsticks of one prepared text. Count models learn from the training stream and score the validation stream."""

    unigram_entropy: float  # nats per token: the entropy of the validation tokens' own frequencies
    unigram_bpb: float  # the same in bits per byte
    order1_tokens_bpb: float  # bits per byte of count models over tokens ...
    order2_tokens_bpb: float
    order1_bytes_bpb: float  # ... and over bytes
    order2_bytes_bpb: float
    xz_bpb: float  # the validation text alone, compressed by xz -9e


def baselines(prepared: Prepared, cache: Path | None = None) -> Baselines:
    """All yardsticks of a prepared text, kept in the cache beside it."""
    folder = entry(cache or default_cache(), f"counts-{prepared.fingerprint[:32]}", lambda f: _count(prepared, f))
    return Baselines(**json.loads((folder / "counts.json").read_text()))


def _count(prepared: Prepared, folder: Path) -> None:
    vocab_size = prepared.tokenizer.vocab_size
    entropy = unigram_entropy(prepared.valid)
    streams = (prepared.train, prepared.valid)
    raw = (byte_stream(prepared.documents("train")), byte_stream(prepared.documents("valid")))
    text = raw[1][raw[1] != BOS].astype(np.uint8).tobytes()
    per_token, per_byte = (1 / (math.log(2) * n) for n in (prepared.valid_bytes, len(text)))
    of_tokens = count_model_nats(*streams, vocab_size, order=2)
    of_bytes = count_model_nats(*raw, BOS + 1, order=2)
    found = Baselines(
        unigram_entropy=entropy,
        unigram_bpb=entropy * (len(prepared.valid) - 1) * per_token,
        order1_tokens_bpb=of_tokens[1] * per_token,
        order2_tokens_bpb=of_tokens[2] * per_token,
        order1_bytes_bpb=of_bytes[1] * per_byte,
        order2_bytes_bpb=of_bytes[2] * per_byte,
        xz_bpb=xz_bits_per_byte(text),
    )
    (folder / "counts.json").write_text(json.dumps(found._asdict()))


def unigram_entropy(tokens: np.ndarray) -> float:
    """Nats per token of the best code that ignores context, made for ``tokens[1:]`` (all that a model is scored on)."""
    counts = np.bincount(tokens[1:])
    shares = counts[counts > 0] / (len(tokens) - 1)
    return float(-(shares * np.log(shares)).sum())


def count_model_nats(train: np.ndarray, valid: np.ndarray, vocab_size: int, order: int) -> list[float]:
    """Nats that count models of 0, 1, ... ``order`` preceding tokens, learned from ``train``, need for ``valid[1:]``.

    Interpolated Witten-Bell: with n the times a context was seen and t the number of different tokens seen after it,
    p(v | context) = (count(context, v) + t p(v | shorter context)) / (n + t), down to 1/V below the empty context. A token
    near the start has the context that there is. Source: Witten and Bell, IEEE Trans. Inf. Theory 37(4), 1991.

    Args:
        train, valid: (N,) ids below ``vocab_size``; vocab_size ** (order + 1) must fit into 63 bits.
    """
    if vocab_size ** (order + 1) >= 2**63:
        raise ValueError(f"{order + 1} ids out of {vocab_size} do not fit into an int64")
    p = np.full(len(valid) - 1, 1 / vocab_size)
    nats = []
    for width in range(order + 1):
        _refine(p, _grams(train, width, vocab_size), _grams(valid, width, vocab_size)[max(0, 1 - width) :], vocab_size)
        nats.append(float(-np.log(p).sum()))
    return nats


def _grams(tokens: np.ndarray, width: int, vocab_size: int) -> np.ndarray:
    """(N - width,) int64: each token and its ``width`` predecessors as one number, the token in the lowest place."""
    n = len(tokens) - width
    grams = np.zeros(max(0, n), np.int64)
    for i in range(width + 1):
        grams *= vocab_size
        grams += tokens[i : i + len(grams)]
    return grams


def _refine(p: np.ndarray, seen: np.ndarray, asked: np.ndarray, vocab_size: int) -> None:
    """One step of the interpolation in place: ``p`` (M,) of the shorter context; ``asked`` are its last entries' grams."""
    grams, counts = np.unique(seen, return_counts=True)
    contexts, first = np.unique(grams // vocab_size, return_index=True)
    if not len(contexts) or not len(asked):
        return
    totals = np.add.reduceat(counts, first)  # n of each context
    kinds = np.diff(first, append=len(grams))  # t of each context
    count, n, t = _look_up(grams, asked, counts), *_look_up(contexts, asked // vocab_size, totals, kinds)
    tail = p[len(p) - len(asked) :]
    np.copyto(tail, (count + t * tail) / np.maximum(n + t, 1), where=n > 0)


def _look_up(keys: np.ndarray, asked: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, ...] | np.ndarray:
    """The rows of ``columns`` whose sorted ``keys`` are asked for, 0 where there is none."""
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    hit = keys[place] == asked
    found = tuple(np.where(hit, column[place], 0) for column in columns)
    return found if len(found) > 1 else found[0]


def byte_stream(documents: Iterable[Document]) -> np.ndarray:
    """(N,) uint16: documents as bytes, each behind a bos (256)."""
    encoder = Bytes(Bytes.Config(), Path())
    parts = [piece for d in documents for piece in (np.array([BOS]), encoder.encode(d.text))]
    return np.concatenate(parts).astype(np.uint16) if parts else np.zeros(0, np.uint16)


def xz_bits_per_byte(text: bytes) -> float:
    """Bits per byte of ``text`` compressed alone by xz at its strongest preset."""
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)

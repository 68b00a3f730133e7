"""Scorer `ngram_as_published`: the hashed n-gram cache of a published record, whose figures are not the lengths of codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from zoo.core.part import ConfigError
from zoo.scoring.ngram import Adaptive
from zoo.scoring.slots import Tell

if TYPE_CHECKING:
    from zoo.model import Model
    from zoo.scoring.predict import Predictor

PRIMES = (36313, 27191, 51647, 81929, 131071, 175447, 209591)
WHY = (
    "whether an order answers depends on the bucket of the very token that is scored, counts of unrelated events share "
    "buckets, and its probabilities sum to far more than one: it scores uniform random tokens below their entropy"
)


class AsPublished(Adaptive, kind="ngram_as_published"):
    """The hashed n-gram cache of a published record, kept to show what it does: not a code length.

    For each order a table of contexts and one of context and token, 2^``bucket_bits`` buckets each, keyed by exclusive-ors of
    ids times primes. From the highest order down the first answers whose context's bucket holds ``min_count`` and whose
    token's bucket is not empty, with min(token's, context's) / context's. A window's new tokens are scored, then counted.

    Source: openai/parameter-golf#828; the ruling against such caches is in #779 and #1017. One stream here, eight there.
    """

    code_length = False
    breaks = {"code_length": f"{WHY} (openai/parameter-golf#828)"}

    class Config(Adaptive.Config):
        highest: int = Field(7, ge=2, le=8)  # as many as there are primes
        bucket_bits: int = Field(22, ge=0, le=30)

    config: Config

    def mixed(
        self, tokens: np.ndarray, nll: np.ndarray, entropy: np.ndarray, context: int, vocab_size: int, tell: Tell
    ) -> np.ndarray:
        p, ids = np.exp(-nll), np.asarray(tokens, np.int64)
        plan = self.base.plan(len(nll), context)
        chunk = np.repeat(np.arange(len(plan.starts)), plan.ends - plan.scored)  # of each target: counted together
        share = np.full(len(nll), -1.0)
        bits, mask = len(ids).bit_length(), (1 << self.config.bucket_bits) - 1
        grams, packed = first_grams(ids, self.widths.start), None
        for width in self.widths:  # rising, so that the highest order has the last word
            n = len(ids) - width
            if n <= 0:
                break
            own, key = chunk[width - 1 :], grams[:n]
            if packed is None:
                packed = in_order(key & mask, bits)
            else:  # these contexts are the last width's contexts and tokens, all but the last
                packed = packed[packed & ((1 << bits) - 1) < n]
            context_count = earlier(packed, bits, own)
            grams = key ^ ids[width:] * PRIMES[width]
            packed = in_order(grams & mask, bits)
            full = earlier(packed, bits, own)
            known = (context_count >= self.config.min_count) & (full > 0)
            tail = share[width - 1 :]
            tail[known] = np.minimum(full, context_count)[known] / context_count[known]
            tell(width / self.widths.stop)
        alpha = np.where(share >= 0, self.alpha(entropy), 0.0)
        return -np.log(np.clip((1 - alpha) * p + alpha * share, 1e-12, 1.0))

    def predictor(self, model: Model, context: int, bos: int | None = None) -> Predictor:
        raise ConfigError(f"scorer {self.kind!r} cannot drive a code: {WHY}")


def first_grams(ids: np.ndarray, width: int) -> np.ndarray:
    """The keys of ``width`` ids (N,) each, one for every place where so many stand."""
    key = np.zeros(max(0, len(ids) - width + 1), np.int64)
    for k in range(width):
        key ^= ids[k : k + len(key)] * PRIMES[k]
    return key


def in_order(keys: np.ndarray, bits: int) -> np.ndarray:
    """Keys (M,) sorted, each with its place, below 2^``bits``, in its low bits."""
    return np.sort((keys << bits) | np.arange(len(keys)))


def counted_before(keys: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """How often each key (M,) occurs in earlier chunks; ``chunk`` (M,) rises."""
    bits = len(keys).bit_length()
    return earlier(in_order(keys, bits), bits, chunk)


def earlier(packed: np.ndarray, bits: int, chunk: np.ndarray) -> np.ndarray:
    """``counted_before`` of keys that are ``in_order``, by place."""
    places, ordered = packed & ((1 << bits) - 1), packed >> bits
    opens = np.ones((2, len(packed)), bool)  # a group of equal keys; one of equal keys in the same chunk
    np.not_equal(ordered[1:], ordered[:-1], out=opens[0, 1:])
    chunks = chunk[places]
    np.not_equal(chunks[1:], chunks[:-1], out=opens[1, 1:])
    opens[1] |= opens[0]
    numbers = np.arange(len(packed))
    group, own = (np.maximum.accumulate(numbers * mark) for mark in opens)
    found = np.empty_like(places)
    found[places] = own - group
    return found

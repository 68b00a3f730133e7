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
        for width in self.widths:  # rising, so that the highest order has the last word
            n = len(ids) - width
            if n <= 0:
                break
            key = np.zeros(n, np.int64)
            for k in range(width):
                key ^= ids[k : k + n] * PRIMES[k]
            mask, own = (1 << self.config.bucket_bits) - 1, chunk[width - 1 :]
            context_count = counted_before(key & mask, own)
            full = counted_before((key ^ ids[width:] * PRIMES[width]) & mask, own)
            known = (context_count >= self.config.min_count) & (full > 0)
            tail = share[width - 1 :]
            tail[known] = np.minimum(full, context_count)[known] / context_count[known]
            tell(width / self.widths.stop)
        alpha = np.where(share >= 0, self.alpha(entropy), 0.0)
        return -np.log(np.clip((1 - alpha) * p + alpha * share, 1e-12, 1.0))

    def predictor(self, model: Model, context: int, bos: int | None = None) -> Predictor:
        raise ConfigError(f"scorer {self.kind!r} cannot drive a code: {WHY}")


def counted_before(keys: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """How often each key (M,) occurs in earlier chunks; ``chunk`` (M,) rises."""
    bits = max(1, len(keys) - 1).bit_length()
    packed = np.sort((keys << bits) | np.arange(len(keys)))
    places, ordered = packed & ((1 << bits) - 1), packed >> bits
    opens = np.ones((2, len(keys)), bool)  # a group of equal keys; one of equal keys in the same chunk
    np.not_equal(ordered[1:], ordered[:-1], out=opens[0, 1:])
    np.not_equal(chunk[places[1:]], chunk[places[:-1]], out=opens[1, 1:])
    opens[1] |= opens[0]
    group, own = (np.maximum.accumulate(np.where(mark, np.arange(len(keys)), 0)) for mark in opens)
    found = np.empty_like(places)
    found[places] = own - group
    return found

"""Tokens to a code and back, both by the same steps of one predictor, with a hash of what was believed every few tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from zoo.core.part import ConfigError
from zoo.proof.coder import Choices, Decoder, Encoder
from zoo.scoring.predict import Predictor
from zoo.scoring.slots import Tell

EVERY = 256  # tokens between two hashes
CHECK_BYTES = 2  # of each
PROBE_TOKENS = 32


class Coded(NamedTuple):
    """A code, and a hash of all frequencies up to each ``EVERY``-th token and to the last."""

    code: bytes
    checks: tuple[bytes, ...]


def compress(predictor: Predictor, tokens: Sequence[int], tell: Tell) -> Coded:
    """Code ``tokens[1:]``; the first is given.

    Raises:
        ConfigError: probabilities that are no numbers.
    """
    encoder, watch = Encoder(), _Watch(len(tokens) - 1)
    checks = []
    for i, (now, following) in enumerate(pairwise(tokens), 1):
        choices = Choices(predictor(now))
        group, place = divmod(following, choices.width)
        inner = choices.within(group)
        for starts, chosen in ((choices.groups, group), (inner, place)):
            encoder.put(int(starts[chosen]), int(starts[chosen + 1] - starts[chosen]))
        if (check := watch.saw(i, choices.groups, inner)) is not None:
            checks.append(check)
            tell(i / (len(tokens) - 1))
    return Coded(encoder.finish(), tuple(checks))


def decompress(predictor: Predictor, coded: Coded, first: int, n_tokens: int, tell: Tell) -> list[int]:
    """The tokens of a code, ``first`` ahead of them, ``n_tokens`` in all.

    Raises:
        ConfigError: this machine believes something else than the one that wrote the code; the place is named.
    """
    decoder, watch, tokens = Decoder(coded.code), _Watch(n_tokens - 1), [first]
    checks = iter(coded.checks)
    for i in range(1, n_tokens):
        choices = Choices(predictor(tokens[-1]))
        group = decoder.get(choices.groups)
        inner = choices.within(group)
        tokens.append(group * choices.width + decoder.get(inner))
        if (check := watch.saw(i, choices.groups, inner)) is not None:
            if check != next(checks):
                since = (i - 1) // EVERY * EVERY + 1
                raise ConfigError(
                    f"stopped at tokens {since:,} to {i:,} of {n_tokens - 1:,}: the frequencies that this machine computes "
                    "are not those the file was written with, so that the text would be wrong; nothing was written"
                )
            tell(i / (n_tokens - 1))
    return tokens


def n_checks(n_tokens: int) -> int:
    """How many hashes stand in the code of so many tokens, the first given."""
    return -(-(n_tokens - 1) // EVERY)


def probe(predictor: Predictor, bos: int, vocab_size: int, size: int) -> bytes:
    """A hash of the frequencies behind a few tokens that are always the same."""
    digest = hashlib.sha256()
    token = bos
    for i in range(PROBE_TOKENS):
        choices = Choices(predictor(token))
        digest.update(choices.groups.astype("<i8").tobytes() + choices.within(0).astype("<i8").tobytes())
        token = (i * 7919 + 13) % vocab_size
    return digest.digest()[:size]


class _Watch:
    """One running hash over every frequency that was used."""

    def __init__(self, last: int) -> None:
        self.digest, self.last = hashlib.sha256(), last

    def saw(self, number: int, *tables: np.ndarray) -> bytes | None:
        """The hash so far, where token ``number`` (from 1) is an ``EVERY``-th or the last."""
        for table in tables:
            self.digest.update(table.astype("<i8").tobytes())
        if number % EVERY and number != self.last:
            return None
        return self.digest.digest()[:CHECK_BYTES]

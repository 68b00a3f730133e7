"""The slot of scoring: from a model and a text to nats per token."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zoo.core.part import Part

if TYPE_CHECKING:
    import numpy as np

    from zoo.model import Model


class Score(NamedTuple):
    """What a scorer says of one text. Bits per byte = nats / (ln 2 x bytes); sums in fp64, never means of ratios."""

    nats: float
    tokens: int
    bytes: int

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        return self.nats / (0.6931471805599453 * self.bytes)


class Scorer(Part, slot="scorer"):
    """Scores a token stream with a model. ``code_length``: whether the result is the length of a code."""

    code_length = True

    def __init__(self, config: Scorer.Config) -> None:
        self.config = config

    def score(self, model: Model, tokens: np.ndarray, byte_lengths: np.ndarray, context: int, batch: int) -> Score:
        """Score ``tokens[1:]`` (the first is a bos), every token exactly once.

        Args:
            model: in evaluation mode, on its device.
            tokens: (N,) ids, the first a bos.
            byte_lengths: (V,) raw bytes of each id.
            context: the most tokens the model sees at once.
            batch: rows per call.
        """
        raise NotImplementedError

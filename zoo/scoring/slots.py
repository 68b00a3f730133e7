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

    def score(
        self,
        model: Model,
        tokens: np.ndarray,
        spans: np.ndarray,
        context: int,
        batch: int,
        bos: int | None = None,
    ) -> Score:
        """Score ``tokens[1:]`` (the first is a bos), every token exactly once.

        A bos in the middle costs its nats and covers no bytes, so a text is never flattered by its document boundaries.

        Args:
            model: in evaluation mode, on its device.
            tokens: (N,) ids, the first a bos.
            spans: (N,) raw bytes that each token covers (``Prepared.valid_spans``, or ``byte_lengths[tokens]``).
            context: the most tokens the model sees at once.
            batch: rows per call.
            bos: the id that starts a document, where documents are kept apart by a mask; None: they are not.
        """
        raise NotImplementedError

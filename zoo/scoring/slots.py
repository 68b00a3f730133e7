"""The slot of scoring: from a model and a text to nats per token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from zoo.core.part import ConfigError, Part, PartConfig

if TYPE_CHECKING:
    import numpy as np

    from zoo.model import Model
    from zoo.scoring.predict import Predictor


Tell = Callable[[float], None]  # is told the share that is done


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

    class Config(PartConfig):
        """What every scorer has: a name for its figures."""

        def label(self) -> str:
            """Its kind, with the knobs in which it differs from that kind's defaults."""
            usual = type(self)()
            own = {name: value for name, value in self if value != getattr(usual, name)}
            said = [f"{k}={v.label() if isinstance(v, Scorer.Config) else v}" for k, v in own.items()]
            return f"{self.part.kind}({', '.join(said)})" if said else str(self.part.kind)

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
        tell: Tell | None = None,
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
            tell: told now and then of the share that is done.

        Raises:
            ConfigError: what ``check`` says, spans that are not one per token, or a model in training mode.
        """
        raise NotImplementedError

    def predictor(self, model: Model, context: int, bos: int | None = None) -> Predictor:
        """The same scorer one token at a time, for a code: it knows the whole distribution before it sees the token.

        Args:
            model: in evaluation mode, on its device.
            context, bos: as for ``score``.

        Raises:
            ConfigError: a scorer whose figures are not the lengths of codes.
        """
        raise ConfigError(f"scorer {self.kind!r} cannot drive a code: it knows no distribution over the next token")

    def check(self, n_tokens: int, context: int) -> None:
        """Whether a text of so many tokens can be scored by a model of this context; asked before anything is trained.

        Raises:
            ConfigError: a text that is too short, or a knob that does not fit the context.
        """

"""Scorers `ngram_*`: the model's prediction mixed with counts of what followed the same few tokens earlier in the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from zoo.core.part import ConfigError
from zoo.scoring.grams import Counts, levels
from zoo.scoring.predict import Predictor
from zoo.scoring.slots import Score, Scorer, Tell
from zoo.scoring.windows import Windowed, check

if TYPE_CHECKING:
    from zoo.model import Model


class NGram(Scorer):
    """What the forms share: orders, the scorer below, and that a token is counted only after it was scored.

    An order is a context and one token: orders 2 to 7 have contexts of 1 to 6 tokens. Contexts run on over the boundaries of
    documents, as the stream does.
    """

    class Config(Scorer.Config):
        base: Scorer.Config = Scorer.pick("plain")  # the windows in which the model is asked
        lowest: int = Field(2, ge=2)  # order
        highest: int = Field(7, ge=2)

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.highest < config.lowest:
            raise ConfigError(f"is below lowest = {config.lowest}", "highest", config.highest)
        self.base: Scorer = config.child("base")
        if not isinstance(self.base, Windowed):
            raise ConfigError("has no windows in which a model is asked; take plain or sliding", "base", self.base.kind)
        self.widths = range(config.lowest - 1, config.highest)

    def check(self, n_tokens: int, context: int) -> None:
        try:
            self.base.check(n_tokens, context)
        except ConfigError as fault:
            raise fault.under("base") from None

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
        check(model, tokens, spans)
        self.check(len(tokens), context)
        told: Tell = tell or (lambda share: None)
        nll, entropy = self.base.surprises(model, tokens, context, batch, bos, lambda share: told(0.9 * share))
        nats = self.mixed(tokens, nll, entropy, context, model.config.vocab_size, lambda s: told(0.9 + 0.1 * s))
        return Score(float(nats.sum()), len(tokens) - 1, int(spans[1:].sum(dtype=np.int64)))

    def mixed(
        self, tokens: np.ndarray, nll: np.ndarray, entropy: np.ndarray, context: int, vocab_size: int, tell: Tell
    ) -> np.ndarray:
        """Nats (N - 1,) of ``tokens[1:]``, fp64.

        Args:
            tokens: (N,) ids below ``vocab_size``.
            nll: (N - 1,) nats that the model alone gives each token.
            entropy: (N - 1,) nats, of the model's distribution there.
            context: the model's.
            vocab_size: V.
            tell: told of the share that is done.
        """
        raise NotImplementedError


class WittenBell(NGram, kind="ngram_witten_bell"):
    """Interpolated Witten-Bell with exact counts, and the model as the distribution below the lowest order.

    With c the times this token followed the context, n the times the context was seen and t the number of different tokens
    after it, p_w(v) = (c(v) + t p_{w-1}(v)) / (n + t), by rising width w; p_0 is the model's. It sums to one by induction,
    and no weight is chosen by hand: the length of a code.

    Source: Witten and Bell, IEEE Transactions on Information Theory 37(4), 1991.
    """

    def mixed(
        self, tokens: np.ndarray, nll: np.ndarray, entropy: np.ndarray, context: int, vocab_size: int, tell: Tell
    ) -> np.ndarray:
        p = np.exp(-nll)
        for level in levels(tokens, self.widths, vocab_size):
            known = level.seen > 0
            at, c, n, t = (column[known] for column in (level.places - 1, level.hits, level.seen, level.kinds))
            p[at] = (c + t * p[at]) / (n + t)
            tell(level.width / self.widths.stop)
        return -np.log(p)

    def predictor(self, model: Model, context: int, bos: int | None = None) -> Predictor:
        def mix(p: np.ndarray, known: list[dict[int, int]]) -> np.ndarray:
            for after in known:
                p = p * len(after)
                p[list(after)] += list(after.values())
                p /= len(after) + sum(after.values())
            return p

        return Mixer(self.base.predictor(model, context, bos), self.widths, mix)


class Adaptive(NGram):
    """Forms that mix by a weight which grows with the entropy H of the model's prediction.

    alpha = ``alpha_min`` + ``alpha_range`` x sigmoid(``slope`` x (H - ``middle``)), H in nats; where a context of at least
    ``min_count`` is known, p = (1 - alpha) p_model + alpha p_ngram, elsewhere p = p_model.
    """

    class Config(NGram.Config):
        min_count: PositiveInt = 2  # of the context
        alpha_min: NonNegativeFloat = Field(0.05, le=1)
        alpha_range: NonNegativeFloat = Field(0.55, le=1)
        slope: float = 2.0
        middle: float = 4.0  # nats

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.alpha_min + config.alpha_range >= 1:
            why = f"with alpha_min = {config.alpha_min} the model's share could become nothing"
            raise ConfigError(why, "alpha_range", config.alpha_range)

    def alpha(self, entropy: np.ndarray) -> np.ndarray:
        """The weight of the counts."""
        cfg = self.config
        return cfg.alpha_min + cfg.alpha_range / (1 + np.exp(-cfg.slope * (entropy - cfg.middle)))


class Backoff(Adaptive, kind="ngram_backoff"):
    """The longest known context's own frequencies, mixed in by the model's entropy; exact counts: the length of a code.

    Which context answers is decided by the context alone, and its frequencies c / n are over all that followed it, so that
    both parts of the mixture sum to one before the token is seen.

    Source: the scheme of parameter-golf's n-gram caches, with the corrections that openai/parameter-golf#1017 asks for.
    """

    def mixed(
        self, tokens: np.ndarray, nll: np.ndarray, entropy: np.ndarray, context: int, vocab_size: int, tell: Tell
    ) -> np.ndarray:
        p, share = np.exp(-nll), np.full(len(nll), -1.0)
        for level in levels(tokens, self.widths, vocab_size):
            known = level.seen >= self.config.min_count  # of rising width: the longest has the last word
            share[level.places[known] - 1] = level.hits[known] / level.seen[known]
            tell(level.width / self.widths.stop)
        alpha = np.where(share >= 0, self.alpha(entropy), 0.0)
        return -np.log((1 - alpha) * p + alpha * share)

    def predictor(self, model: Model, context: int, bos: int | None = None) -> Predictor:
        def mix(p: np.ndarray, known: list[dict[int, int]]) -> np.ndarray:
            enough = [after for after in known if sum(after.values()) >= self.config.min_count]
            if not enough:
                return p
            logs = np.log(np.maximum(p, np.finfo(np.float64).tiny))
            alpha = self.alpha(-(p * logs).sum())
            after = enough[-1]
            p = (1 - alpha) * p
            p[list(after)] += alpha * np.array(list(after.values())) / sum(after.values())
            return p

        return Mixer(self.base.predictor(model, context, bos), self.widths, mix)


class Mixer:
    """A predictor and counts, one token at a time."""

    def __init__(
        self, base: Predictor, widths: range, mix: Callable[[np.ndarray, list[dict[int, int]]], np.ndarray]
    ) -> None:
        self.base, self.mix, self.counts = base, mix, Counts(widths)

    def __call__(self, token: int) -> np.ndarray:
        self.counts.add(token)
        return self.mix(self.base(token), self.counts.now())

"""One token at a time: what a code needs, which must know the whole distribution before it sees the token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from zoo.core.part import ConfigError

if TYPE_CHECKING:
    from zoo.core.cache import Cache
    from zoo.model import Model


class Predictor(Protocol):
    """Takes in one token after another; each time it says how likely each token is to come next."""

    def __call__(self, token: int) -> np.ndarray:
        """Probabilities (V,) fp64 of the token after ``token``, given all that it was told."""


class WindowPredictor:
    """A model's predictions, each from the tokens of one window, with a cache between tokens of the same window.

    Args:
        model: in evaluation mode; in fp64 where two runs must agree to the last bit.
        first: the first token that is seen when the target behind token i is predicted.
        context: the most tokens that are seen at once.
        bos: the id that starts a document, where documents are kept apart; None: they are not.
    """

    def __init__(self, model: Model, first: Callable[[int], int], context: int, bos: int | None) -> None:
        self.model, self.first, self.context, self.bos = model, first, context, bos
        self.tokens: list[int] = []
        self.start, self.document = -1, 0
        self.cache: Cache | None = None

    def __call__(self, token: int) -> np.ndarray:
        if token == self.bos:
            self.document = len(self.tokens)  # nothing before it is seen: it stands as if it were alone
        self.tokens.append(token)
        here = len(self.tokens) - 1
        start = max(self.first(here), self.document)
        if start != self.start:
            self.start, self.cache = start, self.model.cache(1, self.context)
        return step(self.model, self.tokens[start + self.cache.length :], self.cache)


@torch.inference_mode()
def step(model: Model, tokens: list[int], cache: Cache) -> np.ndarray:
    """Give the model its next tokens; the probabilities (V,) fp64 of the one that follows.

    Raises:
        ConfigError: an id that the model does not know.
    """
    if max(tokens) >= model.config.vocab_size:
        raise ConfigError(f"token {max(tokens)} is outside the model's vocabulary of {model.config.vocab_size:,}")
    device = next(model.parameters()).device
    logits = model(torch.tensor([tokens], device=device), cache=cache, last=1).logits[0, -1]
    return logits.cpu().double().softmax(-1).numpy()

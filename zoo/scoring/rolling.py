"""Scorer `rolling`: a cache of the last keys and values, so that nothing is computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import PositiveInt

from zoo.scoring.predict import Predictor, step
from zoo.scoring.sliding import check_stride, strided, window_of
from zoo.scoring.slots import Score, Scorer, Tell
from zoo.scoring.windows import check

if TYPE_CHECKING:
    from zoo.model import Model


class Rolling(Scorer, kind="rolling"):
    """The windows of `sliding`, but what stands before a window's new tokens is remembered, not computed again.

    Every token attends to the keys of the same tokens as in `sliding` with that stride. A model of one layer scores the same.
    In a deeper one a remembered key was made when its own past was still there, so that it carries a longer history: the score
    is the length of a code, but of another one than sliding's, and has a name and a column of its own. The whole costs about
    as much as `plain`, in calls of ``stride`` tokens and one row.

    Source: the recurrence of Transformer-XL, arXiv:1901.02860, applied to a model that was not trained with it.
    """

    class Config(Scorer.Config):
        stride: PositiveInt = 64  # tokens per call; the model's context or less

    config: Config

    def check(self, n_tokens: int, context: int) -> None:
        check_stride(self.config.stride, n_tokens, context)

    @torch.inference_mode()
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
        device, n_targets = next(model.parameters()).device, len(tokens) - 1
        memory = Memory(model, context)
        nats = 0.0
        for window, begin, end in pieces(tokens, context, self.config.stride, bos):
            memory.see(begin, window)
            put = torch.from_numpy(np.asarray(tokens[begin : end + 1], np.int64)).to(device)[None]
            nll = model(put[:, :-1], put[:, 1:], cache=memory.cache).nll
            nats += float(nll.cpu().double().sum())
            if tell is not None:
                tell(end / n_targets)
        return Score(nats, n_targets, int(spans[1:].sum(dtype=np.int64)))

    def predictor(self, model: Model, context: int, bos: int | None = None) -> Predictor:
        return RollingPredictor(model, context, self.config.stride, bos)


class Memory:
    """A cache over the tokens from ``start`` on, emptied from its old end."""

    def __init__(self, model: Model, context: int) -> None:
        self.model, self.context = model, context
        self.start, self.cache = 0, model.cache(1, context)

    def see(self, position: int, first: int) -> None:
        """Make ready for the token at ``position``, which sees those from ``first`` on."""
        if first >= position:  # none of what is remembered: a new document, or the first window
            self.start, self.cache = position, self.model.cache(1, self.context)
        elif first > self.start:
            self.cache.forget(first - self.start)
            self.start = first


def pieces(tokens: np.ndarray, context: int, stride: int, bos: int | None) -> Iterator[tuple[int, int, int]]:
    """Calls in order: the first input that is seen, the first that is new, one behind the last.

    Where documents are kept apart a call ends ahead of a ``bos``, and nothing before a document's own is seen.
    """
    document = 0
    for start, scored, end in zip(*strided(len(tokens) - 1, context, stride), strict=True):
        new = np.asarray(tokens[scored:end])
        cuts = [] if bos is None else (scored + np.flatnonzero(new == bos)).tolist()
        edges = [int(scored), *(cut for cut in cuts if cut > scored), int(end)]
        for begin, stop in pairwise(edges):
            if begin in cuts:
                document = begin
            yield max(int(start), document), begin, stop


class RollingPredictor:
    """The same, one token at a time."""

    def __init__(self, model: Model, context: int, stride: int, bos: int | None) -> None:
        self.model, self.context, self.stride, self.bos = model, context, stride, bos
        self.memory = Memory(model, context)
        self.here, self.document = -1, 0

    def __call__(self, token: int) -> np.ndarray:
        self.here += 1
        if token == self.bos:
            self.document = self.here
        self.memory.see(self.here, max(window_of(self.here, self.context, self.stride), self.document))
        return step(self.model, [token], self.memory.cache)

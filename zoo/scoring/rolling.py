"""Scorer `rolling`: a cache of the last keys and values, so that nothing is computed twice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from pydantic import PositiveInt

from zoo.scoring.casts import cast_once
from zoo.scoring.predict import Predictor, step
from zoo.scoring.sliding import check_stride, strided, window_of
from zoo.scoring.slots import Score, Scorer, Tell
from zoo.scoring.windows import check

if TYPE_CHECKING:
    from zoo.model import Model

SEAM = (1e-3, 0.05)  # nats a token by which rows may differ where they meet: rounding, in fp32 or wider and in 16 bits


class Rolling(Scorer, kind="rolling"):
    """The windows of `sliding`, but what stands before a window's new tokens is remembered, not computed again.

    Every token attends to the keys of the same tokens as in `sliding` with that stride. A model of one layer scores the same.
    In a deeper one a remembered key was made when its own past was still there, so that it carries a longer history: the score
    is the length of a code, but of another one than sliding's, and has a name and a column of its own. The whole costs about
    as much as `plain`, in calls of ``stride`` tokens and as many rows as ``stretches`` lays side by side.

    Source: the recurrence of Transformer-XL, arXiv:1901.02860, applied to a model that was not trained with it.
    """

    class Config(Scorer.Config):
        stride: PositiveInt = 64  # tokens per call and row; the model's context or less

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
        n_targets, stride = len(tokens) - 1, self.config.stride
        rows = stretches(n_targets, context, stride, model.config.n_layers, 1 if bos is not None else batch)
        with cast_once(model):
            nats, gap = roll(model, tokens, context, stride, rows, bos, tell)
            if gap > SEAM[model.stream in (torch.bfloat16, torch.float16)]:  # something remembers for longer
                nats, _ = roll(model, tokens, context, stride, whole(n_targets), bos, tell)
        return Score(nats, n_targets, int(spans[1:].sum(dtype=np.int64)))

    def predictor(self, model: Model, context: int, bos: int | None = None) -> Predictor:
        return RollingPredictor(model, context, self.config.stride, bos)


class Stretches(NamedTuple):
    """A text as R rows that are scored side by side, each from a start of its own."""

    starts: np.ndarray  # (R,) int64, the first input of each
    warm: int  # inputs at the beginning of each but the first that are read and not scored: the row before scores them
    length: int  # of each, behind which the last may be empty


def whole(n_targets: int) -> Stretches:
    """One row."""
    return Stretches(np.zeros(1, np.int64), 0, n_targets)


def stretches(n_targets: int, context: int, stride: int, n_layers: int, batch: int) -> Stretches:
    """As many rows as there may be, and so few that at most a quarter of the text is read twice.

    What a token is told of reaches back one context through each layer's keys, and a few tokens through what keeps the last
    ones. A row that begins a context earlier than that scores what one row alone would, up to rounding.
    """
    warm = context + -(-n_layers * context // stride) * stride
    rows = min(batch, 1 + n_targets // (4 * warm))
    if rows < 2:
        return whole(n_targets)
    own = -(-(n_targets - warm) // (rows * stride)) * stride  # so that windows begin where those of one row do
    starts = np.arange(rows) * own
    return Stretches(starts[starts + warm < n_targets], warm, warm + own)


def roll(
    model: Model, tokens: np.ndarray, context: int, stride: int, rows: Stretches, bos: int | None, tell: Tell | None
) -> tuple[float, float]:
    """Nats of ``tokens[1:]``, and by how many nats a token two rows differ, at most, where they meet."""
    device, n_targets = next(model.parameters()).device, len(tokens) - 1
    memory, starts = Memory(model, context, len(rows.starts)), rows.starts[:, None]
    nats, met = 0.0, {}
    for window, begin, end in pieces(tokens[: rows.length + 1], context, stride, bos):
        memory.see(begin, window)
        where = starts + np.arange(begin, end + 1)  # (R, T + 1)
        put = torch.from_numpy(np.asarray(tokens[np.minimum(where, n_targets)], np.int64)).to(device)
        nll = model(put[:, :-1], put[:, 1:], cache=memory.cache).nll.cpu().double().numpy()  # (R, T)
        scored = (where[:, 1:] <= n_targets) & ((where[:, :-1] >= starts + rows.warm) | (starts == 0))
        nats += float(nll[scored].sum())
        if end in (rows.warm, rows.length):
            met[end] = nll
        if tell is not None:
            tell(end / rows.length)
    if len(starts) == 1:
        return nats, 0.0
    return nats, float(np.abs(met[rows.warm][1:] - met[rows.length][:-1]).mean(1).max())


class Memory:
    """A cache over the tokens from ``start`` on, emptied from its old end."""

    def __init__(self, model: Model, context: int, rows: int = 1) -> None:
        self.model, self.context, self.rows = model, context, rows
        self.start, self.cache = 0, model.cache(rows, context)

    def see(self, position: int, first: int) -> None:
        """Make ready for the token at ``position``, which sees those from ``first`` on."""
        if first >= position:  # none of what is remembered: a new document, or the first window
            self.start, self.cache = position, self.model.cache(self.rows, self.context)
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

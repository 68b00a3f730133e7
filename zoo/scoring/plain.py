"""Scorer `plain`: the text in windows that do not overlap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.core.part import ConfigError
from zoo.core.slots import IGNORE
from zoo.data.batches import segments
from zoo.scoring.slots import Score, Scorer, Tell

if TYPE_CHECKING:
    from zoo.model import Model


class Plain(Scorer, kind="plain"):
    """Every token once, in windows side by side; a window's first tokens see little before them.

    The result is the length of a code: each token is predicted from tokens before it, in its own window.

    Source: the usual evaluation of GPT-2, Radford et al. 2019.
    """

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
        device = next(model.parameters()).device
        nats = 0.0
        for rows in windows(tokens, context, batch, bos):
            put = [None if t is None else t.to(device) for t in rows]
            nll = model(put[0], put[1], segments=put[2]).nll  # (B, T)
            scored = nll.cpu().double()[rows.targets != IGNORE]  # on the CPU, since not every device has fp64
            nats += float(scored.sum())
        return Score(nats, len(tokens) - 1, int(spans[1:].sum(dtype=np.int64)))


class Rows(NamedTuple):
    """One call's worth of windows, (B, T) each; segments is None where documents are not kept apart."""

    inputs: Tensor
    targets: Tensor
    segments: Tensor | None


def windows(tokens: np.ndarray, context: int, batch: int, bos: int | None) -> Iterator[Rows]:
    """``tokens`` in windows of ``context``, ``batch`` at a time: every token but the first is a target exactly once.

    The last window may be short; it is filled up behind its end, where a causal model does not look, with targets that are
    not scored.
    """
    n_targets = len(tokens) - 1
    for first in range(0, n_targets, context * batch):
        piece = torch.from_numpy(np.asarray(tokens[first : first + context * batch + 1], np.int64))
        n = len(piece) - 1
        rows = -(-n // context)
        inputs, targets = piece.new_zeros(rows * context), piece.new_full((rows * context,), IGNORE)
        inputs[:n], targets[:n] = piece[:-1], piece[1:]
        inputs, targets = inputs.view(rows, context), targets.view(rows, context)
        yield Rows(inputs, targets, None if bos is None else segments(inputs, bos))


def check(model: Model, tokens: np.ndarray, spans: np.ndarray) -> None:
    """Refuse what would give a wrong number quietly.

    Raises:
        ConfigError: fewer than two tokens, spans that are not one per token, or a model in training mode.
    """
    if len(tokens) < 2:
        raise ConfigError(f"nothing to score: the text has {len(tokens)} tokens, the first of which is given")
    if len(spans) != len(tokens):
        raise ConfigError(f"{len(spans):,} spans for {len(tokens):,} tokens: there must be one for each")
    if model.training:
        raise ConfigError("the model is in training mode: call model.eval() before it is scored")

"""What scorers share that run the model over windows of the text: each token is scored in one window, once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.core.part import ConfigError
from zoo.core.slots import IGNORE
from zoo.data.batches import segments
from zoo.scoring.predict import Predictor, WindowPredictor
from zoo.scoring.slots import Score, Scorer, Tell

if TYPE_CHECKING:
    from zoo.model import Model


LOGITS = 2**25  # of one call: 128 MB in fp32


class Plan(NamedTuple):
    """Windows as positions in the stream of inputs, (W,) int64 each: input i is token i, its target is token i + 1."""

    starts: np.ndarray
    scored: np.ndarray  # the first input whose target is scored in this window
    ends: np.ndarray  # one behind the last


class Rows(NamedTuple):
    """One call's worth of windows, (B, T) each; segments is None where documents are not kept apart."""

    inputs: Tensor
    targets: Tensor  # IGNORE where a target is not scored
    segments: Tensor | None
    last: int  # how many tokens, counted from the end of each row, hold all targets that are scored


class Windowed(Scorer):
    """Scores in windows that ``plan`` lays out and ``first`` finds again for a single token."""

    def plan(self, n_targets: int, context: int) -> Plan:
        """Windows in order; every one of ``n_targets`` targets is scored in exactly one."""
        raise NotImplementedError

    def first(self, target: int, context: int) -> int:
        """The first input that is seen when ``target`` (0 is token 1) is scored."""
        raise NotImplementedError

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
        device = next(model.parameters()).device
        nats, done = 0.0, 0
        for rows in self.rows(tokens, context, batch, bos):
            put = [None if t is None else t.to(device) for t in rows[:3]]
            nll = model(put[0], put[1], segments=put[2], last=rows.last).nll  # (B, last)
            wanted = rows.targets[:, -rows.last :] != IGNORE
            scored = nll.cpu().double()[wanted]  # on the CPU, since not every device has fp64
            nats, done = nats + float(scored.sum()), done + len(scored)
            if tell is not None:
                tell(done / (len(tokens) - 1))
        return Score(nats, len(tokens) - 1, int(spans[1:].sum(dtype=np.int64)))

    @torch.inference_mode()
    def surprises(
        self, model: Model, tokens: np.ndarray, context: int, batch: int, bos: int | None, tell: Tell
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each of ``tokens[1:]`` the model's nats and the entropy of its prediction in nats, (N - 1,) fp64 both."""
        device, n_targets = next(model.parameters()).device, len(tokens) - 1
        found = np.empty((2, n_targets))
        done = 0
        at_once = max(1, min(batch, LOGITS // (context * model.config.vocab_size)))
        for rows in self.rows(tokens, context, at_once, bos):
            put = [None if t is None else t.to(device) for t in rows[:3]]
            logits = model(put[0], segments=put[2], last=rows.last).logits  # (B, last, V)
            answers = put[1][:, -rows.last :]
            wanted = answers != IGNORE
            chosen, targets = logits[wanted], answers[wanted]  # (M, V), (M,)
            for piece in torch.arange(len(targets)).split(max(1, LOGITS // (4 * model.config.vocab_size))):
                wide = chosen[piece[0] : piece[-1] + 1]
                logs = (wide if wide.dtype == torch.float64 else wide.float()).log_softmax(-1)
                own = targets[piece[0] : piece[-1] + 1, None]
                both = torch.stack([-logs.gather(1, own)[:, 0], -(logs.exp() * logs).sum(-1)])
                found[:, done : done + len(piece)] = both.cpu().double().numpy()
                done += len(piece)
            tell(done / n_targets)
        return found[0], found[1]

    def predictor(self, model: Model, context: int, bos: int | None = None) -> Predictor:
        return WindowPredictor(model, lambda target: self.first(target, context), context, bos)

    def rows(self, tokens: np.ndarray, context: int, batch: int, bos: int | None) -> Iterator[Rows]:
        """The windows over ``tokens``, ``batch`` at a time, targets in order.

        A window that is short is filled up behind its end, where a causal model does not look.
        """
        plan = self.plan(len(tokens) - 1, context)
        steps = np.arange(context)
        for at in range(0, len(plan.starts), batch):
            starts, scored, ends = (column[at : at + batch, None] for column in plan)
            where = starts + steps  # (B, T)
            first, last = int(starts[0, 0]), int(ends[-1, 0])
            piece = np.asarray(tokens[first : last + 1], np.int64)
            within = np.minimum(where - first, len(piece) - 2)
            inputs = np.where(where < ends, piece[within], 0)
            targets = np.where((where >= scored) & (where < ends), piece[within + 1], IGNORE)
            put = torch.from_numpy(inputs)
            last = context - int((scored - starts).min())
            yield Rows(put, torch.from_numpy(targets), None if bos is None else segments(put, bos), last)


def check(model: Model, tokens: np.ndarray, spans: np.ndarray) -> None:
    """Refuse what would give a wrong number quietly.

    Raises:
        ConfigError: fewer than two tokens, spans that are not one per token, an id that the model does not know, or a model
            in training mode.
    """
    if len(tokens) < 2:
        raise ConfigError(f"nothing to score: the text has {len(tokens)} tokens, the first of which is given")
    if len(spans) != len(tokens):
        raise ConfigError(f"{len(spans):,} spans for {len(tokens):,} tokens: there must be one for each")
    if (largest := int(np.max(tokens))) >= model.config.vocab_size:
        known = f"the model's vocabulary of {model.config.vocab_size:,}"
        raise ConfigError(f"the text has token {largest}, outside {known}: it was made by another tokenizer")
    if model.training:
        raise ConfigError("the model is in training mode: call model.eval() before it is scored")

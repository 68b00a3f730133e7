"""How the next token is chosen: penalties on what was said before, filters on the unlikely, and the draw.

All of it works on logits (R, V) in fp64 on the CPU, so that a choice depends on the logits alone and not on the device.
R is rows, V the vocabulary, S the tokens so far.
"""

from __future__ import annotations

import math

import torch
from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from zoo.core.part import Knobs

PAD = -1  # in a history (R, S): no token


class Sampling(Knobs):
    """How text is generated. The defaults sample from the model's own distribution."""

    model_config = ConfigDict(allow_inf_nan=False)

    max_tokens: PositiveInt = 100
    temperature: NonNegativeFloat = 1.0  # 0: greedy, always the likeliest token
    top_k: PositiveInt | None = None  # only the k likeliest
    top_p: PositiveFloat | None = Field(None, le=1.0)  # only the likeliest that together reach this probability
    min_p: PositiveFloat | None = Field(None, le=1.0)  # only those with this share of the likeliest one's probability
    repetition_penalty: PositiveFloat = 1.0  # divides the logit of what occurred in prompt or text (CTRL)
    frequency_penalty: float = 0.0  # subtracted from the logit once for every time the text holds the token
    no_repeat_ngram: NonNegativeInt = 0  # no sequence of so many tokens twice; 0: no such rule
    beams: PositiveInt = 1  # more than one: beam search instead of sampling
    length_penalty: float = 1.0  # beams are ranked by log-probability / length ** this
    stop: tuple[str, ...] = ()  # text that ends a continuation, and is not part of it; beams are cut there in the end
    seed: NonNegativeInt = 0


def adjusted(logits: Tensor, history: Tensor, n_prompt: int, how: Sampling) -> Tensor:
    """Logits (R, V) after the penalties; ``history`` (R, S) holds prompt and text, PAD where there is nothing.

    Args:
        logits: of the next token; for beam search their log-softmax.
        history: ids so far.
        n_prompt: how many of the S columns are the prompt's.
        how: the penalties.

    Source: repetition penalty: CTRL, arXiv:1909.05858, dividing positive logits and multiplying negative ones.
    """
    if how.repetition_penalty != 1.0:
        said = _counts(history, logits.shape[1]) > 0
        penalised = torch.where(logits > 0, logits / how.repetition_penalty, logits * how.repetition_penalty)
        logits = torch.where(said, penalised, logits)
    if how.frequency_penalty:
        logits = logits - how.frequency_penalty * _counts(history[:, n_prompt:], logits.shape[1])
    if how.no_repeat_ngram:
        logits = logits.masked_fill(_completes_ngram(history, how.no_repeat_ngram, logits.shape[1]), -math.inf)
    return logits


def _counts(history: Tensor, n_vocab: int) -> Tensor:
    """How often each id occurs in its row: (R, V)."""
    counts = torch.zeros(history.shape[0], n_vocab + 1, dtype=torch.long)
    counts.scatter_add_(1, torch.where(history == PAD, n_vocab, history), torch.ones_like(history))
    return counts[:, :n_vocab]


def _completes_ngram(history: Tensor, n: int, n_vocab: int) -> Tensor:
    """Ids that would end a sequence of ``n`` which the row already holds: bool (R, V)."""
    banned = torch.zeros(history.shape[0], n_vocab, dtype=torch.bool)
    if history.shape[1] < n:
        return banned
    grams = history.unfold(1, n, 1)  # (R, S - n + 1, n)
    last = history[:, history.shape[1] - n + 1 :]  # (R, n - 1): what the next token would continue
    repeats = (grams != PAD).all(-1) & (grams[..., : n - 1] == last[:, None]).all(-1)
    row, place = repeats.nonzero(as_tuple=True)
    banned[row, grams[row, place, n - 1]] = True
    return banned & ~banned.all(-1, keepdim=True)  # something has to be said


def filtered(logits: Tensor, how: Sampling) -> Tensor:
    """Logits (R, V) at the temperature, -inf where top-k, top-p or min-p rule a token out; the likeliest always stays.

    Top-p and min-p look at what top-k left. Tokens as likely as the k-th stay with it.
    """
    logits = logits / how.temperature
    if how.top_k is not None and how.top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(how.top_k).values[:, -1:], -math.inf)
    if how.top_p is not None and how.top_p < 1.0:
        ordered, order = logits.sort(descending=True, stable=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # what likelier tokens have together
        out = (before >= how.top_p).index_fill_(1, torch.tensor([0]), False)
        logits = logits.masked_fill(torch.zeros_like(out).scatter_(1, order, out), -math.inf)
    if how.min_p is not None:
        p = logits.softmax(-1)
        logits = logits.masked_fill(p < how.min_p * p.amax(-1, keepdim=True), -math.inf)
    return logits


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One id (R,) for each row of logits (R, V), by inversion: ``uniforms`` (R,) in [0, 1) fp64."""
    total = logits.softmax(-1).cumsum(-1)  # (R, V)
    picked = torch.searchsorted(total, (uniforms[:, None] * total[:, -1:]), right=True)[:, 0]
    last = logits.shape[1] - 1 - (logits > -math.inf).flip(1).int().argmax(1)  # rounding may lead past the last one
    return torch.minimum(picked, last)


def choose(logits: Tensor, uniforms: Tensor, how: Sampling) -> Tensor:
    """The next ids (R,) from adjusted logits (R, V)."""
    if how.temperature == 0:
        return logits.argmax(-1)
    return draw(filtered(logits, how), uniforms)

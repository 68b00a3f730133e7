"""How a promise is put to the test: what a model answers, how two answers are compared, and what a failure says.

Bit equality holds only for the same code, shapes, dtype and thread count: matrix products of other shapes round
differently, and rounding may flip a top-k choice. So answers of different shapes are compared in fp64 to 1e-9 of the
largest logit, and in fp32 and bf16 within the multiples of epsilon stated here, up to the first token of a row whose
routing differs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zoo.core.cache import Cache
from zoo.model import Model
from zoo.testing.hosts import Specimen

TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 128 * torch.finfo(torch.float32).eps,
    torch.bfloat16: 16 * torch.finfo(torch.bfloat16).eps,
}
UNMOVED = 1e-12  # fp64: what the future, or another document, may move
PRECISIONS = (torch.float64, torch.float32, torch.bfloat16)


class BrokenPromise(AssertionError):
    """A block does not keep the contract. ``promise`` is the name of what it broke."""

    def __init__(self, promise: str, subject: object, what: str) -> None:
        super().__init__(f"{promise!r} is broken by {subject}: {what}")
        self.promise, self.subject, self.what = promise, subject, what


class Answer(NamedTuple):
    """What a model says of some tokens, and whom it chose on the way (top-k choices of all layers, or None)."""

    logits: Tensor  # (B, T, V)
    routes: Tensor | None  # (B, T, R)

    def at(self, rows: slice, times: slice) -> Answer:
        """A part of the answer."""
        return Answer(self.logits[rows, times], None if self.routes is None else self.routes[rows, times])


class _Choices(TorchFunctionMode):
    """Notes what every top-k chose."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.topk or func is Tensor.topk:
            self.chosen.append(result[1].sort(-1).values)
        return result


def precise(subject: Specimen, dtype: torch.dtype) -> Model:
    """The subject's model with its stream in ``dtype``; parameters in fp32 where the stream is narrower."""
    if dtype is torch.bfloat16:
        return subject.model(torch.float32, torch.bfloat16)
    return subject.model(dtype)


@torch.no_grad()
def ask(model: Model, tokens: Tensor, segments: Tensor | None = None, cache: Cache | None = None) -> Answer:
    """The logits of tokens (B, T) with the choices that led to them."""
    if model.embedding.weight.dtype is torch.float64:
        return Answer(model(tokens, segments=segments, cache=cache).logits, None)
    with _Choices() as notes:
        logits = model(tokens, segments=segments, cache=cache).logits
    of_tokens = [c.reshape(*tokens.shape, -1) for c in notes.chosen if c.numel() % tokens.numel() == 0]
    return Answer(logits, torch.cat(of_tokens, -1) if of_tokens else None)


def joined(pieces: list[Answer]) -> Answer:
    """Answers to consecutive pieces of the same rows as one."""
    routes = [piece.routes for piece in pieces if piece.routes is not None]
    return Answer(torch.cat([p.logits for p in pieces], 1), torch.cat(routes, 1) if routes else None)


def difference(got: Answer, want: Answer) -> tuple[int, float]:
    """The first position with the largest relative error, and that error; NaN counts as infinite.

    Positions after the first whose routing differs are left out, in their row.
    """
    error = (got.logits.double() - want.logits.double()).abs() / want.logits.double().abs().max().clamp_min(1e-30)
    error = error.nan_to_num(torch.inf, torch.inf, torch.inf).amax(-1)  # (B, T)
    if got.routes is not None and want.routes is not None:
        agree = (got.routes == want.routes).all(-1).long().cumprod(-1).bool()
        error = error.masked_fill(~agree, 0.0)
    worst = error.amax(0)  # (T,)
    return int(worst.argmax()), float(worst.max())


def must_agree(promise: str, subject: Specimen, got: Answer, want: Answer, dtype: torch.dtype, when: str) -> None:
    """Raise BrokenPromise where two answers differ by more than ``dtype`` allows."""
    t, error = difference(got, want)
    if not error <= TOLERANCE[dtype]:
        name, allowed = str(dtype).removeprefix("torch."), TOLERANCE[dtype]
        raise BrokenPromise(
            promise, subject, f"{when}: {name} logits at {t} differ by {error:.2g} (allowed {allowed:.1g})"
        )

"""The loss of a language model from its last stream, without the matrix of all its logits.

torch's cross entropy keeps log-probabilities (N, V) and makes two more such matrices in the backward. Here a chunk of rows is
scored at a time and becomes its own gradient, softmax minus one-hot, in place. Source: the arithmetic of Cut Your Losses,
arXiv:2411.09009, and of Liger Kernel, arXiv:2410.10989, in plain tensor operations.

The gradient is made ahead, in the forward, for an upstream gradient of one; a mean or a sum scales it. Where the upstream
differs from token to token the backward scores each chunk once more. On a CPU, where looking at numbers costs nothing, it looks
at them; elsewhere it takes those for equal that share one place in memory, as the gradients of a mean and a sum do.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.core.precision import at_least_fp32

CACHED = 2**20  # logits of one chunk on a CPU: they stay in its cache,
AT_LEAST = 256  # rows, below which adding up the (V, D) gradient costs more than the products


def logits_of(x: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
    """x (N, D), weight (V, D) -> (N, V) in fp32 or wider, capped to c tanh(z / c) with a softcap c."""
    z = at_least_fp32(F.linear(x, weight.to(x.dtype)))
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, ignore: int, rows: int, softcap: float | None = None
) -> Tensor:
    """Nats per token of ``targets`` under the softmax of ``logits_of(x, weight, softcap)``.

    Args:
        x: (N, D), the stream.
        weight: (V, D), from stream to logits; used in the dtype of x.
        targets: (N,) int64.
        ignore: a target that costs nothing and gives no gradient.
        rows: at most so many rows of logits exist at once.
        softcap: c of c tanh(z / c), or None.

    Returns:
        (N,), fp32 or wider.
    """
    if x.device.type == "cpu":
        rows = min(rows, max(AT_LEAST, CACHED // weight.shape[0]))
    wanted = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(x, weight, targets, ignore, rows, softcap, wanted)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, ignore: int, rows: int, softcap: float | None, ahead: bool
    ) -> Tensor:
        ignored = targets == ignore
        known = targets.masked_fill(ignored, 0)  # (N,)
        ctx.ahead = _Gradient(ctx, x, weight) if ahead else None
        some_ignored = ahead and (x.device.type != "cpu" or bool(ignored.any()))  # a pass over the logits less
        narrow, said = weight.to(x.dtype), []  # cast once for all chunks
        for part, wanted, lost in zip(x.split(rows), known.split(rows), ignored.split(rows), strict=True):
            z = logits_of(part, narrow, softcap)
            p = z.softmax(-1)
            log_sum = z.amax(-1) - p.amax(-1).log()  # the largest p is 1 / sum exp(z - largest z)
            said.append(log_sum - z.gather(1, wanted[:, None])[:, 0])
            if ctx.ahead is not None:
                dz = _to_logits(p, z, wanted, softcap)
                ctx.ahead.add(dz.masked_fill_(lost[:, None], 0.0) if some_ignored else dz, narrow)
        ctx.save_for_backward(x, weight, targets)
        ctx.ignore, ctx.rows, ctx.softcap = ignore, rows, softcap
        return torch.cat(said).masked_fill_(ignored, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, targets = ctx.saved_tensors
        ignored, nothing = targets == ctx.ignore, (None,) * 5
        made, ctx.ahead = ctx.ahead, None  # a second backward makes its own
        if made is not None and (scale := _common(grad, ignored)) is not None:
            return *made.scaled(scale, weight.dtype), *nothing
        grad = grad.masked_fill(ignored, 0.0)
        known, narrow = targets.masked_fill(ignored, 0), weight.to(x.dtype)
        made = _Gradient(ctx, x, weight)
        for part, wanted, upstream in zip(x.split(ctx.rows), known.split(ctx.rows), grad.split(ctx.rows), strict=True):
            z = logits_of(part, narrow, ctx.softcap)
            made.add(_to_logits(z.softmax(-1), z, wanted, ctx.softcap).mul_(upstream[:, None]), narrow)
        return *made.scaled(None, weight.dtype), *nothing


def _common(grad: Tensor, ignored: Tensor) -> Tensor | float | None:
    """The one number of which ``grad`` (N,) consists where it counts; None if there are several, or if nobody can tell."""
    if grad.stride() == (0,) and len(grad):
        return grad[0]
    if grad.device.type != "cpu":
        return None
    grad = grad[~ignored]
    if not len(grad):
        return 0.0
    return grad[0] if bool((grad == grad[0]).all()) else None


def _to_logits(p: Tensor, z: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """Probabilities p and capped logits z (rows, V) -> the gradient of the loss to the logits ahead of the cap, in place."""
    p.scatter_add_(1, targets[:, None], p.new_full((len(targets), 1), -1.0))
    return p if softcap is None else p.mul_((z / softcap).square_().neg_().add_(1.0))


class _Gradient:
    """The gradients to x (N, D) and weight (V, D), added up chunk by chunk, each if it is asked for."""

    def __init__(self, ctx: Any, x: Tensor, weight: Tensor) -> None:
        for_x, for_weight = ctx.needs_input_grad[:2]
        wide = torch.promote_types(x.dtype, torch.float32)
        self.x, self.done = x, 0
        self.dx = torch.empty_like(x) if for_x else None
        self.dw = torch.zeros(weight.shape, dtype=wide, device=x.device) if for_weight else None

    def add(self, dz: Tensor, narrow: Tensor) -> None:
        """One more chunk: dz (rows, V), and the weight in the dtype of x."""
        here = slice(self.done, self.done + len(dz))
        dz, self.done = dz.to(self.x.dtype), here.stop
        if self.dx is not None:
            torch.mm(dz, narrow, out=self.dx[here])
        if self.dw is None:
            return
        if dz.dtype == self.dw.dtype:
            self.dw.addmm_(dz.T, self.x[here])
        else:
            self.dw.add_(dz.T @ self.x[here])

    def scaled(self, scale: Tensor | float | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Both, times ``scale`` (None: as they are), the weight's in ``dtype``."""
        dx = self.dx if self.dx is None or scale is None else self.dx.mul_(scale)
        dw = self.dw if self.dw is None or scale is None else self.dw.mul_(scale)
        return dx, None if dw is None else dw.to(dtype)

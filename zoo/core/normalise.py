"""The root-mean-square norm. On a CPU torch composes it, and its backward, of many passes over memory; here there are fewer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.core.precision import at_least_fp32


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, times ``weight`` (D,), in fp32 or wider; in the dtype of x.

    ``python -m benchmarks.pointwise`` sets it beside F.rms_norm, forward and backward.
    """
    wide = at_least_fp32(x)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # without a gradient the Function is left out: to enter it costs three times the arithmetic of a single row
        unit = _Unit.apply(wide, eps) if torch.is_grad_enabled() else _unit(wide, eps)[0]
        scaled = unit if weight is None else unit * weight.to(wide.dtype)
        return scaled if wide is x else scaled.to(x.dtype)
    if weight is None and x.is_cuda:  # its kernel computes in fp32 whatever it is given
        return F.rms_norm(x, x.shape[-1:], None, eps)
    return F.rms_norm(wide, x.shape[-1:], None if weight is None else weight.to(wide.dtype), eps).to(x.dtype)


def _unit(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x (..., D) in rows of mean square 1, and the factor (..., 1) of each row."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    factor = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return x * factor, factor


class _Unit(torch.autograd.Function):
    """Rows of mean square 1. Kept for the backward are the result, which the next block keeps anyway, and a factor a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        unit, factor = _unit(x, eps)
        ctx.save_for_backward(unit, factor)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        unit, factor = ctx.saved_tensors
        along = (grad * unit).mean(-1, keepdim=True)
        return torch.addcmul(grad, unit, along, value=-1.0).mul_(factor), None

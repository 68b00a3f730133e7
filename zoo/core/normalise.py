"""The root-mean-square norm. On a CPU torch composes it, and its backward, of many passes over memory; here there are fewer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, times ``weight`` (D,), in fp32 or wider; in the dtype of x.

    ``python -m benchmarks.pointwise`` sets it beside F.rms_norm, forward and backward.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        unit = _Unit.apply(wide, eps)
        return (unit if weight is None else unit * weight.to(wide.dtype)).to(x.dtype)
    return F.rms_norm(wide, x.shape[-1:], None if weight is None else weight.to(wide.dtype), eps).to(x.dtype)


class _Unit(torch.autograd.Function):
    """Rows of mean square 1. Kept for the backward are the result, which the next block keeps anyway, and a factor a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        factor = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (..., 1)
        unit = x * factor
        ctx.save_for_backward(unit, factor)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        unit, factor = ctx.saved_tensors
        along = (grad * unit).mean(-1, keepdim=True)
        return torch.addcmul(grad, unit, along, value=-1.0).mul_(factor), None

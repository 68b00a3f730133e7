"""Pointwise nonlinearities that feed-forwards and experts share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def relu2(z: Tensor) -> Tensor:
    """relu(z)^2."""
    return _ReLU2.apply(z) if _is_learning() else F.relu(z).square()


def leaky_relu2(z: Tensor, slope: float = 0.5) -> Tensor:
    """z^2 where z >= 0, (slope z)^2 elsewhere: never negative, with derivative 0 at 0 from both sides."""
    return _LeakyReLU2.apply(z, slope) if _is_learning() else F.leaky_relu(z, slope).square()


def _is_learning() -> bool:
    """Whether a backward may follow that the compiler does not write itself."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


class _ReLU2(torch.autograd.Function):
    """Two passes over memory each way, of a tensor that is the widest of its layer; autograd's own backward takes four."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        positive = F.relu(z)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (grad * positive).mul_(2.0)


class _LeakyReLU2(torch.autograd.Function):
    """Keeps its input alone for the backward, where autograd keeps the leaky ReLU's result as well."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.slope = slope
        return F.leaky_relu(z, slope).square_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        inner = (grad * z).mul_(2.0)
        return torch.ops.aten.leaky_relu_backward(inner, z, ctx.slope**2, False), None


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu2": relu2,
    "leaky_relu2": leaky_relu2,
    "swiglu": F.silu,  # of the gate, which then multiplies a second projection
}

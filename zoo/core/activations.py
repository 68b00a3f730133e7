"""Pointwise nonlinearities that feed-forwards and experts share."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def relu2(z: Tensor) -> Tensor:
    """relu(z)^2."""
    return F.relu(z).square()


def leaky_relu2(z: Tensor, slope: float = 0.5) -> Tensor:
    """z^2 where z >= 0, (slope z)^2 elsewhere: never negative, with derivative 0 at 0 from both sides."""
    return F.leaky_relu(z, slope).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu2": relu2,
    "leaky_relu2": leaky_relu2,
    "swiglu": F.silu,  # of the gate, which then multiplies a second projection
}

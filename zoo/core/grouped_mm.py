"""Grouped products for a compiler: one operation that is handed its tensors as they lie.

torch's own grouped product wants the rows of its operands to lie one after the other. A compiler that lays out the tensors
between two operations anew does not know that, and a GPU then stops the process. An operation of our own is opaque to it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.library.custom_op("zoo::grouped_mm", mutates_args=())
def grouped_mm(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """rows (S, D) by expert, weight (E, F, D), ends (E,) int32, the row after each expert's last -> (S, F)."""
    return F.grouped_mm(rows.contiguous(), weight.contiguous().transpose(1, 2), offs=ends)


@torch.library.custom_op("zoo::grouped_mm_backward", mutates_args=())
def _backward(grad: Tensor, rows: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """grad (S, F) -> the gradients to rows (S, D) and weight (E, F, D)."""
    grad = grad.contiguous()
    to_rows = F.grouped_mm(grad, weight.contiguous(), offs=ends)
    return to_rows, F.grouped_mm(grad.transpose(0, 1), rows.contiguous(), offs=ends)


@grouped_mm.register_fake
def _(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[1])


@_backward.register_fake
def _(grad: Tensor, rows: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), weight.new_empty(weight.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_backward(grad, *ctx.saved_tensors), None


grouped_mm.register_autograd(_gradients, setup_context=_keep)

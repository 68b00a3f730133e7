"""A FLOP counter that sees every matrix product that a block may call, those of fused operations among them.

torch's own counts nothing for grouped products, nor for scaled_dot_product_attention on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[int, ...]


def _grouped_product(a: Shape, b: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Two stacks are a batch of products; of a stack and rows that are shared out, every row meets one matrix."""
    one = 2 * a[-2] * a[-1] * b[-1]
    return a[0] * one if len(a) == len(b) == 3 else one


def _attention(q: Shape, k: Shape, v: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """q (..., T, h), k (..., S, h), v (..., S, width): scores and their mix, all T x S of them, for every query head."""
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def formulas() -> dict[Any, Callable[..., int]]:
    """What is counted beside torch's own list, as far as this torch has the operations."""
    wanted = {"_grouped_mm": _grouped_product, "_scaled_dot_product_flash_attention_for_cpu": _attention}
    return {getattr(torch.ops.aten, name): formula for name, formula in wanted.items() if hasattr(torch.ops.aten, name)}


def counter() -> FlopCounterMode:
    """``with counter() as count: ...``, then ``count.get_total_flops()``: two per multiply-add, masked products too."""
    return FlopCounterMode(display=False, custom_mapping=formulas())

"""Dtypes: which a device is fast at, and which are wide enough for sums."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

WIDE = (torch.float32, torch.float64)


def at_least_fp32(t: Tensor) -> Tensor:
    """``t`` in fp32, or as it is where it is that wide."""
    return t if t.dtype in WIDE else t.float()


@cache
def bf16_is_fast(device: str) -> bool:
    """Whether matrix products in bfloat16 beat those in float32 on ``device`` (``cpu``, ``cuda``, ``cuda:1``, ``mps``).

    A GPU that only emulates it does not count; a CPU needs AVX512-BF16 or AMX, as Linux reports them.
    """
    if device.startswith("cuda"):
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    flags = Path("/proc/cpuinfo")
    return flags.exists() and bool({"avx512_bf16", "amx_bf16"} & set(flags.read_text().split()))

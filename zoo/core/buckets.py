"""Many tensors as few flat ones: what travels together between processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BUCKET = 2**24  # elements that travel in one piece


def buckets(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The numbers of tensors that travel together: of one dtype and device, and not too many elements."""
    found: list[list[int]] = []
    open_ones: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    filled: dict[tuple[torch.dtype, torch.device], int] = {}
    for i, t in enumerate(tensors):
        key = (t.dtype, t.device)
        if key not in open_ones or filled[key] + t.numel() > BUCKET:
            open_ones[key], filled[key] = [], 0
            found.append(open_ones[key])
        open_ones[key].append(i)
        filled[key] += t.numel()
    return found


def pieces(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a flat tensor in the shapes of those that it was made of."""
    parts = flat.split([t.numel() for t in like])
    return [part.view(t.shape) for part, t in zip(parts, like, strict=True)]


def checksum(t: Tensor) -> Tensor:
    """The sum of a tensor's bits as integers."""
    wide = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[t.element_size()]
    return t.detach().contiguous().view(-1).view(wide).sum(dtype=torch.int64)

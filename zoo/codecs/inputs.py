"""What a model's matrices are multiplied with: the mean of x x^T over the inputs x of each, for roundings that ask."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from zoo.core.params import Linear
from zoo.data.batches import segments
from zoo.model import Model

AT_ONCE = 8  # rows of text in one call


@torch.no_grad()
def hessians(model: Model, tokens: np.ndarray, context: int, rows: int, bos: int | None = None) -> dict[str, Tensor]:
    """For the weight of every Linear by full name: (C, C) fp64, on the CPU.

    Args:
        model: in evaluation mode, on its device.
        tokens: (N,) ids of training text.
        context: tokens of one row.
        rows: how many, spread evenly over the text.
        bos: the id that starts a document, where documents are kept apart; None: they are not.
    """
    sums: dict[str, Tensor] = {}
    seen: dict[str, int] = {}
    watched = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, Linear)}
    handles = [module.register_forward_pre_hook(_watch(name, sums, seen)) for name, module in watched.items()]
    device = next(model.parameters()).device
    last = max(0, len(tokens) - context)
    starts = np.linspace(0, last, min(rows, last + 1)).astype(np.int64)
    try:
        for first in range(0, len(starts), AT_ONCE):
            pieces = [np.asarray(tokens[s : s + context], np.int64) for s in starts[first : first + AT_ONCE]]
            inputs = torch.from_numpy(np.stack(pieces))  # (B, T)
            apart = None if bos is None else segments(inputs, bos).to(device)
            model(inputs.to(device), segments=apart)
    finally:
        for handle in handles:
            handle.remove()
    return {name: sums[name].cpu() / seen[name] for name in sums}


def _watch(name: str, sums: dict[str, Tensor], seen: dict[str, int]):
    def watch(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach().reshape(-1, args[0].shape[-1]).double()  # (N, C)
        sums[name] = sums[name] + x.T @ x if name in sums else x.T @ x
        seen[name] = seen.get(name, 0) + len(x)

    return watch

"""Trunk: the order in which layers are applied, and what skips around them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.core.params import Constant, Role
from zoo.core.slots import Site, Trunk


class Plain(Trunk, kind="plain"):
    """One layer after the other. Source: Attention Is All You Need, arXiv:1706.03762."""

    def __init__(self, cfg: Plain.Config, site: Site) -> None:
        super().__init__()

    def forward(self, x: Tensor, steps: list[Callable[[Tensor], Tensor]]) -> Tensor:
        for step in steps:
            x = step(x)
        return x


class UNet(Trunk, kind="unet"):
    """U-Net skips: what the first half of the layers put out is added, last first, ahead of the layers of the second.

    Each skip has a learned weight per channel, from 1. With an odd number of layers the last one has no skip.

    Source: U-Net, arXiv:1505.04597; in decoders, KellerJordan/modded-nanogpt.
    """

    roles = {"skip": Role.CONTROL}
    inits = {"skip": Constant(1.0)}

    def __init__(self, cfg: UNet.Config, site: Site) -> None:
        super().__init__()
        self.half = site.n_layers // 2
        self.skip = nn.Parameter(torch.empty(self.half, site.dim)) if self.half else None

    def forward(self, x: Tensor, steps: list[Callable[[Tensor], Tensor]]) -> Tensor:
        kept: list[Tensor] = []
        for step in steps[: self.half]:
            x = step(x)
            kept.append(x)
        for i, step in enumerate(steps[self.half :]):
            if kept:
                x = x + self.skip[i].to(x.dtype) * kept.pop()
            x = step(x)
        return x

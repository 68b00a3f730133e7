"""Stem: the stream as it entered the first layer, mixed in again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.core.params import Role, Rows
from zoo.core.slots import Site, Stem
from zoo.core.wires import X0, Bus


class X0Mix(Stem, kind="x0_mix"):
    """y = a x + b x0, with x0 the stream as it entered the first layer and learned vectors a, from 1, and b, from 0.

    A piece for a layer's stem: at the model's entrance x0 does not exist yet.

    Source: KellerJordan/modded-nanogpt; as in openai/parameter-golf#828.
    """

    inits = {"mix": Rows((1.0, 0.0))}
    roles = {"mix": Role.CONTROL}
    reads = (X0,)

    def __init__(self, cfg: X0Mix.Config, site: Site) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.empty(2, site.dim))

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        stream, start = self.mix.to(x.dtype)
        return stream * x + start * bus[X0]

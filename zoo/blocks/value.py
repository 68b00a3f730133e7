"""Value: this layer's values as they are, or mixed with the first layer's."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.core.params import Constant, Role
from zoo.core.slots import Site, Value
from zoo.core.wires import Bus, Wire

V0 = Wire("v0", "B G T h")  # the values of the first layer that has them


class PlainValue(Value, kind="plain"):
    """The layer's own values, unchanged. Source: Attention Is All You Need, arXiv:1706.03762."""

    identity = True

    def __init__(self, cfg: PlainValue.Config, site: Site) -> None:
        super().__init__()

    def forward(self, v: Tensor, bus: Bus) -> Tensor:
        return v


class ResidualValue(Value, kind="residual"):
    """Value residual: each layer's values averaged with the first layer's.

    ``mix = "half"``: (v + v0) / 2, a constant. ``mix = "learned"``: m[0] v0 + m[1] v, one pair per layer from (1/2, 1/2).

    Source: ResFormer, arXiv:2410.17897.
    """

    reads = (V0,)
    writes = (V0,)
    roles = {"mix": Role.CONTROL}
    inits = {"mix": Constant(0.5)}

    class Config(Value.Config):
        mix: Literal["half", "learned"] = "half"

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.empty(2)) if cfg.mix == "learned" else None

    def forward(self, v: Tensor, bus: Bus) -> Tensor:
        v0 = bus.first(V0, v)
        if self.mix is None:
            return 0.5 * (v + v0)
        m = self.mix.to(v.dtype)
        return m[0] * v0 + m[1] * v

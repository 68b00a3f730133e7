"""Gated attention: how much of each head's result passes is the token's own decision."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from zoo.core.attend import split_heads
from zoo.core.params import Constant, Linear, Role
from zoo.core.slots import HeadSite, Output
from zoo.core.wires import Bus


class Gate(Output, kind="gate"):
    """y * sigmoid(W x + b), with x the normed input of the attention: one gate per head, or one per element.

    W starts at zero, so every gate starts at sigmoid(b) whatever the token: half open without a bias, 0.982 at b = 4.

    Source: Gated Attention for Large Language Models, arXiv:2505.06708 (the gate after attention, without bias);
    zero weight with bias 4 as in openai/parameter-golf#727.
    """

    class Config(Output.Config):
        per: Literal["headwise", "elementwise"] = "headwise"
        bias: float | None = None  # first value of the bias; None: no bias

    def __init__(self, cfg: Config, site: HeadSite) -> None:
        super().__init__()
        width = site.n_heads * (site.head_dim if cfg.per == "elementwise" else 1)
        self.width = width // site.n_heads
        self.open = Linear(site.dim, width, role=Role.CONTROL, bias=cfg.bias, init=Constant(0.0))

    def forward(self, y: Tensor, x: Tensor, v: Tensor, bus: Bus) -> Tensor:
        gate = split_heads(self.open(x), self.width).transpose(1, 2)  # (B, H, T, 1) or (B, H, T, h)
        return y * gate.sigmoid()

"""Layer: how attention and feed-forward are put around the residual stream."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.core.params import Constant, Role
from zoo.core.slots import Attention, FeedForward, Layer, Norm, Site, run_stem
from zoo.core.wires import Bus


class PreNorm(Layer, kind="pre_norm"):
    """x += attention(norm(x)), then x += ffn(norm(x)); an optional stem ahead of both.

    ``branch_scale = "learned"`` multiplies each branch by a vector of width D, from 1.

    Source: pre-norm, arXiv:2002.04745; learned branch scales as in openai/parameter-golf#828.
    """

    inits = {"attention_scale": Constant(1.0), "ffn_scale": Constant(1.0)}
    roles = {"attention_scale": Role.CONTROL, "ffn_scale": Role.CONTROL}

    class Config(Layer.Config):
        branch_scale: Literal["none", "learned"] = "none"

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        self.stem = nn.ModuleList(cfg.child("stem", site))
        self.attention_norm: Norm = cfg.child("norm", site)
        self.attention: Attention = cfg.child("attention", site)
        self.ffn_norm: Norm = cfg.child("norm", site)
        self.ffn: FeedForward = cfg.child("ffn", site)
        learned = cfg.branch_scale == "learned"
        self.attention_scale = nn.Parameter(torch.empty(site.dim)) if learned else None
        self.ffn_scale = nn.Parameter(torch.empty(site.dim)) if learned else None

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        x = run_stem(self.stem, x, bus)
        x = x + self._scaled(self.attention(self.attention_norm(x), bus), self.attention_scale)
        return x + self._scaled(self.ffn(self.ffn_norm(x), bus), self.ffn_scale)

    @staticmethod
    def _scaled(branch: Tensor, scale: Tensor | None) -> Tensor:
        return branch if scale is None else branch * scale.to(branch.dtype)

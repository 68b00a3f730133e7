"""Norm: RMSNorm, LayerNorm, none, and a scale by depth around any of them."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn

from zoo.core.normalise import rms_norm
from zoo.core.params import Constant
from zoo.core.slots import Norm, Site


class RMSNorm(Norm, kind="rms_norm"):
    """x / sqrt(mean(x^2) + eps), computed in fp32 or wider, times a learned weight.

    ``weight``: "scale" (w, from 1), "unit_offset" (1 + w, from 0, as Gemma), "none".

    Source: arXiv:1910.07467.
    """

    class Config(Norm.Config):
        eps: PositiveFloat = 1e-6
        weight: Literal["scale", "unit_offset", "none"] = "scale"

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        self.eps, self.offset = cfg.eps, 1.0 if cfg.weight == "unit_offset" else 0.0
        self.weight = None if cfg.weight == "none" else nn.Parameter(torch.empty(site.dim))
        if self.weight is not None:
            self.inits = {"weight": Constant(1.0 - self.offset)}

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + self.offset if self.offset else self.weight
        return rms_norm(x, weight, self.eps)


class LayerNorm(Norm, kind="layer_norm"):
    """(x - mean) / sqrt(variance + eps), times a weight, plus a bias. Source: arXiv:1607.06450."""

    inits = {"weight": Constant(1.0), "bias": Constant(0.0)}

    class Config(Norm.Config):
        eps: PositiveFloat = 1e-5

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        self.eps = cfg.eps
        self.weight, self.bias = nn.Parameter(torch.empty(site.dim)), nn.Parameter(torch.empty(site.dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class NoNorm(Norm, kind="none"):
    """The identity. Source: residual networks without norms, arXiv:1901.09321."""

    def __init__(self, cfg: NoNorm.Config, site: Site) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class LNScale(Norm, kind="ln_scale"):
    """A norm divided by the square root of its layer's number, counted from 1: deep layers speak more softly.

    With QK-norm the factor cancels in queries and keys and acts on values alone; in a squared-ReLU MLP it acts squared.

    Source: The Curse of Depth in Large Language Models, arXiv:2502.05795 (not to be combined with scaled output init).
    """

    class Config(Norm.Config):
        norm: Norm.Config = Norm.pick("rms_norm")

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        self.norm: Norm = cfg.child("norm", site)
        self.register_buffer("scale", torch.tensor((max(site.index, 0) + 1) ** -0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * self.scale.to(x.dtype)

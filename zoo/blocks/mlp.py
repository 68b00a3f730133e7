"""FeedForward: dense MLPs."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from zoo.core.activations import leaky_relu2, relu2
from zoo.core.params import Linear, Use
from zoo.core.slots import FeedForward, Site
from zoo.core.wires import Bus


class MLP(FeedForward):
    """What the dense kinds share: a projection up, one down, and whether they have biases."""

    class Config(FeedForward.Config):
        """Knobs of every dense MLP."""

        bias: float | None = None  # first value of all biases; None: no biases

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        hidden = cfg.hidden_dim or 4 * site.dim
        self.up = Linear(site.dim, hidden, bias=cfg.bias)
        self.down = Linear(hidden, site.dim, bias=cfg.bias, init=Use.OUTPUT)

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        return self.down(self.activation(self.up(x)))

    def activation(self, z: Tensor) -> Tensor:
        """(B, T, F) -> (B, T, F)."""
        raise NotImplementedError


class ReLU2(MLP, kind="relu2"):
    """W2 relu(W1 x)^2. Source: Primer, arXiv:2109.08668."""

    class Config(MLP.Config):
        pass

    def activation(self, z: Tensor) -> Tensor:
        return relu2(z)


class LeakyReLU2(MLP, kind="leaky_relu2"):
    """W2 leaky_relu(W1 x)^2: never negative, and units that are off still learn. Source: openai/parameter-golf#828.

    With ``slope`` 0 it is relu2, with -1 the plain square.
    """

    class Config(MLP.Config):
        slope: float = 0.5  # of the leaky ReLU below zero, ahead of the square

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__(cfg, site)
        self.slope = cfg.slope

    def activation(self, z: Tensor) -> Tensor:
        return leaky_relu2(z, self.slope)


class SiLU(MLP, kind="silu"):
    """W2 silu(W1 x). Source: SiLU, arXiv:1702.03118."""

    class Config(MLP.Config):
        pass

    def activation(self, z: Tensor) -> Tensor:
        return F.silu(z)


class GELU(MLP, kind="gelu"):
    """W2 gelu(W1 x), the MLP of GPT-2 (with ``approximate = "tanh"`` and biases). Source: GELU, arXiv:1606.08415."""

    class Config(MLP.Config):
        approximate: Literal["none", "tanh"] = "none"

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__(cfg, site)
        self.approximate = cfg.approximate

    def activation(self, z: Tensor) -> Tensor:
        return F.gelu(z, approximate=self.approximate)


class SwiGLU(MLP, kind="swiglu"):
    """W2 (silu(W1 x) * W3 x): a gated MLP of three matrices. Source: GLU Variants Improve Transformer, arXiv:2002.05202."""

    class Config(MLP.Config):
        pass

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__(cfg, site)
        self.gate = Linear(site.dim, cfg.hidden_dim or 4 * site.dim, bias=cfg.bias)

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))

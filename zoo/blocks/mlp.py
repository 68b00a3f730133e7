"""FeedForward: dense MLPs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from zoo.core.params import Linear, Use
from zoo.core.slots import FeedForward, Site
from zoo.core.wires import Bus


class TwoMatrix(FeedForward):
    """W2 activation(W1 x), the shape that four of the kinds share."""

    class Config(FeedForward.Config):
        """Knobs of every two-matrix MLP."""

        bias: float | None = None  # first value of both biases; None: no biases

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


class ReLU2(TwoMatrix, kind="relu2"):
    """W2 relu(W1 x)^2. Source: Primer, arXiv:2109.08668."""

    class Config(TwoMatrix.Config):
        pass

    def activation(self, z: Tensor) -> Tensor:
        return F.relu(z).square()


class SwiGLU(FeedForward, kind="swiglu"):
    """W2 (silu(W1 x) * W3 x): a gated MLP of three matrices. Source: GLU Variants Improve Transformer, arXiv:2002.05202."""

    class Config(FeedForward.Config):
        pass

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        hidden = cfg.hidden_dim or 4 * site.dim
        self.gate, self.up = Linear(site.dim, hidden), Linear(site.dim, hidden)
        self.down = Linear(hidden, site.dim, init=Use.OUTPUT)

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))

"""What grouped-query attentions share: projections, QK-norm, learned gain, decoding."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from zoo.core.attend import attend, join_heads, split_heads
from zoo.core.params import Constant, Linear, Role, Use
from zoo.core.part import ConfigError
from zoo.core.slots import Attention, HeadSite, Norm, Position, Site, Value
from zoo.core.wires import Bus


def width_of_heads(n_heads: int, head_dim: int | None, dim: int) -> int:
    """The width of one head: ``head_dim``, or dim / n_heads, which must then divide."""
    if head_dim is not None:
        return head_dim
    if dim % n_heads:
        raise ConfigError(f"does not divide dim = {dim}; choose a divisor or set head_dim", "n_heads", n_heads)
    return dim // n_heads


class Grouped(Attention):
    """Attention with H query heads over G key/value heads. ``mix`` is where a kind of its own may add to the keys."""

    roles = {"gain": Role.CONTROL}

    class Config(Attention.Config):
        """Knobs that survive a swap between grouped attentions."""

        n_kv_heads: PositiveInt | None = None  # G; None: as many as query heads
        qk_norm: Norm.Config = Norm.pick("none")  # before the rotation
        qk_norm_over: Literal["head", "projection"] = "head"  # each head alone (Qwen3), or all heads at once (OLMoE)
        qk_gain: PositiveFloat | None = None  # first value of a learned factor per query head; None: no factor

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        heads, groups = cfg.n_heads, cfg.n_kv_heads or cfg.n_heads
        if heads % groups:
            raise ConfigError(f"must divide n_heads = {heads}", "n_kv_heads", groups)
        self.head_dim = h = width_of_heads(heads, cfg.head_dim, site.dim)
        self.heads, self.groups, self.over = heads, groups, cfg.qk_norm_over
        self.query = Linear(site.dim, heads * h)
        self.key = Linear(site.dim, groups * h)
        self.value_projection = Linear(site.dim, groups * h)
        self.projection = Linear(heads * h, site.dim, init=Use.OUTPUT)
        q_width, k_width = (h, h) if cfg.qk_norm_over == "head" else (heads * h, groups * h)
        self.q_norm: Norm = cfg.child("qk_norm", site.at(q_width))
        self.k_norm: Norm = cfg.child("qk_norm", site.at(k_width))
        self.gain = None if cfg.qk_gain is None else nn.Parameter(torch.empty(heads))
        if cfg.qk_gain is not None:
            self.inits = {**type(self).inits, "gain": Constant(cfg.qk_gain)}
        self.position: Position = cfg.child("position", site.at(h))
        self.value: Value = cfg.child("value", site.at(h))
        self.output = nn.ModuleList(cfg.child("output", HeadSite.within(site, heads, h)))

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        q = self.split_and_norm(self.query(x), self.q_norm)  # (B, H, T, h)
        k = self.split_and_norm(self.key(x), self.k_norm)  # (B, G, T, h)
        v = self.value(self.split(self.value_projection(x)), bus)  # (B, G, T, h)
        turned = self.gained(self.position(q, bus))
        k = bus.extend("k", self.position(k, bus))  # (B, G, S, h)
        y = self.mix(q, turned, k, bus.extend("v", v), bus)
        for piece in self.output:
            y = piece(y, x, v, bus)
        return self.projection(join_heads(y))

    def mix(self, unturned: Tensor, q: Tensor, k: Tensor, v: Tensor, bus: Bus) -> Tensor:
        """What each token takes from all so far.

        Args:
            unturned: (B, H, T, h), the queries before position and gain.
            q: (B, H, T, h), the queries as they score.
            k, v: (B, G, S, h), keys and values of all tokens so far.
            bus: this call's notebook.

        Returns:
            (B, H, T, h).
        """
        return attend(q, k, v, bus, self.head_dim**-0.5)

    def split(self, t: Tensor) -> Tensor:
        """(B, T, heads x h) -> (B, heads, T, h)."""
        return split_heads(t, self.head_dim).transpose(1, 2)

    def split_and_norm(self, t: Tensor, norm: Norm) -> Tensor:
        """``split`` with QK-norm over each head or over the whole projection.

        The norm comes ahead of the transpose: a compiled LayerNorm's backward has other strides than it says of itself
        where its input was transposed.
        """
        if self.over == "projection":
            return self.split(norm(t))
        return norm(split_heads(t, self.head_dim)).transpose(1, 2)

    def gained(self, q: Tensor) -> Tensor:
        """Queries (B, H, T, h) times the learned gain of their head, if there is one."""
        return q if self.gain is None else q * self.gain.to(q.dtype)[:, None, None]

    def extra_flops(self, context: int) -> float:
        return 4.0 * context * self.heads * self.head_dim

    def cache_elements(self) -> int:
        return 2 * self.groups * self.head_dim

"""Position: how queries and keys learn where they stand."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from zoo.core.attend import positions, segments_of
from zoo.core.part import ConfigError
from zoo.core.slots import Position, Site
from zoo.core.wires import Bus


class RoPE(Position, kind="rope"):
    """Rotary positions on the first ``dims`` of each head: scores depend on distance alone.

    Pair i turns by ``position * theta ** (-2 i / dims)``. ``layout`` says which entries form a pair: "half" (i, i +
    dims/2), as Llama and GPT-NeoX, or "interleaved" (2 i, 2 i + 1), as GPT-J and DeepSeek. Angles are built in fp32.

    Source: RoFormer, arXiv:2104.09864; partial rotation as in GPT-NeoX, arXiv:2204.06745.
    """

    class Config(Position.Config):
        dims: int | None = Field(None, ge=2)  # None: the whole head
        theta: PositiveFloat = 10_000.0
        layout: Literal["half", "interleaved"] = "half"

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        dims = site.dim if cfg.dims is None else cfg.dims
        if dims % 2 or dims > site.dim:
            raise ConfigError(f"must be even and at most the head's width {site.dim}", "dims", dims)
        self.dims, self.layout = dims, cfg.layout
        frequency = cfg.theta ** (-torch.arange(0, dims, 2, dtype=torch.float32) / dims)
        angle = torch.outer(torch.arange(site.context, dtype=torch.float32), frequency)  # (context, dims / 2)
        self.register_buffer("frequency", frequency, persistent=False)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, t: Tensor, bus: Bus) -> Tensor:
        cos, sin = (table.to(t.dtype) for table in self._tables(t, bus))
        turned, rest = t[..., : self.dims], t[..., self.dims :]
        a, b = turned.chunk(2, -1) if self.layout == "half" else (turned[..., ::2], turned[..., 1::2])
        a, b = a * cos - b * sin, b * cos + a * sin
        turned = torch.cat([a, b], -1) if self.layout == "half" else torch.stack([a, b], -1).flatten(-2)
        return torch.cat([turned, rest], -1) if self.dims < t.shape[-1] else turned

    def _tables(self, t: Tensor, bus: Bus) -> tuple[Tensor, Tensor]:
        """cos and sin, (T, dims / 2), or (B, 1, T, dims / 2) where rows hold several documents."""
        n_tokens = t.shape[-2]
        end = bus.offset + n_tokens
        inside = end <= self.cos.shape[0]
        if segments_of(bus) is None and inside:
            return self.cos[bus.offset : end], self.sin[bus.offset : end]
        where = positions(bus, n_tokens, t.device)
        if inside:  # looked up, not computed: a document's answer must not depend on what else its row holds
            cos, sin = self.cos[where], self.sin[where]
        else:  # in fp32 as the table is, also in an fp64 model
            angle = where[..., None].float() * self.frequency.float()
            cos, sin = angle.cos(), angle.sin()
        return (cos[:, None], sin[:, None]) if where.ndim == 2 else (cos, sin)


class NoPosition(Position, kind="none"):
    """No positions: order is known from the causal mask alone. Source: NoPE, arXiv:2305.19466."""

    def __init__(self, cfg: NoPosition.Config, site: Site) -> None:
        super().__init__()

    def forward(self, t: Tensor, bus: Bus) -> Tensor:
        return t

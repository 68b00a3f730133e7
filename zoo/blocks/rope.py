"""Position: how queries and keys learn where they stand."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from zoo.core.attend import positions, segments_of
from zoo.core.part import ConfigError
from zoo.core.slots import Position, Site
from zoo.core.wires import Bus

FAR = 2**14  # from this position on whole turns are taken off in fp64: an fp32 angle of 1e6 is off by 0.03


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

        def is_partial(self) -> bool:
            return self.dims is not None

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        dims = site.dim if cfg.dims is None else cfg.dims
        if dims % 2 or dims > site.dim:
            raise ConfigError(f"must be even and at most the width {site.dim} that it turns", "dims", dims)
        self.dims, self.theta, self.layout = dims, cfg.theta, cfg.layout
        where = torch.empty(site.context, dtype=torch.long)
        if not where.is_meta:  # there arange is Python's, a millisecond each, and gives no values either
            torch.arange(site.context, out=where)
        cos, sin = self._tables(where)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, t: Tensor, bus: Bus) -> Tensor:
        cos, sin = (table if table.dtype == t.dtype else table.to(t.dtype) for table in self._angles(t, bus))
        part = t[..., : self.dims]
        turned = torch.addcmul(part * cos, self._partners(part), sin)
        return torch.cat([turned, t[..., self.dims :]], -1) if self.dims < t.shape[-1] else turned

    def _partners(self, part: Tensor) -> Tensor:
        """Each entry's partner in its pair, (..., dims) -> (..., dims)."""
        if self.layout == "half":
            return part.roll(self.dims // 2, -1)
        return part.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)

    def _angles(self, t: Tensor, bus: Bus) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines, (T, dims), or (B, 1, T, dims) where rows hold several documents."""
        n_tokens = t.shape[-2]
        end = bus.offset + n_tokens
        known, segmented = end <= self.cos.shape[0], segments_of(bus) is not None
        if known and not segmented:
            return self.cos[bus.offset : end], self.sin[bus.offset : end]
        where = positions(bus, n_tokens, t.device)
        where = where[:, None] if segmented else where
        return (self.cos[where], self.sin[where]) if known else self._tables(where)

    def _tables(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """For positions (...): cosines and sines (..., dims) in fp32, as each entry of a head needs them.

        An entry becomes ``cos * itself + sin * partner``: the sine is negative for the first of each pair.
        """
        if where.is_meta:  # angles without a value cost as much time as others
            cos, sin = (torch.empty((*where.shape, self.dims), device=where.device) for _ in range(2))
            return cos, sin
        pairs = torch.arange(0, self.dims, 2, dtype=torch.float32, device=where.device)
        frequency = self.theta ** (-pairs / self.dims)
        angle = where[..., None].float() * frequency  # (..., dims / 2)
        if where.device.type != "mps":  # which has no fp64
            exact = where[..., None].double() * frequency.double()
            angle = torch.where(where[..., None] < FAR, angle, (exact % math.tau).float())
        cos, sin = angle.cos(), angle.sin()
        if self.layout == "half":
            return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
        return cos.repeat_interleave(2, -1), torch.stack([-sin, sin], -1).flatten(-2)


class NoPosition(Position, kind="none"):
    """No positions: order is known from the causal mask alone. Source: NoPE, arXiv:2305.19466."""

    def __init__(self, cfg: NoPosition.Config, site: Site) -> None:
        super().__init__()

    def forward(self, t: Tensor, bus: Bus) -> Tensor:
        return t

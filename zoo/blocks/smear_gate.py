"""Stem: a little of the previous token's stream."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from zoo.core.attend import previous
from zoo.core.params import Constant, Role
from zoo.core.part import ConfigError
from zoo.core.slots import Site, Stem
from zoo.core.wires import SEGMENTS, Bus


class SmearGate(Stem, kind="smear_gate"):
    """Mixes each token's stream with its predecessor's.

    ``form``: "convex" is y = (1 - g) x + g x_before with a learned gate per channel, g = sigmoid(gate), from 1/2; so it does
    not start as the identity. "additive" is y = x + scale sigmoid(w . x[:channels]) x_before with one gate per token; it
    starts as the identity (scale = 0, w = 0), and w learns only once the scale has moved.

    A token without a predecessor in its document stays as it is (``start = "keep"``). "halve" takes x_before = 0 there, so
    that the convex form scales it by 1 - g, as the published run does to the first token of each row.

    Source: convex, openai/parameter-golf#828; additive, KellerJordan/modded-nanogpt.
    """

    inits = {"gate": Constant(0.0), "scale": Constant(0.0)}
    roles = {"gate": Role.CONTROL, "scale": Role.CONTROL}
    reads = (SEGMENTS,)

    class Config(Stem.Config):
        form: Literal["convex", "additive"] = "convex"
        start: Literal["keep", "halve"] = "keep"
        channels: PositiveInt = 12  # how many of a token's first channels the additive gate reads

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        self.form, self.start, self.channels = cfg.form, cfg.start, cfg.channels
        if cfg.form == "additive" and cfg.channels > site.dim:
            raise ConfigError(f"exceeds dim = {site.dim}", "channels", cfg.channels)
        self.gate = nn.Parameter(torch.empty(site.dim if cfg.form == "convex" else cfg.channels))
        self.scale = nn.Parameter(torch.empty(())) if cfg.form == "additive" else None

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        before, exists = previous(bus, "x", x)  # (B, T, D), (T) or (B, T)
        exists = exists[..., None]
        if self.form == "additive":
            gate = torch.sigmoid(x[..., : self.channels] @ self.gate.to(x.dtype))[..., None]  # (B, T, 1)
            return torch.where(exists, x + self.scale.to(x.dtype) * gate * before, x)
        gate = torch.sigmoid(self.gate).to(x.dtype)  # (D,)
        mixed = torch.lerp(x, before.where(exists, 0), gate)
        return mixed if self.start == "halve" else torch.where(exists, mixed, x)

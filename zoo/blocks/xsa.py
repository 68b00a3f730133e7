"""Exclusive self-attention: what a token says of itself is left to the residual stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.part import ConfigError
from zoo.core.slots import HeadSite, Output
from zoo.core.wires import Bus


class XSA(Output, kind="xsa"):
    """Each head's result without its component along the token's own value: y - (y . v) v / |v|^2.

    With grouped heads the value is that of the head's group. At least fp32 inside. The first token of a document, which
    sees itself alone, gets exactly nothing from attention.

    Source: Exclusive Self-Attention, arXiv:2603.09078.
    """

    def __init__(self, cfg: XSA.Config, site: HeadSite) -> None:
        super().__init__()
        if site.head_dim == 1:
            raise ConfigError("leaves nothing of heads of width 1")

    def forward(self, y: Tensor, x: Tensor, v: Tensor, bus: Bus) -> Tensor:
        wide = torch.promote_types(y.dtype, torch.float32)
        grouped = y.to(wide).unflatten(1, (v.shape[1], -1))  # (B, G, H / G, T, h)
        own = F.normalize(v.to(wide), dim=-1)[:, :, None]  # (B, G, 1, T, h)
        along = (grouped * own).sum(-1, keepdim=True)
        return (grouped - along * own).flatten(1, 2).to(y.dtype)


class XSABug828(Output, kind="xsa_bug828"):
    """A published mistake for XSA: y - v / T, with the length of the window where the square of v's norm belongs.

    Source: openai/parameter-golf#828, whose code ran like this; also in its pull requests 802, 871 and 876.
    """

    breaks = {
        "prefix_consistent": "subtracts v / T, so every answer depends on how many tokens follow it; "
        "seen in openai/parameter-golf#828"
    }

    def __init__(self, cfg: XSABug828.Config, site: HeadSite) -> None:
        super().__init__()

    def forward(self, y: Tensor, x: Tensor, v: Tensor, bus: Bus) -> Tensor:
        own = v.repeat_interleave(y.shape[1] // v.shape[1], 1)  # (B, H, T, h)
        return y - own / v.shape[2]

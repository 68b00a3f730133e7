"""Mixtures of experts to examine, and their naive twin."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.core.slots import FeedForward, Site
from zoo.core.wires import NOISE, Bus, noise_key
from zoo.model import Stage

DIM, HIDDEN, E, K = 16, 24, 8, 2
ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu2": lambda z: F.relu(z) ** 2,
    "leaky_relu2": lambda z: F.leaky_relu(z, 0.5) ** 2,
    "swiglu": F.silu,
}


def build(dtype: torch.dtype = torch.float64, site: Site = Site(DIM), **knobs: Any) -> FeedForward:
    """A mixture in training mode with random parameters, and its parts under the paths that a stage gives them."""
    block = FeedForward.parse({"kind": "moe", "hidden_dim": HIDDEN, **knobs}).build(site)
    Stage(block)
    randomise(block)
    return block.to(dtype)


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.3))


def stream(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def notebook(step: int = 0) -> Bus:
    return Bus({NOISE: noise_key(0, step)})


def run(block: FeedForward, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """What the block puts out, its losses and its stats."""
    bus = notebook()
    y = block(x, bus)
    _, report, _ = bus.close()
    return y, report.losses, report.stats


def naive(block: FeedForward, x: Tensor, activation: str, knobs: dict[str, Any]) -> Tensor:
    """One token at a time, one expert at a time."""
    e, out = dict(block.experts.named_parameters()), []
    for token in x.flatten(0, 1):
        logits = block.router.weight @ token + (0 if block.router.bias is None else block.router.bias)
        scores = logits.softmax(0) if knobs.get("score") != "sigmoid" else logits.sigmoid()
        preference = scores.detach() + getattr(block.balance, "bias", 0)
        chosen = sorted(range(len(scores)), key=lambda i: -preference[i].item())[: block.top_k]
        total = sum(scores[i] for i in chosen) if knobs.get("renormalise") != "none" else 1
        y = 0
        for i in chosen:
            bias = {name: e.get(f"{name}_bias", torch.zeros(E, 1, dtype=x.dtype))[i] for name in ("gate", "up", "down")}
            h = ACTIVATIONS[activation](e["gate"][i] @ token + bias["gate"]) if "gate" in e else 1
            up = e["up"][i] @ token + bias["up"]
            h = h * up if "gate" in e else ACTIVATIONS[activation](up)
            y = y + scores[i] / total * knobs.get("route_scale", 1.0) * (e["down"][i] @ h + bias["down"])
        out.append(y)
    y = torch.stack(out).view_as(x)
    return y if block.shared is None else y + block.shared(x, Bus())

"""What a model costs, without allocating it: parameters by role and part, active parameters, FLOPs, cache.

Parameters are counted on the meta device from the built model, so a count can never disagree with the module. FLOPs are
two per multiply-add of matrix products; attention counts its full T x T products; training is three times forward.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch import nn

from zoo.core.params import Linear, Role, entries
from zoo.core.slots import Block
from zoo.model import Model, ModelConfig


class Cost(NamedTuple):
    """Sizes of one model; FLOPs per token are those of training, forward and backward, at full context."""

    parameters: int
    by_role: dict[Role, int]
    by_part: dict[str, int]  # embedding, stem, layer.0, ..., trunk, norm, head
    active_parameters: int
    flops_per_token: float
    cache_elements_per_token: int


def cost(config: ModelConfig) -> Cost:
    """Build ``config`` on the meta device and count."""
    with torch.device("meta"):
        return cost_of(Model(config, seed=None))


def cost_of(model: Model) -> Cost:
    """Count a built model."""
    by_role: Counter[Role] = Counter()
    by_part: Counter[str] = Counter()
    for entry in entries(model):
        by_role[entry.role] += entry.parameter.numel()
        by_part[part_of(entry.name)] += entry.parameter.numel()
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    total = sum(by_role.values())
    return Cost(
        parameters=total,
        by_role=dict(by_role),
        by_part=dict(by_part),
        active_parameters=total - sum(block.idle_parameters() for block in blocks),
        flops_per_token=3.0 * forward_flops(model, model.config.context),
        cache_elements_per_token=sum(block.cache_elements() for block in blocks),
    )


def part_of(name: str) -> str:
    """``layer.3.attention.query.weight`` -> ``layer.3``; elsewhere the first word."""
    words = name.split(".")
    return ".".join(words[:2]) if words[0] == "layer" else words[0]


def forward_flops(module: nn.Module, context: int) -> float:
    """FLOPs per token of one forward at ``context`` tokens: every Linear by itself, every Block what it says beside."""
    linear = sum(2.0 * m.weight.numel() for m in module.modules() if isinstance(m, Linear))
    return linear + sum(m.extra_flops(context) for m in module.modules() if isinstance(m, Block))

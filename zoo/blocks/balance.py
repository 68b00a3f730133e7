"""Balance: what keeps the load of a mixture's experts even."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from zoo.core.slots import Balance, Site
from zoo.core.wires import Bus


class NoBalance(Balance, kind="none"):
    """The load is left alone. Source: as in Outrageously Large Neural Networks without its losses, arXiv:1701.06538."""

    def __init__(self, cfg: NoBalance.Config, site: Site) -> None:
        super().__init__()


class AuxLoss(Balance, kind="aux_loss"):
    """A loss on the product of each expert's share of the tokens and its mean probability.

    f_e is the number of assignments to expert e per token (summing to K), P_e its mean probability over the tokens of one
    micro-batch in one layer; gradients flow through P alone. ``at_balance`` is the loss of an even load, before ``weight``:
    "one" is (E / K) sum f P (Switch Transformers for K = 1, MegaBlocks, OLMo-core); "k" is E sum f P, as transformers'
    Mixtral has it (which pools all layers before the product; here each layer is taken by itself).

    Source: Switch Transformers, arXiv:2101.03961.
    """

    class Config(Balance.Config):
        weight: PositiveFloat = 1e-2
        at_balance: Literal["one", "k"] = "one"

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        self.weight, self.at_balance = cfg.weight, cfg.at_balance

    def observe(self, probs: Tensor, counts: Tensor, bus: Bus) -> None:
        share = counts.to(probs.dtype) / counts.sum()  # (E,), sums to one
        even = probs.shape[1] * (share * probs.mean(0)).sum()
        per_token = counts.sum() / probs.shape[0]  # K
        bus.loss("balance", self.weight * (even if self.at_balance == "one" else per_token * even))


class LossFree(Balance, kind="loss_free"):
    """A bias per expert, used for choosing only, that moves against the load after each step; no loss, no gradient.

    ``update``: "sign" moves the bias by ``rate`` towards an even load of the last step (the paper); "running" by the same
    amount, judged by a running average of the loads with factor ``decay``. ``centre = "mean"`` takes the mean off each
    move, so that the biases keep their sum (as torchtitan does).

    Source: Auxiliary-Loss-Free Load Balancing, arXiv:2408.15664.
    """

    class Config(Balance.Config):
        rate: PositiveFloat = 1e-3
        update: Literal["sign", "running"] = "sign"
        decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9  # of the running average, per step
        centre: Literal["none", "mean"] = "none"

    bias: Tensor  # (E,)
    average: Tensor  # (E,), with update = "running"

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        self.rate, self.update, self.decay, self.centre = cfg.rate, cfg.update, cfg.decay, cfg.centre
        self.register_buffer("bias", torch.zeros(site.dim))
        if cfg.update == "running":
            self.register_buffer("average", torch.zeros(site.dim))

    def select(self, scores: Tensor) -> Tensor:
        return scores + self.bias.to(scores.dtype)

    def observe(self, probs: Tensor, counts: Tensor, bus: Bus) -> None:
        bus.stat("load", counts)

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        counts = stats["load"].to(self.bias.device, self.bias.dtype)
        load = counts / counts.sum().clamp(min=1)  # (E,) shares
        if self.update == "running":
            load = self.average.lerp_(load, 1 - self.decay)
        move = self.rate * torch.sign(load.mean() - load)
        self.bias += move - move.mean() if self.centre == "mean" else move

"""FeedForward: a mixture of experts."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from zoo.core.experts import Experts
from zoo.core.params import Linear, Normal, Role
from zoo.core.part import ConfigError
from zoo.core.slots import Balance, FeedForward, Site
from zoo.core.wires import Bus

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class MoE(FeedForward, kind="moe"):
    """A router sends each token through K of E experts, however many tokens chose the same one; nothing is dropped.

    The router scores in fp32 (fp64 in an fp64 model), chooses by what ``balance`` makes of the scores, and weights the
    experts' outputs by the scores as they were: g = score, divided by the sum over the chosen with ``renormalise =
    "chosen"``, times ``route_scale``. Published systems as knobs: Mixtral is softmax, renormalised, swiglu; OLMoE the same
    with ``renormalise = "none"``; DeepSeek-V3 is sigmoid, renormalised, ``route_scale = 2.5``, a shared expert, groups and
    ``balance = "loss_free"``.

    Source: arXiv:1701.06538; top-k of softmax, Mixtral, arXiv:2401.04088; sigmoid scores, shared experts and groups,
    DeepSeek-V3, arXiv:2412.19437; jitter, Switch, arXiv:2101.03961; z-loss, ST-MoE, arXiv:2202.08906.
    """

    class Config(FeedForward.Config):
        """``hidden_dim`` is the width of one expert."""

        n_experts: PositiveInt = 8
        top_k: PositiveInt = 2
        n_shared_experts: NonNegativeInt = 0  # experts that take every token, as one of their joint width
        activation: Literal["silu", "gelu", "relu2", "leaky_relu2", "swiglu"] = (
            "silu"  # swiglu: three matrices, not two
        )
        expert_bias: float | None = None  # first value of the biases of all experts; None: no biases
        router_bias: float | None = None  # first value of the router's bias; None: no bias
        score: Literal["softmax", "sigmoid"] = "softmax"
        renormalise: Literal["chosen", "none"] = "chosen"
        route_scale: PositiveFloat = 1.0
        n_groups: PositiveInt = 1  # experts stand in groups of equal size, and
        topk_groups: PositiveInt = 1  # a token chooses within its best groups, by the sum of their two best scores
        jitter: Share = 0.0  # training: the router's input times U(1 - jitter, 1 + jitter)
        dropout: Share = 0.0  # training: on each expert's output
        z_loss: NonNegativeFloat = 0.0  # weight of mean(logsumexp(logits)^2)
        balance: Balance.Config = Balance.pick("loss_free")

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        _check(cfg)
        self.top_k, self.score, self.renormalise, self.scale = cfg.top_k, cfg.score, cfg.renormalise, cfg.route_scale
        self.n_groups, self.topk_groups = cfg.n_groups, cfg.topk_groups
        self.jitter, self.dropout, self.z_loss = cfg.jitter, cfg.dropout, cfg.z_loss
        hidden = cfg.hidden_dim or 4 * site.dim
        self.router = Linear(site.dim, cfg.n_experts, Role.CONTROL, cfg.router_bias, Normal(0.02))
        self.experts = Experts(cfg.n_experts, site.dim, hidden, cfg.activation, cfg.expert_bias)
        self.balance: Balance = cfg.child("balance", site.at(cfg.n_experts))
        self.shared: FeedForward | None = None
        if cfg.n_shared_experts:
            joint = {"kind": cfg.activation, "hidden_dim": cfg.n_shared_experts * hidden, "bias": cfg.expert_bias}
            self.shared = FeedForward.parse(joint).build(site)

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        tokens = x.flatten(0, 1)  # (N, D)
        logits = self.router(self._seen_by_router(tokens, bus))  # (N, E), at least fp32
        scores = logits.softmax(-1) if self.score == "softmax" else logits.sigmoid()
        ids, gates = self.choose(scores)
        y, counts = self.experts(tokens, ids)  # (N, K, D), (E,)
        if self.training and self.dropout:
            y, gates = y * (bus.noise("dropout", y.shape) >= self.dropout), gates / (1 - self.dropout)
        y = (y * gates[..., None]).sum(1).to(x.dtype).view_as(x)  # weighted and summed in the gates' fp32
        if self.training:
            self._report(logits, scores, counts, bus)
        return y if self.shared is None else y + self.shared(x, bus)

    def choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (N, E) -> the chosen experts (N, K) and their weights (N, K)."""
        preference = self.balance.select(scores.detach())
        if self.n_groups > 1:
            preference = within_best_groups(preference, self.n_groups, self.topk_groups)
        ids = preference.topk(self.top_k, -1).indices
        gates = scores.gather(1, ids)
        if self.renormalise == "chosen":
            gates = gates / (gates.sum(-1, keepdim=True) + 1e-20)
        return ids, gates * self.scale

    def _seen_by_router(self, tokens: Tensor, bus: Bus) -> Tensor:
        wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        if not (self.training and self.jitter):
            return wide
        return wide * (bus.noise("jitter", wide.shape).to(wide.dtype) * (2 * self.jitter) + (1 - self.jitter))

    def _report(self, logits: Tensor, scores: Tensor, counts: Tensor, bus: Bus) -> None:
        bus.stat("load", counts)
        if self.z_loss:
            bus.loss("router_z", self.z_loss * logits.logsumexp(-1).square().mean())
        probs = scores if self.score == "softmax" else scores / (scores.sum(-1, keepdim=True) + 1e-20)
        self.balance.observe(probs, counts, bus)

    def extra_flops(self, context: int) -> float:
        return 2.0 * self.top_k * sum(p[0].numel() for p in self.experts.parameters() if p.ndim == 3)

    def idle_parameters(self) -> int:
        unused = self.experts.n_experts - self.top_k
        return unused * sum(p[0].numel() for p in self.experts.parameters())


def within_best_groups(preference: Tensor, n_groups: int, topk_groups: int) -> Tensor:
    """Preferences (N, E) with minus infinity outside each token's ``topk_groups`` groups of best two experts."""
    groups = preference.unflatten(-1, (n_groups, -1))  # (N, groups, E / groups)
    best = groups.topk(2, -1).values.sum(-1).topk(topk_groups, -1).indices
    shut = torch.ones_like(groups[..., 0], dtype=torch.bool).scatter_(-1, best, False)
    return groups.masked_fill(shut[..., None], -torch.inf).flatten(-2)


def _check(cfg: MoE.Config) -> None:
    if cfg.top_k > cfg.n_experts:
        raise ConfigError(f"exceeds n_experts = {cfg.n_experts}", "top_k", cfg.top_k)
    if cfg.topk_groups > cfg.n_groups:
        raise ConfigError(f"exceeds n_groups = {cfg.n_groups}", "topk_groups", cfg.topk_groups)
    if cfg.n_groups == 1:
        return
    per_group = cfg.n_experts // cfg.n_groups
    if cfg.n_experts % cfg.n_groups or per_group < 2:
        raise ConfigError(
            f"must cut n_experts = {cfg.n_experts} into equal groups of at least 2", "n_groups", cfg.n_groups
        )
    if cfg.top_k > cfg.topk_groups * per_group:
        raise ConfigError(f"exceeds the {cfg.topk_groups * per_group} experts of the chosen groups", "top_k", cfg.top_k)

"""AdamW, all parameters of a role in one fused call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from zoo.optim.slots import Optimizer, restore

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Group = tuple[torch.device, torch.dtype, int]  # where, in which dtype, at which own update number


class AdamW(Optimizer, kind="adamw"):
    """Adam with decoupled weight decay: W shrinks by lr * weight_decay, then moves by lr * m / (sqrt(v) + eps).

    Both the decay and the move follow the scheduled rate. Each parameter counts its own updates, so one without a
    gradient is left wholly alone: weight, moments and bias correction.

    Source: arXiv:1711.05101 (decoupled decay), arXiv:1412.6980 (Adam).
    """

    class Config(Optimizer.Config):
        betas: tuple[Beta, Beta] = (0.9, 0.95)  # how slowly the mean and the mean square of the gradient move
        eps: PositiveFloat = 1e-8

    def __init__(self, config: Config, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__(config, named)
        self.means = [torch.zeros_like(p, requires_grad=False) for _, p in self.named]
        self.squares = [torch.zeros_like(p, requires_grad=False) for _, p in self.named]
        self.counts = [0] * len(self.named)

    @torch.no_grad()
    def step(self, scale: float, step: int) -> None:
        cfg = self.config
        for (device, _, count), members in self._groups().items():
            parameters = [self.named[i][1] for i in members]
            torch._fused_adamw_(
                parameters,
                [_laid_out_as(p, p.grad) for p in parameters],
                [self.means[i] for i in members],
                [self.squares[i] for i in members],
                [],
                [torch.full((), float(count), device=device)] * len(members),
                lr=cfg.lr * scale,
                beta1=cfg.betas[0],
                beta2=cfg.betas[1],
                weight_decay=cfg.weight_decay,
                eps=cfg.eps,
                amsgrad=False,
                maximize=False,
            )

    def _groups(self) -> dict[Group, list[int]]:
        """Parameters with a gradient, by what one fused call must have in common; nearly always a single group."""
        groups: dict[Group, list[int]] = {}
        for i, (_, p) in enumerate(self.named):
            if p.grad is not None:
                self.counts[i] += 1
                groups.setdefault((p.device, p.dtype, self.counts[i]), []).append(i)
        return groups

    def state(self) -> dict[str, Tensor]:
        """``<name>/mean`` and ``<name>/square`` like the parameter, ``<name>/count`` an int64 scalar."""
        saved: dict[str, Tensor] = {}
        for (name, _), mean, square, count in zip(self.named, self.means, self.squares, self.counts, strict=True):
            saved |= {f"{name}/mean": mean, f"{name}/square": square, f"{name}/count": torch.tensor(count)}
        return saved

    def load(self, state: dict[str, Tensor]) -> None:
        own = self.state()
        restore(own, state)
        self.counts = [int(own[f"{name}/count"]) for name, _ in self.named]


def _laid_out_as(p: Tensor, grad: Tensor) -> Tensor:
    """``grad`` with the strides of ``p``: the fused kernel reads both as flat memory and would mix up a transposed one."""
    return grad if grad.stride() == p.stride() else torch.empty_like(p).copy_(grad)

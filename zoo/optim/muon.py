"""Muon: momentum, orthogonalised. Matrices of equal shape go through one batched Newton-Schulz iteration."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from zoo.core.part import ConfigError
from zoo.core.precision import bf16_is_fast
from zoo.optim.newton_schulz import newton_schulz
from zoo.optim.slots import Optimizer, restore

Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]
# Elements in one stack. It bounds scratch memory (about four times this); a CPU is fastest when that fits its cache.
CHUNK = {"cpu": 2**21}
CHUNK_ELSEWHERE = 2**26


class Slices(NamedTuple):
    """One parameter as a stack of matrices: (rows, cols), or (E, rows, cols) and deeper for experts."""

    parameter: nn.Parameter
    buffer: Tensor  # the momentum, like the parameter
    n: int  # how many matrices it holds
    tall: bool  # rows > cols: orthogonalised as its transpose, which costs less


class Muon(Optimizer, kind="muon"):
    """Steps of equal size in every direction: the momentum's nearest orthogonal matrix, by Newton-Schulz.

    Works on the last two dimensions, so experts (E, F, D) are E matrices. ``adjust`` scales a step by the matrix's shape:
    "original" sqrt(max(1, rows / cols)), "match_rms_adamw" 0.2 sqrt(max(rows, cols)), for which AdamW's rates serve.
    The decay follows the scheduled rate, without that factor.

    Source: KellerJordan/Muon; arXiv:2502.16982 (match_rms_adamw); arXiv:2505.16932 (Polar Express).
    """

    class Config(Optimizer.Config):
        lr: PositiveFloat = 0.02
        momentum: Momentum = 0.95
        momentum_warmup_from: Momentum | None = None  # the first update's momentum, then linearly up (or down)
        momentum_warmup_steps: PositiveInt = 1500  # updates until ``momentum`` is reached
        accumulate: Literal["heavy_ball", "lerp"] = "heavy_ball"  # mu b + g, or mu b + (1 - mu) g
        form: Literal["nesterov", "plain"] = "nesterov"  # look one step ahead, or orthogonalise the momentum itself
        ns_steps: NonNegativeInt = 5
        coefficients: Literal["keller", "polar_express"] = "keller"
        adjust: Literal["original", "match_rms_adamw"] = "original"
        ns_dtype: Literal["auto", "bfloat16", "float32"] = "auto"  # auto: bfloat16 where the device is fast at it

        def notes(self) -> tuple[str, ...]:
            if self.adjust == "match_rms_adamw":
                return ()
            return ("muon: lr is the step's spectral norm, not AdamW's rate (unless adjust = match_rms_adamw)",)

    def __init__(self, config: Config, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Raises ConfigError for a parameter of fewer than two dimensions."""
        super().__init__(config, named)
        for name, p in self.named:
            if p.ndim < 2:
                raise ConfigError(f"muon takes matrices only, but {name} has shape {tuple(p.shape)}", "kind", "muon")
        self.buffers = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.named}
        self.chunks = _chunks([_slices(p, self.buffers[name]) for name, p in self.named])

    def momentum_at(self, step: int) -> float:
        """The momentum of update ``step`` (from 1)."""
        cfg = self.config
        if cfg.momentum_warmup_from is None:
            return cfg.momentum
        share = min(1.0, (step - 1) / cfg.momentum_warmup_steps)
        return cfg.momentum_warmup_from + (cfg.momentum - cfg.momentum_warmup_from) * share

    @torch.no_grad()
    def step(self, scale: float, step: int) -> None:
        momentum = self.momentum_at(step)
        for chunk in self.chunks:
            active = [s for s in chunk if s.parameter.grad is not None]
            if active:
                self._move(active, self.config.lr * scale, momentum)

    def _move(self, chunk: list[Slices], lr: float, momentum: float) -> None:
        cfg = self.config
        parameters = [s.parameter for s in chunk]
        directions = self._directions(chunk, momentum)
        stack = _stack(chunk, directions, ns_dtype(cfg.ns_dtype, parameters[0]))  # (n, r, c), r <= c
        stack = self.world.shared_out(lambda part: newton_schulz(part, cfg.ns_steps, cfg.coefficients), stack)
        pieces = _pieces(chunk, stack)
        if cfg.weight_decay:
            torch._foreach_mul_(parameters, 1.0 - lr * cfg.weight_decay)
        for tall in (False, True):
            turned = [(s.parameter, piece) for s, piece in zip(chunk, pieces, strict=True) if s.tall is tall]
            if turned:
                targets, steps = zip(*turned, strict=True)
                rows, cols = targets[0].shape[-2:]
                torch._foreach_add_(list(targets), list(steps), alpha=-lr * step_factor(cfg.adjust, rows, cols))

    def _directions(self, chunk: list[Slices], momentum: float) -> list[Tensor]:
        """Update the momentum and return what is to be orthogonalised; gradients stay as they are."""
        grads, buffers = [s.parameter.grad for s in chunk], [s.buffer for s in chunk]
        if self.config.accumulate == "lerp":
            torch._foreach_lerp_(buffers, grads, 1.0 - momentum)
            return torch._foreach_lerp(grads, buffers, momentum) if self.config.form == "nesterov" else buffers
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        return torch._foreach_add(grads, buffers, alpha=momentum) if self.config.form == "nesterov" else buffers

    def state(self) -> dict[str, Tensor]:
        """``<name>/momentum``, like the parameter."""
        return {f"{name}/momentum": buffer for name, buffer in self.buffers.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        restore(self.state(), state)


def step_factor(adjust: str, rows: int, cols: int) -> float:
    """The factor on the rate of a matrix (rows, cols): see Muon."""
    return math.sqrt(max(1.0, rows / cols)) if adjust == "original" else 0.2 * math.sqrt(max(rows, cols))


def ns_dtype(asked: str, parameter: Tensor) -> torch.dtype:
    """The dtype to iterate in: a float64 parameter is never rounded, since oracles need it."""
    if parameter.dtype == torch.float64:
        return torch.float64
    fast = asked == "bfloat16" or (asked == "auto" and bf16_is_fast(str(parameter.device)))
    return torch.bfloat16 if fast else torch.float32


def _slices(parameter: nn.Parameter, buffer: Tensor) -> Slices:
    rows, cols = parameter.shape[-2:]
    return Slices(parameter, buffer, parameter.numel() // max(1, rows * cols), rows > cols)


def _chunks(everything: list[Slices]) -> list[list[Slices]]:
    """Parameters whose matrices have one shape once the tall ones lie down, cut where a stack would grow too large."""
    chunks: list[list[Slices]] = []
    pools: dict[tuple[int, int, torch.dtype, torch.device], list[Slices]] = {}
    for s in everything:
        p = s.parameter
        key = (min(p.shape[-2:]), max(p.shape[-2:]), p.dtype, p.device)
        pool = pools.get(key)
        if pool is None or sum(o.parameter.numel() for o in pool) + p.numel() > CHUNK.get(
            p.device.type, CHUNK_ELSEWHERE
        ):
            pool = pools[key] = []
            chunks.append(pool)
        pool.append(s)
    return chunks


def _stack(chunk: list[Slices], tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The matrices of all tensors as one stack (n, r, c), r <= c."""
    short, long = sorted(tensors[0].shape[-2:])
    stack = tensors[0].new_empty(sum(s.n for s in chunk), short, long, dtype=dtype)
    torch._foreach_copy_(_pieces(chunk, stack), tensors)
    return stack


def _pieces(chunk: list[Slices], stack: Tensor) -> list[Tensor]:
    """Views of a stack (n, r, c), one per parameter and of its shape."""
    pieces = stack.split([s.n for s in chunk])
    return [(t.mT if s.tall else t).view(s.parameter.shape) for s, t in zip(chunk, pieces, strict=True)]

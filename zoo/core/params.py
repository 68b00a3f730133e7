"""Parameters say what they are: a role for the optimizers, the codec and the counts, and how they are first drawn.

Every initial tensor is drawn on the CPU in fp32 from sha256(seed, full name), so swapping one block leaves every other
tensor bit-identical, and the draw does not depend on the device, the order of construction, or its neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt
from torch import Tensor, nn

from zoo.core.part import Part, PartConfig


class Role(StrEnum):
    """What a parameter is. The same words steer optimizers, weight decay, codecs and counts."""

    MATRIX = "matrix"
    EMBEDDING = "embedding"
    HEAD = "head"
    SCALAR = "scalar"  # norm weights, biases: at most one dimension
    CONTROL = "control"  # routers, gates, latents, skip and mix weights: never orthogonalised, not decayed


@dataclass(frozen=True)
class Normal:
    """N(0, std^2)."""

    std: float

    def __call__(self, t: Tensor, generator: torch.Generator) -> None:
        t.normal_(0.0, self.std, generator=generator)


@dataclass(frozen=True)
class Uniform:
    """U(-bound, bound)."""

    bound: float

    def __call__(self, t: Tensor, generator: torch.Generator) -> None:
        t.uniform_(-self.bound, self.bound, generator=generator)


@dataclass(frozen=True)
class Constant:
    """Every entry the same number."""

    value: float

    def __call__(self, t: Tensor, generator: torch.Generator) -> None:
        t.fill_(self.value)


@dataclass(frozen=True)
class Rows:
    """The i-th row filled with the i-th number."""

    values: tuple[float, ...]

    def __call__(self, t: Tensor, generator: torch.Generator) -> None:
        for row, value in zip(t, self.values, strict=True):
            row.fill_(value)


@dataclass(frozen=True)
class Orthogonal:
    """Orthonormal rows or columns times ``gain``, for each matrix in a stack of them."""

    gain: float = 1.0

    def __call__(self, t: Tensor, generator: torch.Generator) -> None:
        for matrix in t.view(-1, *t.shape[-2:]):
            nn.init.orthogonal_(matrix, self.gain, generator=generator)


Rule = Normal | Uniform | Constant | Rows | Orthogonal


class Use(StrEnum):
    """What a weight is for, where its first draw is the recipe's choice (slot ``init``) and not the block's own."""

    INPUT = "input"  # reads the stream: query, key, value, up, gate
    OUTPUT = "output"  # ends a residual branch
    EMBEDDING = "embedding"
    HEAD = "head"


class Init(Part, slot="init"):
    """How the weights that leave it to the recipe are drawn: ``rule(use, shape, n_layers)``."""

    class Config(PartConfig):
        """Which weights are drawn from the distribution that the kind describes; every parameter of the model is."""

        draw: NonNegativeInt = 0  # another number: other weights of the same distribution, with the seed's own batches

    def __init__(self, config: Init.Config) -> None:
        self.config = config

    def rule(self, use: Use, shape: tuple[int, ...], n_layers: int) -> Rule:
        raise NotImplementedError


class Linear(nn.Module):
    """``x W^T (+ b)`` with the weight cast to the dtype of x. A matrix unless ``role`` says otherwise.

    Args:
        in_features: width read.
        out_features: width written.
        role: what the weight is.
        bias: the bias's first value; None for no bias.
        init: a rule of the block's own, or the use by which the recipe's Init decides.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        role: Role = Role.MATRIX,
        bias: float | None = None,
        init: Rule | Use = Use.INPUT,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = None if bias is None else nn.Parameter(torch.empty(out_features))
        self.roles = {"weight": role}
        self.inits = {"weight": init} if bias is None else {"weight": init, "bias": Constant(bias)}

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if weight.dtype != x.dtype:
            weight = weight.to(x.dtype)
        return F.linear(x, weight, bias if bias is None else bias.to(x.dtype))

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}, {self.roles['weight']}"


class Embedding(nn.Module):
    """A table looked up by index: (B, T) -> (B, T, D), in the dtype of the table."""

    def __init__(self, n_rows: int, dim: int, init: Rule | Use = Use.EMBEDDING) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_rows, dim))
        self.roles = {"weight": Role.EMBEDDING}
        self.inits = {"weight": init}

    def forward(self, index: Tensor) -> Tensor:
        return F.embedding(index, self.weight)


class Entry(NamedTuple):
    """One parameter with all that is known of it."""

    name: str
    parameter: nn.Parameter
    role: Role
    init: Rule | Use


class HasParameters:
    """What a module of one's own declares for its bare parameters: ``roles`` (two or more dimensions) and ``inits``."""

    roles: ClassVar[Mapping[str, Role]] = {}
    inits: ClassVar[Mapping[str, Rule | Use]] = {}


def entries(model: nn.Module) -> Iterator[Entry]:
    """Every parameter once (a tied one under its first name), with its role and its first draw.

    Raises:
        TypeError: a bare parameter of two or more dimensions without a role, or a bare one without an init.
    """
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in seen:
                continue
            seen.add(parameter)
            full = f"{prefix}.{name}" if prefix else name
            owner = type(module).__name__
            role = getattr(module, "roles", {}).get(name)
            init = getattr(module, "inits", {}).get(name)
            if role is None and parameter.ndim > 1:
                raise TypeError(f"{full} is a bare {parameter.ndim}-D parameter: name its role in {owner}.roles")
            if init is None:
                raise TypeError(f"{full} has no first value: name a rule for it in {owner}.inits")
            yield Entry(full, parameter, role or Role.SCALAR, init)


def roles(model: nn.Module) -> dict[str, Role]:
    """The role of every parameter by its full name; a tied matrix counts once, as what it first was."""
    return {entry.name: entry.role for entry in entries(model)}


@torch.no_grad()
def initialise(model: nn.Module, seed: int, init: Init, n_layers: int) -> None:
    """Draw every parameter from sha256(seed, full name), on the CPU in fp32, in place.

    Another ``draw`` of the init is another set of weights for the same seed, so that two arms may differ by luck alone.
    """
    draw = f".{init.config.draw}" if init.config.draw else ""
    for entry in entries(model):
        shape = tuple(entry.parameter.shape)
        rule = init.rule(entry.init, shape, n_layers) if isinstance(entry.init, Use) else entry.init
        digest = hashlib.sha256(f"{seed}{draw}/{entry.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        drawn = torch.empty(shape, dtype=torch.float32)
        rule(drawn, generator)
        entry.parameter.copy_(drawn)

"""The slots of artifacts: which tensor is stored how, how numbers become codes, and how codes become bytes.

A tensor of two or more dimensions is a table of rows here: (R, C), where C is its last dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from zoo.core.params import Role
from zoo.core.part import ConfigError, Part, PartConfig

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
LEVELS = {
    f"int{bits}": 2 ** (bits - 1) - 1 for bits in range(2, 9)
}  # storage -> largest code; the smallest is its negative
PLAIN: dict[str, str] = {"float16": "<f2", "float32": "<f4", "int64": "<i8"}  # storage -> numpy's name of it
Hessians = Mapping[str, Tensor]  # name of a matrix -> (C, C) fp64: the mean of x x^T over its inputs x


class Weight(NamedTuple):
    """A tensor to be stored."""

    name: str
    tensor: Tensor
    role: Role | None  # None: a buffer


class Stored(NamedTuple):
    """A tensor as it is stored: codes times a scale for each row, or plain numbers."""

    name: str
    shape: tuple[int, ...]
    storage: str  # a key of LEVELS or of PLAIN
    codes: np.ndarray  # (R, C) int8; plain: (n,) of the storage's dtype
    scales: np.ndarray | None = None  # (R,) float16; plain: None

    def decoded(self) -> Tensor:
        """The tensor, fp32 (int64 for counts): one exactly rounded product for each number, the same on every machine."""
        if self.scales is None:
            wide = self.codes if self.storage == "int64" else self.codes.astype(np.float32)
            return torch.from_numpy(np.array(wide)).reshape(self.shape)
        product = self.codes.astype(np.float32) * self.scales.astype(np.float32)[:, None]
        return torch.from_numpy(product).reshape(self.shape)


class Rounding(Part, slot="rounding"):
    """How a table of numbers becomes codes and scales: ``(table, largest code, Hessian) -> codes, scales``."""

    class Config(PartConfig):
        """Knobs that survive a swap of rounding."""

        def rows_wanted(self) -> int:
            """Rows of training text by which it wants to know what the matrices are multiplied with; 0: it does not."""
            return 0

    def __init__(self, config: Rounding.Config) -> None:
        self.config = config

    def codes(self, table: Tensor, largest: int, hessian: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        """(R, C) fp32 -> codes (R, C) int8 in [-largest, largest], scales (R,) float16. A zero stays a zero."""
        raise NotImplementedError


class Packed(NamedTuple):
    """Tensors as bytes."""

    planes: dict[str, bytes]
    shares: list[float]  # bytes that each tensor takes in them, tables that several share left out


class Coding(Part, slot="coding"):
    """How stored tensors become bytes and come back, exactly: ``pack`` and ``unpack``."""

    def __init__(self, config: Coding.Config) -> None:
        self.config = config

    def pack(self, tensors: Sequence[Stored]) -> Packed:
        """All tensors as planes of bytes."""
        raise NotImplementedError

    def unpack(self, planes: Mapping[str, bytes], index: Sequence[Stored]) -> list[Stored]:
        """The inverse: ``index`` has every tensor's name, shape and storage, and no codes.

        Raises:
            ValueError: planes that were not packed from such tensors.
        """
        raise NotImplementedError


class Codec(Part, slot="codec"):
    """Which tensor of a model is stored how."""

    class Config(PartConfig):
        """Knobs that survive a swap of codec."""

        rounding: Rounding.Config = Rounding.pick("row_max")
        coding: Coding.Config = Coding.pick("rans")
        prune: Share = 0.0  # of each larger tensor: the smallest numbers become zero
        prune_above: NonNegativeInt = 65_536  # entries; smaller tensors, and such of one dimension, are not pruned
        small: NonNegativeInt = 8_192  # entries; tensors of at most so many are stored in fp16

    config: Config

    def __init__(self, config: Config) -> None:
        self.config = config
        self.rounding: Rounding = config.child("rounding")
        self.coding: Coding = config.child("coding")

    def storage(self, weight: Weight) -> str:
        """How one tensor is stored: a key of LEVELS or of PLAIN."""
        raise NotImplementedError

    def remarks(self, weights: Sequence[Weight]) -> list[str]:
        """What somebody who wrote this codec's knobs for such weights may have overlooked."""
        return []

    def encode(self, weights: Iterable[Weight], hessians: Hessians | None = None) -> Iterator[Stored]:
        """Prune and round, tensor by tensor.

        Args:
            weights: a model's, see ``weights_of``.
            hessians: of the matrices whose inputs are known; for a rounding with ``rows_wanted``.

        Raises:
            ConfigError: a number that is none, or too large for its storage.
        """
        for weight in weights:
            yield self._encoded(weight, (hessians or {}).get(weight.name))

    def _encoded(self, weight: Weight, hessian: Tensor | None) -> Stored:
        t = weight.tensor.detach().cpu()
        if not t.is_floating_point():
            return Stored(weight.name, tuple(t.shape), "int64", t.reshape(-1).numpy().astype("<i8"))
        if not t.isfinite().all():
            raise ConfigError(f"{weight.name} holds numbers that are not finite, which no codec stores")
        storage, t = self.storage(weight), self._pruned(t.float())
        if storage in LEVELS:
            codes, scales = self.rounding.codes(rows_of(t), LEVELS[storage], hessian)
            return Stored(weight.name, tuple(t.shape), storage, codes, scales)
        if storage == "float16" and t.numel() and t.abs().max() > torch.finfo(torch.float16).max:
            raise ConfigError(f"{weight.name} holds {float(t.abs().max()):.6g}, which is too large for fp16")
        return Stored(weight.name, tuple(t.shape), storage, t.reshape(-1).numpy().astype(PLAIN[storage]))

    def _pruned(self, t: Tensor) -> Tensor:
        """``t`` with the share ``prune`` of its entries, those nearest to zero, set to zero."""
        if not self.config.prune or t.ndim < 2 or t.numel() <= self.config.prune_above:
            return t
        size = t.abs()
        limit = float(np.quantile(size.numpy(), self.config.prune))  # torch.quantile takes 16 million entries at most
        return torch.where(size < limit, 0.0, t)


def rows_of(t: Tensor) -> Tensor:
    """(R, C): the last dimension as columns, all others together as rows; a vector is one row."""
    return t.reshape(-1, t.shape[-1]) if t.ndim else t.reshape(1, 1)


def n_rows(shape: Sequence[int]) -> int:
    """Rows of a tensor of that shape, see ``rows_of``."""
    return math.prod(shape[:-1]) if shape else 1


def columns(shape: Sequence[int]) -> int:
    """Columns of a tensor of that shape, see ``rows_of``."""
    return shape[-1] if shape else 1


def from_index(entry: Any) -> Stored:
    """A tensor without codes from a row of the index: [name, shape, storage].

    Raises:
        ValueError: not such a row.
    """
    try:
        name, shape, storage = entry
        shape = tuple(int(n) for n in shape)
    except (TypeError, ValueError):
        raise ValueError(f"{entry!r} is no row of an index") from None
    if (storage not in LEVELS and storage not in PLAIN) or any(n < 0 for n in shape):
        raise ValueError(f"{name} is stored as {storage!r} with shape {shape}, which no codec does")
    return Stored(str(name), shape, storage, np.empty(0))

"""What passes between layers, and the notebook that a layer keeps during one call.

Inside a layer the Bus is mutable and pleasant; outside, a Stage turns it into a pure function of tensors
(zoo/model.py), so recomputation, compilation and data parallelism cannot count anything twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.core.part import ConfigError


@dataclass(frozen=True)
class Wire:
    """A typed value that passes between layers. ``shape`` is written in the letters of zoo/core/slots.py."""

    name: str
    shape: str


TOKENS = Wire("tokens", "B T")  # token ids of this call
SEGMENTS = Wire("segments", "B S")  # document number of every position so far; absent: one document per row
X0 = Wire("x0", "B T D")  # the stream as it enters the first layer
NOISE = Wire("noise", "")  # int64 key of this call and layer; absent: nothing may be drawn
OFFERED = (TOKENS, SEGMENTS, X0, NOISE)  # what the model itself puts on the wires


class Report(NamedTuple):
    """What one layer says of one call. Keys are ``<path within the stage>/<name>``."""

    losses: dict[str, Tensor]
    stats: dict[str, Tensor]


class Past(NamedTuple):
    """One stage's memory while decoding: its buffers, how many tokens came before, and for how many they have room."""

    buffers: dict[str, Tensor]
    offset: int
    capacity: int
    dropped: int = 0  # the oldest tokens, no longer in the buffers
    shift: int = 0  # how many of them were dropped since the last call, and still stand at the front of the buffers


class Bus:
    """One layer's notebook during one call. Each block sees it under its own path within the stage.

    ``bus[WIRE]`` reads a wire, ``bus[WIRE] = t`` writes it (once), ``WIRE in bus`` asks whether anybody has.
    """

    def __init__(self, inbox: Mapping[Wire, Tensor] | None = None, past: Past | None = None) -> None:
        self._inbox = dict(inbox or {})
        self._past = past
        self._outbox: dict[Wire, Tensor] = {}
        self._losses: dict[str, Tensor] = {}
        self._stats: dict[str, Tensor] = {}
        self._present: dict[str, Tensor] = {}
        self._drawn: set[str] = set()
        self._scope = ""

    def at(self, scope: str) -> Bus:
        """The same notebook under the path of another block."""
        view = Bus.__new__(Bus)
        view._inbox, view._past, view._outbox = self._inbox, self._past, self._outbox
        view._losses, view._stats, view._present = self._losses, self._stats, self._present
        view._drawn, view._scope = self._drawn, scope
        return view

    @property
    def offset(self) -> int:
        """How many tokens came before this call (0 unless decoding)."""
        return 0 if self._past is None else self._past.offset

    @property
    def decoding(self) -> bool:
        """Whether this call continues a cache."""
        return self._past is not None

    def __contains__(self, wire: Wire) -> bool:
        return wire in self._inbox or wire in self._outbox

    def __getitem__(self, wire: Wire) -> Tensor:
        return self._outbox[wire] if wire in self._outbox else self._inbox[wire]

    def __setitem__(self, wire: Wire, t: Tensor) -> None:
        if wire in self:
            raise ConfigError(f"wire {wire.name!r} already carries a value; a wire is written once")
        self._outbox[wire] = t

    def first(self, wire: Wire, t: Tensor) -> Tensor:
        """What the first layer said on ``wire``; ``t`` itself, which is then put there, if nobody has spoken."""
        if wire not in self:
            self[wire] = t
        said = self[wire]
        if said.shape != t.shape:
            raise ConfigError(
                f"wire {wire.name!r} carries {tuple(said.shape)} from an earlier layer, but here it is "
                f"{tuple(t.shape)}: layers that share it need equal heads and widths"
            )
        return said

    def loss(self, name: str, t: Tensor) -> None:
        """An auxiliary loss, a scalar already weighted: optimised, summed by name, never part of the reported loss."""
        self._once(self._losses, name, t)

    def stat(self, name: str, t: Tensor) -> None:
        """A detached figure, e.g. the load of each expert. Integer figures are summed over micro-batches and ranks."""
        self._once(self._stats, name, t.detach())

    def extend(self, name: str, t: Tensor, keep: int | None = None, dim: int = -2) -> Tensor:
        """Past ++ t along ``dim`` while decoding; t itself while training.

        Args:
            name: what is remembered, unique within the block.
            t: this call's T entries; batch must be its first dimension.
            keep: remember only this many of the newest entries (None: all, in a buffer of the cache's capacity).
            dim: the time dimension of ``t``.
        """
        if self._past is None:
            return t
        key = self._key(name)
        buffer = self._past.buffers.get(key)
        if keep is not None:
            full = t if buffer is None else torch.cat([buffer, t], dim)
            size = full.shape[dim]
            self._present[key] = full.narrow(dim, max(0, size - keep), min(keep, size)).clone()
            return full
        new, offset = t.shape[dim], self._past.offset - self._past.dropped
        if buffer is None:
            shape = list(t.shape)
            shape[dim] = self._past.capacity
            buffer = t.new_zeros(shape)
        elif self._past.shift:
            kept = buffer.narrow(dim, self._past.shift, offset).clone()
            buffer.narrow(dim, 0, offset).copy_(kept)
        buffer.narrow(dim, offset, new).copy_(t)
        self._present[key] = buffer
        return buffer.narrow(dim, 0, offset + new)

    def noise(self, name: str, shape: Sequence[int]) -> Tensor:
        """Uniform fp32 in [0, 1), a pure function of (seed, step, micro-step, layer, this block's path, name).

        The first dimension of ``shape`` runs over the rows of the call, or over their tokens row by row: processes that share
        the rows of a batch then draw what one process would have drawn for them.
        """
        key = self._key(name)
        if key in self._drawn:
            raise ConfigError(f"noise {key!r} drawn twice in one call: the two draws would be equal")
        if NOISE not in self._inbox:
            raise ConfigError(
                "this model draws noise while it trains (jitter or dropout): call it with noise=noise_key(seed, step), "
                "or put it into evaluation mode with model.eval()"
            )
        self._drawn.add(key)
        salt = _salt(key)
        size = 1
        for n in shape:
            size *= n
        base = self._inbox[NOISE]
        first = mix(base ^ salt) + (base >> 32) * size  # what the shares before this one draw comes first
        count = torch.arange(size, dtype=torch.int32, device=base.device)
        bits = mix32(count + (first & 0xFFFFFFFF).to(torch.int32))
        return bits.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF).float().mul_(2.0**-24).view(*shape)

    def close(self) -> tuple[dict[Wire, Tensor], Report, dict[str, Tensor]]:
        """What was written to wires, what was reported, and what must be remembered for the next call."""
        return self._outbox, Report(self._losses, self._stats), self._present

    def _key(self, name: str) -> str:
        return f"{self._scope}/{name}"

    def _once(self, table: dict[str, Tensor], name: str, t: Tensor) -> None:
        key = self._key(name)
        if key in table:
            raise ConfigError(f"{key!r} reported twice in one call")
        table[key] = t


def _salt(key: str) -> int:
    """FNV-1a in plain Python, which the compiler folds into a constant."""
    h = 0x811C9DC5
    for c in key:
        h = ((h ^ ord(c)) * 0x01000193) & 0xFFFFFFFF
    return h


def mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash on int64 tensors (multiply-xorshift, constants of Wellons' ``lowbias32``)."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def mix32(x: Tensor) -> Tensor:
    """``mix`` on int32 bit patterns: the same bits in a tenth of the time, for draws of many numbers."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        x = (x ^ ((x >> shift) & (2 ** (32 - shift) - 1))).mul_(factor)
    return x ^ ((x >> 16) & 0xFFFF)


def noise_key(seed: int, step: int = 0, micro_step: int = 0, share: int = 0) -> Tensor:
    """The key from which every draw of one micro-step follows. An int64 scalar.

    ``share``, in its upper half, is the number of the share of the micro-batch's rows that is computed, from 0.
    """
    key = torch.tensor(seed)
    for part in (step, micro_step):
        key = mix(mix(key) + part)
    return key | share << 32


def stage_key(key: Tensor, index: int) -> Tensor:
    """The key of stage number ``index`` for the same share of the rows."""
    return mix(mix(key) + index) | (key >> 32 << 32)

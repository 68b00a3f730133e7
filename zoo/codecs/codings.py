"""Codings: bits side by side, zstandard over bytes, or a range coder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from zoo.codecs import stream
from zoo.codecs.slots import LEVELS, PLAIN, Coding, Packed, Stored, columns, n_rows
from zoo.core.part import ConfigError

HALF = np.dtype("<f2")


class Bits(Coding, kind="stored"):
    """Codes of b bits in b bits each, scales and plain numbers as they are; no modelling at all.

    Source: the fixed-length code.
    """

    def pack(self, tensors: Sequence[Stored]) -> Packed:
        pieces = [_bits(t) + _scale_bytes(t) for t in tensors]
        return Packed({"tensors": b"".join(pieces)}, [float(len(piece)) for piece in pieces])

    def unpack(self, planes: Mapping[str, bytes], index: Sequence[Stored]) -> list[Stored]:
        return _in_turn(_plane(planes, "tensors"), index)


class Zstd(Coding, kind="zstd"):
    """Codes of any width in a byte each, then zstandard over everything: what published entries do.

    Source: openai/parameter-golf#828 (level 22); RFC 8878.
    """

    class Config(Coding.Config):
        level: Annotated[int, Field(ge=1, le=22)] = 22

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.library = zstandard()

    def pack(self, tensors: Sequence[Stored]) -> Packed:
        whole = b"".join(t.codes.tobytes() + _scale_bytes(t) for t in tensors)
        data = self.library.ZstdCompressor(level=self.config.level).compress(whole)
        share = len(data) / max(1, len(whole))
        return Packed({"tensors": data}, [share * (t.codes.nbytes + len(_scale_bytes(t))) for t in tensors])

    def unpack(self, planes: Mapping[str, bytes], index: Sequence[Stored]) -> list[Stored]:
        try:
            whole = self.library.ZstdDecompressor().decompress(_plane(planes, "tensors"))
        except self.library.ZstdError as fault:
            raise ValueError(f"zstandard cannot undo it: {fault}") from None
        return _in_turn(whole, index, whole_bytes=True)


class Rans(Coding, kind="rans"):
    """A range coder with tables shared by similar rows; plain numbers and scales byte by byte, each place of a byte apart.

    Within a few hundredths of a percent of the entropy of the codes under those tables, which is below that of one table for
    each tensor where rows differ in spread.

    Source: arXiv:1311.2540 (asymmetric numeral systems).
    """

    def pack(self, tensors: Sequence[Stored]) -> Packed:
        planes: dict[str, bytes] = {}
        shares = np.zeros(len(tensors))
        for storage, group in _grouped(tensors):
            members = [tensors[i] for i in group]
            rows = [n_rows(t.shape) for t in members]
            owner = np.repeat(group, rows)
            lengths = np.repeat([columns(t.shape) for t in members], rows)
            if storage in LEVELS:
                offset = LEVELS[storage]
                symbols = [np.concatenate([t.codes.reshape(-1).view(np.uint8) + np.uint8(offset) for t in members])]
            else:
                symbols = _byte_places(np.concatenate([t.codes for t in members]))
            planes[storage] = self._streams(symbols, lengths, owner, shares)
        scaled = [i for i, t in enumerate(tensors) if t.scales is not None]
        if scaled:
            lengths = np.array([len(tensors[i].scales) for i in scaled])
            symbols = _byte_places(np.concatenate([tensors[i].scales.astype(HALF) for i in scaled]))
            planes["scales"] = self._streams(symbols, lengths, np.array(scaled), shares)
        return Packed(planes, shares.tolist())

    def _streams(
        self, symbols: Iterable[np.ndarray], lengths: np.ndarray, owner: np.ndarray, shares: np.ndarray
    ) -> bytes:
        packed = [stream.pack(s, lengths) for s in symbols]
        for p in packed:
            np.add.at(shares, owner, p.costs)
        return stream.join([p.data for p in packed])

    def unpack(self, planes: Mapping[str, bytes], index: Sequence[Stored]) -> list[Stored]:
        found = list(index)
        for storage, group in _grouped(index):
            members = [index[i] for i in group]
            rows = [n_rows(t.shape) for t in members]
            lengths = np.repeat([columns(t.shape) for t in members], rows)
            dtype = np.dtype(PLAIN.get(storage, "u1"))
            values = _from_streams(_plane(planes, storage), lengths, dtype)
            for i, piece in zip(group, _split(values, [math.prod(t.shape) for t in members]), strict=True):
                if storage in LEVELS:
                    piece = (
                        (piece.astype(np.int16) - LEVELS[storage])
                        .astype(np.int8)
                        .reshape(n_rows(found[i].shape), columns(found[i].shape))
                    )
                found[i] = found[i]._replace(codes=piece)
        scaled = [i for i, t in enumerate(index) if t.storage in LEVELS]
        if scaled:
            lengths = np.array([n_rows(index[i].shape) for i in scaled])
            values = _from_streams(_plane(planes, "scales"), lengths, HALF)
            for i, piece in zip(scaled, _split(values, lengths), strict=True):
                found[i] = found[i]._replace(scales=piece)
        return found


def zstandard() -> Any:
    """The zstandard library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import zstandard
    except ImportError:
        raise ConfigError("needs the package zstandard: pip install 'ablation-zoo[zstd]'", "kind", "zstd") from None
    return zstandard


def _grouped(tensors: Sequence[Stored]) -> Iterator[tuple[str, list[int]]]:
    """Numbers of tensors by storage; empty tensors are left out."""
    numbers = sorted((i for i, t in enumerate(tensors) if math.prod(t.shape)), key=lambda i: tensors[i].storage)
    for storage, group in groupby(numbers, key=lambda i: tensors[i].storage):
        yield storage, list(group)


def _byte_places(values: np.ndarray) -> list[np.ndarray]:
    """The bytes of numbers, all first bytes, all second bytes and so on."""
    return list(np.ascontiguousarray(values).view(np.uint8).reshape(len(values), -1).T)


def _from_streams(data: bytes, lengths: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The inverse of ``_byte_places`` and the streams made of them."""
    found = np.empty((int(lengths.sum()), dtype.itemsize), np.uint8)
    for place in range(dtype.itemsize):
        one, data = stream.unframed(data)
        found[:, place] = stream.unpack(one, lengths)
    if data:
        raise ValueError("goes on after all streams")
    return found.reshape(-1).view(dtype)


def _split(values: np.ndarray, lengths: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    return np.split(values, np.cumsum(lengths)[:-1])


def _plane(planes: Mapping[str, bytes], name: str) -> bytes:
    if name not in planes:
        raise ValueError(f"lacks the plane {name!r}")
    return planes[name]


def _scale_bytes(t: Stored) -> bytes:
    return b"" if t.scales is None else t.scales.astype(HALF).tobytes()


def _width(storage: str) -> int:
    return int(storage.removeprefix("int"))


def _bits(t: Stored) -> bytes:
    """A tensor's codes, b bits each and the first bit first; filled up to whole bytes."""
    if t.scales is None:
        return t.codes.tobytes()
    width = _width(t.storage)
    codes = (t.codes.reshape(-1).astype(np.int16) + LEVELS[t.storage]).astype(np.uint8)
    return np.packbits(np.unpackbits(codes[:, None], axis=1)[:, 8 - width :]).tobytes()


def _codes(data: bytes, n: int, storage: str) -> np.ndarray:
    """(n,) int8: the inverse of ``_bits``."""
    width = _width(storage)
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=n * width).reshape(n, width)
    spread = np.zeros((n, 8), np.uint8)
    spread[:, 8 - width :] = bits
    return (np.packbits(spread, axis=1)[:, 0].astype(np.int16) - LEVELS[storage]).astype(np.int8)


def _in_turn(data: bytes, index: Sequence[Stored], whole_bytes: bool = False) -> list[Stored]:
    """Tensor after tensor: codes, then scales."""
    found, at = [], 0
    for t in index:
        n = math.prod(t.shape)
        if t.storage in PLAIN:
            size, scales = n * np.dtype(PLAIN[t.storage]).itemsize, 0
        else:
            size, scales = n if whole_bytes else -(-n * _width(t.storage) // 8), 2 * n_rows(t.shape)
        piece, own = data[at : at + size], data[at + size : at + size + scales]
        at += size + scales
        if at > len(data):
            raise ValueError("ends early")
        if t.storage in PLAIN:
            found.append(t._replace(codes=np.frombuffer(piece, PLAIN[t.storage])))
            continue
        codes = np.frombuffer(piece, np.int8) if whole_bytes else _codes(piece, n, t.storage)
        found.append(
            t._replace(codes=codes.reshape(n_rows(t.shape), columns(t.shape)), scales=np.frombuffer(own, HALF))
        )
    if at != len(data):
        raise ValueError(f"{len(data) - at:,} bytes are left over")
    return found

"""What general compressors make of the same bytes, alone and behind as much training text as they can hold."""

from __future__ import annotations

import importlib
import lzma
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from zoo.data.prepare import Prepared

CHUNK = 1 << 20  # tokens decoded at a time


class Rival(NamedTuple):
    """A compressor at its strongest. ``window`` is how far back it looks, in bytes; ``package`` what it comes from."""

    name: str
    window: int
    package: str
    size: Callable[[bytes, bytes], int]  # of the code of a text (the second) behind what was read before it


class Rivalry(NamedTuple):
    """What one compressor needs, in bytes; None where its package is not installed."""

    name: str
    plain: int | None
    primed: int | None  # behind training text
    prime: int  # bytes of training text


def _xz(before: bytes, text: bytes) -> int:
    """It cannot be asked for all that it has so far: the difference of two whole codes."""

    def whole(data: bytes) -> int:
        return len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))

    return whole(before + text) - (whole(before) if before else 0)


def _zstd(before: bytes, text: bytes) -> int:
    import zstandard

    wide = {"window_log": 27} if before else {}
    parameters = zstandard.ZstdCompressionParameters.from_level(22, source_size=len(before) + len(text), **wide)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    if before:
        stream.compress(before)
        stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return len(stream.compress(text) + stream.flush())


def _brotli(before: bytes, text: bytes) -> int:
    import brotli

    stream = brotli.Compressor(quality=11, lgwin=24)
    if before:
        stream.process(before)
        stream.flush()
    return len(stream.process(text) + stream.finish())


RIVALS = (
    Rival("xz -9e", 1 << 26, "lzma", _xz),
    Rival("zstd -22", 1 << 27, "zstandard", _zstd),
    Rival("brotli -11", 1 << 24, "brotli", _brotli),
)


def compare(text: bytes, prepared: Prepared, say: Callable[[str], None]) -> Iterator[Rivalry]:
    """Every compressor on ``text``."""
    for rival in RIVALS:
        try:
            importlib.import_module(rival.package)
        except ImportError:
            yield Rivalry(rival.name, None, None, 0)
            continue
        prime = tail_of(prepared, rival.window - len(text))
        say(f"{rival.name}, behind {len(prime):,} bytes of training text")
        yield Rivalry(rival.name, rival.size(b"", text), rival.size(prime, text), len(prime))


def tail_of(prepared: Prepared, limit: int) -> bytes:
    """The last ``limit`` bytes of the training text, or all of it: what stands nearest to the text behind it."""
    found: list[bytes] = []
    n_bytes, end = 0, len(prepared.train)
    while n_bytes < limit and end > 0:
        begin = max(0, end - CHUNK)
        piece = np.asarray(prepared.train[begin:end], np.int64)
        found.insert(0, prepared.tokenizer.decode(piece.tolist()).encode("utf-8"))
        n_bytes, end = n_bytes + len(found[0]), begin
    text = b"".join(found)
    return text[max(0, len(text) - limit) :] if limit > 0 else b""

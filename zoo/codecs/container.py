"""The file that an artifact is: named planes of bytes behind a safetensors header, every byte under a checksum.

Format 1. The file is a valid safetensors file whose tensors are planes of type U8:

- 8 bytes: the length of the header, little-endian;
- the header, JSON: for each plane its name and place, and under ``__metadata__`` (strings) ``format`` (``"zoo 1"``),
  ``facts`` (JSON), ``planes`` (JSON: the first 32 hex digits of each plane's sha256), and ``header``: the first 32 hex digits
  of the sha256 of the 8 bytes and the header itself, with zeros where those digits stand;
- the planes, one after the other, without gaps.

Nothing in it is executed or unpickled when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from zoo.core.part import ConfigError

FORMAT = "zoo 1"
DIGITS = 32  # of a sha256: 128 bits
LONGEST_HEADER = 100_000_000  # as safetensors has it


class Contents(NamedTuple):
    """What a file holds."""

    planes: dict[str, bytes]
    facts: dict[str, Any]
    size: int  # bytes of the file


def to_bytes(planes: Mapping[str, bytes], facts: Mapping[str, Any]) -> bytes:
    """The file as bytes; equal planes and facts give equal bytes."""
    header: dict[str, Any] = {"__metadata__": _told(planes, facts, "0" * DIGITS)}
    at = 0
    for name, plane in planes.items():
        header[name] = {"dtype": "U8", "shape": [len(plane)], "data_offsets": [at, at + len(plane)]}
        at += len(plane)
    blank = _with_length(header)
    header["__metadata__"]["header"] = _digest(blank)
    return b"".join((_with_length(header), *planes.values()))


def write(path: Path, planes: Mapping[str, bytes], facts: Mapping[str, Any]) -> int:
    """Write the file whole or not at all; the number of its bytes.

    Raises:
        ConfigError: it cannot be written.
    """
    data = to_bytes(planes, facts)
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden.write_bytes(data)
        hidden.replace(path)
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be written: {fault.strerror}") from None
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)
    return len(data)


def read(path: Path) -> Contents:
    """What a file holds, every byte of it checked.

    Raises:
        ConfigError: no such file, no artifact, or one that is damaged; the damaged plane is named.
    """
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be read: {fault.strerror}") from None
    try:
        return from_bytes(data)
    except ValueError as fault:
        raise ConfigError(f"{path}: {fault}") from None


def from_bytes(data: bytes) -> Contents:
    """The inverse of ``to_bytes``.

    Raises:
        ValueError: what is wrong with them.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(LONGEST_HEADER, len(data) - 8):
        raise ValueError(
            f"truncated, damaged or no artifact: {len(data):,} bytes cannot hold the header they begin with"
        )
    try:
        header = json.loads(data[8 : 8 + length])
        told = header.pop("__metadata__")
        form, digest = told["format"], told["header"]
        facts, sums = json.loads(told["facts"]), json.loads(told["planes"])
        places = {name: tuple(place["data_offsets"]) for name, place in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("damaged, or no artifact: its header cannot be read") from None
    if _digest(data[: 8 + length].replace(digest.encode(), b"0" * DIGITS, 1)) != digest:
        raise ValueError("damaged: its header does not match its checksum")
    if form != FORMAT:
        raise ValueError(f"is of format {form!r}, and this program reads {FORMAT!r}")
    if (end := max((stop for _, stop in places.values()), default=0)) != len(data) - 8 - length:
        what = "truncated" if end > len(data) - 8 - length else "damaged"
        raise ValueError(f"{what}: it should have {8 + length + end:,} bytes and has {len(data):,}")
    planes = {name: data[8 + length + start : 8 + length + stop] for name, (start, stop) in places.items()}
    for name, plane in planes.items():
        if _digest(plane) != sums[name]:
            raise ValueError(f"damaged: its plane {name!r} does not match its checksum")
    return Contents(planes, facts, len(data))


def _told(planes: Mapping[str, bytes], facts: Mapping[str, Any], digest: str) -> dict[str, str]:
    sums = {name: _digest(plane) for name, plane in planes.items()}
    compact = (",", ":")
    return {
        "format": FORMAT,
        "facts": json.dumps(dict(facts), separators=compact, sort_keys=True),
        "header": digest,
        "planes": json.dumps(sums, separators=compact),
    }


def _with_length(header: Mapping[str, Any]) -> bytes:
    """The header's JSON behind its length, filled up with spaces to a multiple of 8 bytes as safetensors wants it."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:DIGITS]

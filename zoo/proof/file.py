"""The file of a proof: a short header, the hashes, the code, and a checksum over all of it."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from zoo.core.part import ConfigError
from zoo.proof.stream import CHECK_BYTES, Coded, n_checks

MAGIC = b"ZPF1"
HEAD = struct.Struct("<4sII8s8s8sH")  # magic, bytes, tokens, artifact, probe, text, length of the scorer's JSON
DIGEST = 8  # bytes kept of each sha256


class Proof(NamedTuple):
    """What a file says of the text whose code it holds."""

    n_bytes: int
    n_tokens: int  # the given first one included
    artifact: bytes  # digests, ``DIGEST`` bytes each: of the artifact's file,
    probe: bytes  # of what the model believes of a probe,
    text: bytes  # and of the text
    scorer: Any  # as a recipe has it
    coded: Coded


def digest(data: bytes) -> bytes:
    """The beginning of the sha256 of ``data``."""
    return hashlib.sha256(data).digest()[:DIGEST]


def to_bytes(proof: Proof) -> bytes:
    """The file's contents."""
    scorer = json.dumps(proof.scorer, separators=(",", ":")).encode()
    head = HEAD.pack(MAGIC, proof.n_bytes, proof.n_tokens, proof.artifact, proof.probe, proof.text, len(scorer))
    body = head + scorer + b"".join(proof.coded.checks) + proof.coded.code
    return body + struct.pack("<I", zlib.crc32(body))


def write(path: Path, proof: Proof) -> int:
    """Write a proof whole or not at all; the number of its bytes.

    Raises:
        ConfigError: it cannot be written.
    """
    data = to_bytes(proof)
    save(path, data)
    return len(data)


def save(path: Path, data: bytes) -> None:
    """Write ``data`` whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as fault:
        with suppress(OSError):  # where a file stands in the place of its folder there is nothing to take away
            partial.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {fault.strerror}") from None


def read(path: Path) -> Proof:
    """A proof from its file.

    Raises:
        ConfigError: no such file, no proof, or one that is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be read: {fault.strerror}") from None
    if not data.startswith(MAGIC):
        raise ConfigError(f"{path}: is no proof: it does not begin with {MAGIC.decode()}")
    body = data[:-4]
    if len(data) < HEAD.size + 4 or zlib.crc32(body) != struct.unpack("<I", data[-4:])[0]:
        raise ConfigError(f"{path}: is truncated or damaged: its checksum does not fit its contents")
    _, n_bytes, n_tokens, artifact, probe, text, length = HEAD.unpack_from(data)
    at = HEAD.size + length
    end = at + CHECK_BYTES * n_checks(n_tokens)
    try:
        scorer = json.loads(body[HEAD.size : at])
    except ValueError:
        scorer = None
    if scorer is None or n_tokens < 1 or end > len(body):
        raise ConfigError(f"{path}: is damaged: its header does not fit its contents")
    checks = tuple(body[i : i + CHECK_BYTES] for i in range(at, end, CHECK_BYTES))
    return Proof(n_bytes, n_tokens, artifact, probe, text, scorer, Coded(body[end:], checks))

"""Checkpoints: everything that a run needs to go on, in one safetensors file with its facts as JSON in the header.

A file is written under a temporary name, flushed to the disk and renamed, so that a kill at any moment leaves either the
whole file or none. It carries a sha256 of its contents; one that is damaged all the same is named and passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zoo.core.part import ConfigError

SUFFIX, PARTIAL = ".safetensors", ".partial"


class Damaged(ValueError):
    """A checkpoint file that cannot be read whole, or whose contents are not what was written."""


class Unwritable(ConfigError):
    """A folder that takes no more: the disk is full, or it may not be written."""


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the system says against writing inside the block, as one message that names ``folder``.

    Raises:
        Unwritable: instead of an OSError.
    """
    try:
        yield
    except OSError as fault:
        raise Unwritable(f"{folder}: cannot be written: {fault.strerror or fault}") from None


@dataclass(frozen=True)
class Checkpoint:
    """What one file holds.

    Args:
        step: updates made so far.
        tensors: by name; parts of one name are separated by ``/``, as in ``optim/matrix/layer.0.ffn.up.weight/momentum``.
        facts: what JSON can hold. Tuples come back as lists, keys as strings.
    """

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    path: Path

    def section(self, name: str) -> dict[str, Tensor]:
        """The tensors under ``name/``, without that prefix: what ``join`` was given under ``name``."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}


class Found(NamedTuple):
    """The newest checkpoint that is whole, and one line for every newer file that is not."""

    checkpoint: Checkpoint | None
    complaints: tuple[str, ...]


def join(sections: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One flat table of several: ``{"model": {"a": t}}`` -> ``{"model/a": t}``."""
    return {f"{name}/{key}": t for name, section in sections.items() for key, t in section.items()}


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Path:
    """Write ``folder/step_<step>.safetensors`` whole or not at all; an older file of that step is replaced.

    Tensors on any device; a tensor that stands under several names (a tied matrix) is written once and comes back tied.

    Raises:
        TypeError: facts that JSON cannot hold.
        OSError: the disk would not take it; nothing is left behind then.
    """
    distinct, aliases = _distinct(tensors)
    contents = json.dumps({"step": step, "facts": dict(facts), "aliases": aliases})
    header = {"format": "pt", "contents": contents, "sha256": _digest(contents, distinct)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}{SUFFIX}"
    partial = path.with_name(path.name + PARTIAL)
    try:
        try:
            save_file(distinct, partial, header)
        except SafetensorError as fault:  # its way to say that the system would not write
            raise OSError(str(fault)) from None
        _flush(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every system opens folders; the rename is then as durable as it gets
        _flush(folder)
    return path


def read(path: Path) -> Checkpoint:
    """The contents of one file, on the CPU, checked against its sha256.

    Raises:
        Damaged: why it cannot be used.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, RuntimeError) as fault:
        raise Damaged(f"{path}: {fault}") from None
    if not {"contents", "sha256"} <= header.keys():
        raise Damaged(f"{path}: not a checkpoint, its header lacks contents or sha256")
    if _digest(header["contents"], tensors) != header["sha256"]:
        raise Damaged(f"{path}: its contents do not match its sha256")
    contents = json.loads(header["contents"])
    tensors |= {alias: tensors[name] for alias, name in contents["aliases"].items()}
    return Checkpoint(contents["step"], tensors, contents["facts"], path)


def latest(folder: Path) -> Found:
    """The newest whole checkpoint in ``folder``; none if there is no such folder, or nothing whole in it."""
    complaints: list[str] = []
    for path in reversed(_files(folder)):
        try:
            return Found(read(path), tuple(complaints))
        except Damaged as fault:
            complaints.append(f"checkpoint passed over: {fault}")
    return Found(None, tuple(complaints))


def prune(folder: Path, keep: int = 2) -> None:
    """Delete all but the newest ``keep`` checkpoints, and what interrupted writing left behind."""
    if keep < 1:
        raise ValueError(f"keep must be at least 1, not {keep}")
    for path in [*_files(folder)[:-keep], *folder.glob(f"step_*{SUFFIX}{PARTIAL}")]:
        path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    """Finished checkpoints by step, oldest first."""
    numbered = [(path.name.removeprefix("step_").removesuffix(SUFFIX), path) for path in folder.glob(f"step_*{SUFFIX}")]
    return [path for _, path in sorted((int(number), path) for number, path in numbered if number.isdecimal())]


def _distinct(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, contiguous, on the CPU and in memory of its own; and which further names each goes by."""
    first: dict[tuple[Any, ...], str] = {}
    distinct: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    storages: set[int] = set()
    for name, t in tensors.items():
        key = (t.device, t.data_ptr(), t.dtype, t.shape, t.stride())
        if t.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        flat = t.detach().cpu().contiguous()
        storage = flat.untyped_storage().data_ptr()
        # A view into another tensor's memory is written as a tensor of its own: the format knows no views.
        distinct[name] = flat.clone() if flat.numel() and storage in storages else flat
        storages.add(storage)
    return distinct, aliases


def _digest(contents: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the JSON, then name, dtype, shape and bytes of every tensor by name."""
    digest = hashlib.sha256(contents.encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"\n{name} {t.dtype} {tuple(t.shape)}\n".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

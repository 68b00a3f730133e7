"""Hashes of files by content; a large file that nobody has written to since is not read again."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from zoo.data.cache import LARGE, default_cache, stamp


def digest_of(path: Path) -> str:
    """The sha256 of a file; of a large one from the cache, as long as its size, time and inode are what they were.

    Raises:
        OSError: it cannot be read.
    """
    seen = [*stamp(path)]
    if seen[0] < LARGE:
        return _sha256(path)
    note = default_cache() / "digests" / hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    with suppress(OSError, ValueError):
        known = json.loads(note.read_text())
        if known["stamp"] == seen:
            return known["sha256"]
    digest = _sha256(path)
    with suppress(OSError):  # a cache that cannot be written is named by whoever needs it
        note.parent.mkdir(parents=True, exist_ok=True)
        aside = note.with_name(f"{note.name}.{os.getpid()}")
        aside.write_text(json.dumps({"sha256": digest, "stamp": seen}))
        aside.replace(note)
    return digest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

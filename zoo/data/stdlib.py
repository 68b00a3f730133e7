"""Source `stdlib`: real text that every machine already has."""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from zoo.core.part import ConfigError
from zoo.data.slots import Document, Source

INSTALLED = ("site-packages", "dist-packages")  # other people's code, different on every machine
SHINGLE = 3  # lines


class File(NamedTuple):
    """A file of the library: the hash of its text, its path below the library's folder, and its text."""

    digest: bytes
    path: str
    text: str

    @property
    def share(self) -> float:
        """A number in [0, 1) that its content alone decides."""
        return int.from_bytes(self.digest[:8], "big") / 2**64


class StandardLibrary(Source, kind="stdlib"):
    """The Python files of the running interpreter's own standard library: about 11 MB of code, no network needed.

    A file goes to validation when the hash of its content says so, and files come in the order of their hashes. Copies are
    dropped, and so is every file of which more than ``near_duplicate`` of its three-line stretches stand in files taken
    before it (training first). Python versions differ in their text: figures of different ``corpus`` cannot be compared.

    Source: the Python Software Foundation's CPython distribution.
    """

    class Config(Source.Config):
        exclude: tuple[str, ...] = Field(
            (
                "test",
                "tests",
                "idle_test",
                "pydoc_data",  # one file, 6 % of all bytes, no code
                "_sysconfigdata*",  # these three are written by the build or the packager, not by CPython
                "config-*",
                "sitecustomize.py",
            ),
            description="names (or patterns) of files and folders to leave out",
        )
        valid_share: float = Field(0.1, gt=0, lt=1)  # share of files
        near_duplicate: float = Field(
            0.5, gt=0, le=1
        )  # share of a file's three-line stretches seen before; 1: copies only

    config: Config
    _files: list[File] | None = None

    def split(self) -> tuple[Iterator[Document], Iterator[Document]]:
        seen: set[str] = set()
        parts: list[list[Document]] = []
        for validation in (False, True):
            files = [f for f in self._read() if (f.share < self.config.valid_share) is validation]
            parts.append([Document(f.path, f.text) for f in files if is_new(f.text, seen, self.config.near_duplicate)])
        return iter(parts[0]), iter(parts[1])

    def fingerprint(self) -> str:
        rule = f"stdlib {self.config.valid_share} {self.config.near_duplicate} {SHINGLE}"
        return hashlib.sha256(rule.encode() + b"".join(f.digest for f in self._read())).hexdigest()

    def facts(self) -> dict[str, str]:
        return {"python": platform.python_version(), "corpus": self.fingerprint()[:12]}

    def _read(self) -> list[File]:
        """All files in the order of their hashes, copies dropped; read once."""
        if self._files is None:
            root = Path(sysconfig.get_path("stdlib"))
            found = {file.digest: file for file in _walk(root, self.config.exclude)}
            if not found:
                raise ConfigError(f"leaves no Python files of {root}", "exclude", self.config.exclude)
            self._files = [found[digest] for digest in sorted(found)]
        return self._files


def _walk(root: Path, exclude: tuple[str, ...]) -> Iterator[File]:
    """Files below ``root`` that are Python, UTF-8, not empty and not excluded; later paths first, so the first path wins."""
    paths = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not _is_excluded(name, (*INSTALLED, *exclude))]
        paths += [Path(folder, n) for n in names if n.endswith(".py") and not _is_excluded(n, exclude)]
    for path in sorted(paths, reverse=True):
        try:
            text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")  # installers for Windows write CRLF
        except (UnicodeDecodeError, OSError):
            continue
        if text:
            yield File(hashlib.sha256(text.encode("utf-8")).digest(), path.relative_to(root).as_posix(), text)


def _is_excluded(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def is_new(text: str, seen: set[str], near_duplicate: float) -> bool:
    """Whether at most a share ``near_duplicate`` of the text's stretches has been seen; if so, they count as seen now."""
    lines = [line for raw in text.split("\n") if (line := raw.strip())]
    shingles = {"\n".join(lines[i : i + SHINGLE]) for i in range(max(1, len(lines) - SHINGLE + 1))}
    if sum(s in seen for s in shingles) > near_duplicate * len(shingles):
        return False
    seen |= shingles
    return True

"""Where results live: one folder per trial, there as a whole or not at all.

A trial writes into a hidden folder that is renamed when everything in it is on the disk. A folder holds ``recipe.toml``
(resolved), ``log.jsonl`` and ``result.json``, so a result can be read without the zoo.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from zoo.core.part import ConfigError
from zoo.recipe import Recipe, dumps
from zoo.result import Result

RESULT = "result.json"


class Store:
    """The results of one recipe.

    Args:
        root: its folder; made when the first trial is opened.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, address: str) -> Result | None:
        """The stored result at ``address``, None where there is none that can be read."""
        for folder in sorted(self.root.glob(f"*-{address}")):
            try:
                return Result.model_validate(json.loads((folder / RESULT).read_text(encoding="utf-8")))
            except (OSError, ValueError, ValidationError):
                continue
        return None

    def folder(self, recipe: Recipe, address: str) -> Path:
        """Where a trial's folder stands: variant, seed, address."""
        return self.root / f"{slug(recipe.variant)}-seed{recipe.train.seed}-{address}"

    @contextmanager
    def opened(self, recipe: Recipe, address: str, base: Path) -> Iterator[Draft]:
        """A draft to train in, removed at the end unless it was committed.

        Args:
            recipe: what is trained; stored beside the result.
            address: its address.
            base: the folder that the recipe's relative paths start from.

        Raises:
            ConfigError: a folder that cannot be written.
        """
        final = self.folder(recipe, address)
        hidden = self.root / f".{final.name}.{os.getpid()}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.sweep()
            hidden.mkdir()
            start = Path(os.path.relpath(base.absolute(), final.absolute())).as_posix()
            (hidden / "recipe.toml").write_text(dumps(recipe.model_copy(update={"base": start})), encoding="utf-8")
        except OSError as fault:
            raise ConfigError(f"{self.root}: cannot be written: {fault.strerror}") from None
        try:
            yield Draft(hidden, final)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what processes that are gone have left half done."""
        for path in self.root.glob(".*-seed*.*"):
            pid = path.name.rpartition(".")[2]
            if path.is_dir() and pid.isdecimal() and (int(pid) == os.getpid() or not _alive(int(pid))):
                shutil.rmtree(path, ignore_errors=True)


class Draft:
    """A trial's folder while it is being filled."""

    def __init__(self, folder: Path, final: Path) -> None:
        self.folder, self.final = folder, final

    def commit(self, result: Result) -> None:
        """Write the result and give the folder its name; an older folder of that name is replaced.

        Raises:
            ConfigError: the disk is full, or the folder has become unwritable.
        """
        try:
            (self.folder / RESULT).write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
            for path in (*self.folder.rglob("*"), self.folder):
                _sync(path)
            if self.final.exists():
                old = self.folder.with_name(f"{self.folder.name}.old.{os.getpid()}")
                self.final.rename(old)
                self.folder.rename(self.final)
                shutil.rmtree(old, ignore_errors=True)
            else:
                self.folder.rename(self.final)
            _sync(self.final.parent)
        except OSError as fault:
            raise ConfigError(f"{self.final}: cannot be written: {fault.strerror}") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a kill leaves either the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{os.getpid()}")
    hidden.write_text(text, encoding="utf-8")
    _sync(hidden)
    hidden.replace(path)


def slug(name: str) -> str:
    """``name`` as a folder's name: letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.=+-]+", "-", name).strip("-.")[:80] or "arm"


def _sync(path: Path) -> None:
    """Have the system put a file or folder on the disk; some file systems know no such thing for folders."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def _alive(pid: int) -> bool:
    if os.name == "nt":  # signal 0 is no mere question there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True

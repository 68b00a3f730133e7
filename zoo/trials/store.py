"""Where results live: one folder per trial, there as a whole or not at all.

A trial writes into a hidden folder that is renamed when everything in it is on the disk. A folder holds ``recipe.toml``
(resolved), ``log.jsonl`` and ``result.json``, so a result can be read without the zoo. A hidden folder that holds checkpoints
outlives its process: the next one that opens the trial goes on in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from zoo.checkpoint import writing
from zoo.recipe import Recipe, dumps
from zoo.result import Result
from zoo.resume import FOLDER as RESUME
from zoo.trials.lock import LOCKS, Lock

RESULT = "result.json"
OLD = ".old."  # in the name of a folder that another has replaced
PATIENCE = 3.0  # seconds that another process, which is perhaps dying, may still hold a trial's folder


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
            if (result := _result_in(folder)) is not None:
                return result
        return None

    def folder(self, recipe: Recipe, address: str) -> Path:
        """Where a trial's folder stands: variant, seed, address."""
        return self.root / f"{slug(recipe.variant)}-seed{recipe.train.seed}-{address}"

    @contextmanager
    def opened(self, recipe: Recipe, address: str, base: Path, code: str = "") -> Iterator[Draft]:
        """A draft to train in: what an earlier process left of this trial, or an empty one.

        It is removed at the end unless it was committed or holds checkpoints.

        Args:
            recipe: what is trained; stored beside the result.
            address: its address.
            base: the folder that the recipe's relative paths start from.
            code: the hash of the source that trains it; what other source left half done is not taken up.

        Raises:
            Unwritable: a folder that cannot be written.
        """
        final = self.folder(recipe, address)
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            self.sweep()
            lock = self._claim(final, address, code or "draft")
        try:
            with writing(self.root):
                for name in (RESULT, "traceback.txt"):
                    (lock.folder / name).unlink(missing_ok=True)
                start = Path(os.path.relpath(base.absolute(), final.absolute())).as_posix()
                text = dumps(recipe.model_copy(update={"base": start}))
                (lock.folder / "recipe.toml").write_text(text, encoding="utf-8")
            yield Draft(lock.folder, final)
        finally:
            if lock.folder.exists() and not holds_checkpoints(lock.folder):
                shutil.rmtree(lock.folder, ignore_errors=True)
            lock.release()

    def _claim(self, final: Path, address: str, code: str) -> Lock:
        """The trial's hidden folder, which from now on is this process's alone."""
        own = self.root / f".{final.name}.{code}"
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if not own.exists():
                self._take_up(own, address, code)
            own.mkdir(exist_ok=True)
            if (lock := Lock.of(own)) is not None:
                return lock
            time.sleep(0.05)
        private = own.with_name(f"{own.name}.{os.getpid()}")  # somebody else trains the same trial: both may
        private.mkdir(exist_ok=True)
        return Lock.of(private) or Lock(private, None)

    def _take_up(self, own: Path, address: str, code: str) -> None:
        """Give ``own`` name to what an earlier run left of this trial: half done, under another name, or failed."""
        for folder in self.root.glob(f".*-{address}.*"):
            lock = Lock.of(folder) if OLD not in folder.name else None
            if lock is None:
                continue
            if folder.name.partition(f"-{address}.")[2].partition(".")[0] != code:
                shutil.rmtree(folder, ignore_errors=True)
            elif holds_checkpoints(folder) and not own.exists():
                folder.rename(own)
            lock.release()
        for folder in self.root.glob(f"[!.]*-{address}"):
            result = _result_in(folder)
            failed = result is not None and result.status == "failed" and result.facts.get("code", "draft") == code
            if failed and holds_checkpoints(folder) and not own.exists():
                with suppress(FileNotFoundError):  # another process was faster
                    folder.rename(own)

    def sweep(self) -> None:
        """Remove what is of no more use: hidden folders that nobody has and that hold no checkpoint, replaced ones, and
        the checkpoints of trials that are over."""
        for folder in self.root.glob(".*-seed*.*"):
            if not (LOCKS or OLD in folder.name) or not folder.is_dir():
                continue
            lock = Lock.of(folder)
            if lock is not None:
                if OLD in folder.name or not holds_checkpoints(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                lock.release()
        for folder in self.root.glob(f"[!.]*-seed*/{RESUME}"):
            result = _result_in(folder.parent)
            if result is not None and result.status != "failed":
                shutil.rmtree(folder, ignore_errors=True)


class Draft:
    """A trial's folder while it is being filled."""

    def __init__(self, folder: Path, final: Path) -> None:
        self.folder, self.final = folder, final

    def commit(self, result: Result) -> None:
        """Write the result and give the folder its name; an older folder of that name is replaced.

        The checkpoints of a trial that failed stay, so that it can go on.

        Raises:
            Unwritable: the disk is full, or the folder has become unwritable.
        """
        with writing(self.final):
            (self.folder / RESULT).write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
            for path in (*self.folder.rglob("*"), self.folder):
                _sync(path)
            if self.final.exists():
                old = self.folder.with_name(f".{self.final.name}{OLD}{os.getpid()}")
                self.final.rename(old)
                self.folder.rename(self.final)
                shutil.rmtree(old, ignore_errors=True)
            else:
                self.folder.rename(self.final)
            _sync(self.final.parent)
        if result.status != "failed":
            shutil.rmtree(self.final / RESUME, ignore_errors=True)


def holds_checkpoints(folder: Path) -> bool:
    """Whether a trial could go on in this folder."""
    return next((folder / RESUME).glob("step_*.safetensors"), None) is not None


def _result_in(folder: Path) -> Result | None:
    try:
        return Result.model_validate(json.loads((folder / RESULT).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None


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

"""A cache of folders, each made whole or not at all, and checked before it is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from zoo.core.part import ConfigError

MANIFEST = "files.json"  # name -> sha256 of every file, written last
DAY = 86_400.0  # seconds after which an unfinished folder is taken for abandoned


def default_cache() -> Path:
    """The folder that the environment variable ZOO_CACHE names, else ~/.cache/ablation-zoo."""
    return Path(os.environ.get("ZOO_CACHE") or Path.home() / ".cache" / "ablation-zoo").expanduser()


def entry(cache: Path, key: str, make: Callable[[Path], None]) -> Path:
    """The folder ``cache/key``, made by ``make(folder)`` unless it stands there undamaged.

    It is made under another name and then renamed, so nobody ever sees half of it; of two processes that make it at once
    the first wins and both use its result. A damaged folder is replaced, with a warning.

    Raises:
        ConfigError: the cache cannot be written to.
    """
    folder = cache / key
    stood_there = folder.exists()
    fault = damage(folder)
    if fault is None:
        return folder
    if stood_there:
        warnings.warn(f"the cache at {folder} is damaged ({fault}) and is made again", stacklevel=2)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        draft = Path(tempfile.mkdtemp(prefix=".making-", dir=cache))
    except OSError as stop:
        reason = f"cannot write to the cache {cache} ({stop.strerror}); set ZOO_CACHE to a folder of yours"
        raise ConfigError(reason) from None
    try:
        make(draft)
        manifest = {path.name: _digest(path) for path in sorted(draft.iterdir())}
        (draft / MANIFEST).write_text(json.dumps(manifest))
        _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def damage(folder: Path) -> str | None:
    """What is wrong with a folder of the cache; None: it is whole, every file as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, digest in manifest.items():
            if _digest(folder / name) != digest:
                return f"{name} has changed"
    except (OSError, ValueError, AttributeError) as fault:
        return f"{type(fault).__name__}: {fault}"
    return None


def _publish(draft: Path, folder: Path) -> None:
    """Give the finished draft its name; a whole folder that stands there already stays."""
    while True:
        try:
            draft.rename(folder)
            return
        except OSError:
            if not folder.exists():
                raise
        if damage(folder) is None:
            return
        bad = Path(tempfile.mkdtemp(prefix=".damaged-", dir=folder.parent))
        try:
            folder.rename(bad / folder.name)
        except FileNotFoundError:
            pass  # another process was quicker
        finally:
            shutil.rmtree(bad, ignore_errors=True)


def _sweep(cache: Path) -> None:
    """Remove what processes that were killed left unfinished."""
    for path in (*cache.glob(".making-*"), *cache.glob(".damaged-*")):
        try:
            if path.stat().st_mtime < time.time() - DAY:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:
            continue


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""A cache of folders, each made whole or not at all, by one process at a time, and checked before it is used."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zoo.core.part import ConfigError
from zoo.data.slots import Unfinished

try:
    import fcntl
except ImportError:  # not a Unix: two processes may then make an entry at once, and the first wins
    fcntl = None

MANIFEST = "files.json"  # name -> sha256 of every file, written last
DRAFT, BAD = ".making-", ".damaged-"
ABANDONED = 7 * 86_400.0  # seconds after which an unfinished folder is given up
LARGE = 2**26  # bytes of a file that is not read again as long as the system says that nobody wrote to it
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def default_cache() -> Path:
    """The folder that the environment variable ZOO_CACHE names, else ~/.cache/ablation-zoo."""
    return Path(os.environ.get("ZOO_CACHE") or Path.home() / ".cache" / "ablation-zoo").expanduser()


def entry(
    cache: Path,
    key: str,
    make: Callable[[Path], None],
    resumes: bool = False,
    waiting: Callable[[], None] = lambda: None,
) -> Path:
    """The folder ``cache/key``, made by ``make(folder)`` unless it stands there undamaged.

    It is made under another name, which is locked, and then renamed: nobody ever sees half of it, and of two processes that
    want it the second waits and takes what the first made. A damaged folder is replaced, with a warning.

    Args:
        cache: made if it is not there.
        key: name of the folder.
        make: fills an empty folder; or, with ``resumes``, one in which an earlier, interrupted call may have left something.
        resumes: keep what ``make`` has written when it is interrupted (Unfinished, Ctrl-C, kill), for the next call.
        waiting: called if another process is making this entry now.

    Raises:
        ConfigError: the cache cannot be written to; a full disk is left as it was before.
    """
    folder = cache / key
    stood_there = folder.exists()
    fault = damage(folder)
    if fault is None:
        return folder
    if stood_there:
        warnings.warn(f"the cache at {folder} is damaged ({fault}) and is made again", stacklevel=2)
    with _told(cache), _locked(cache, key, waiting) as draft:
        if damage(folder) is None:  # another process has made it meanwhile
            shutil.rmtree(draft, ignore_errors=True)
            return folder
        try:
            if not resumes:
                _empty(draft)
            make(draft)
            manifest = {path.name: _digest(path) for path in sorted(draft.iterdir())}
            (draft / MANIFEST).write_text(json.dumps(manifest))
            _publish(draft, folder)
        except BaseException as stop:
            if not (resumes and isinstance(stop, Unfinished | KeyboardInterrupt | SystemExit)):
                shutil.rmtree(draft, ignore_errors=True)
            raise
    _remember(folder, manifest)
    return folder


@contextmanager
def _told(cache: Path) -> Iterator[None]:
    """A fault of the system about the cache, in words."""
    try:
        yield
    except OSError as fault:
        if fault.errno in NO_ROOM:
            reason = (
                f"the cache {cache} has no room left ({fault.strerror}); free some, or set ZOO_CACHE to another disk"
            )
        elif fault.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            reason = _unwritable(cache, fault)
        else:
            raise
        raise ConfigError(reason) from None


def _unwritable(cache: Path, fault: OSError) -> str:
    return f"cannot write to the cache {cache} ({fault.strerror}); set ZOO_CACHE to a folder of yours"


def _begin(cache: Path) -> None:
    """Make the cache's own folder, where whatever the system says is about the cache."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        if fault.errno in NO_ROOM:
            raise
        raise ConfigError(_unwritable(cache, fault)) from None


@contextmanager
def _locked(cache: Path, key: str, waiting: Callable[[], None]) -> Iterator[Path]:
    """The folder in which an entry is made, for this process alone: the lock goes when the process goes, however it goes."""
    _begin(cache)
    _sweep(cache)
    if fcntl is None:
        yield Path(tempfile.mkdtemp(prefix=DRAFT, dir=cache))
        return
    draft = cache / f"{DRAFT}{key}"
    while True:
        with suppress(FileExistsError):  # Path.mkdir would look again, and raise if its maker were done by then
            os.mkdir(draft)
        try:
            handle = os.open(draft, os.O_RDONLY)
        except FileNotFoundError:
            continue  # its maker was done between these two lines
        try:
            _lock(handle, waiting)
            if _is_open(draft, handle):
                yield draft
                return
        finally:
            os.close(handle)


def _lock(handle: int, waiting: Callable[[], None]) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(handle, fcntl.LOCK_EX)


def _is_open(draft: Path, handle: int) -> bool:
    """Whether the folder that was locked still has this name, and has not been finished or thrown away meanwhile."""
    try:
        return os.path.samestat(os.stat(draft), os.fstat(handle))
    except FileNotFoundError:
        return False


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def damage(folder: Path) -> str | None:
    """What is wrong with a folder of the cache; None: it is whole, every file as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        known = _remembered(folder)
        for name, digest in manifest.items():
            if known.get(name) != [digest, *stamp(folder / name)] and _digest(folder / name) != digest:
                return f"{name} has changed"
    except (OSError, ValueError, AttributeError) as fault:
        return f"{type(fault).__name__}: {fault}"
    return None


def stamp(path: Path) -> tuple[int, int, int]:
    """What changes when somebody writes to a file."""
    seen = path.stat()
    return seen.st_size, seen.st_mtime_ns, seen.st_ino


def _notes(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.checked")


def _remember(folder: Path, manifest: dict[str, str]) -> None:
    """Note how large files looked when they were whole, so that they need not be read at the start of every run."""
    large = {name: digest for name, digest in manifest.items() if (folder / name).stat().st_size >= LARGE}
    if large:
        with suppress(OSError):
            _notes(folder).write_text(json.dumps({name: [d, *stamp(folder / name)] for name, d in large.items()}))


def _remembered(folder: Path) -> dict[str, list[object]]:
    try:
        known = json.loads(_notes(folder).read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


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
            shutil.rmtree(draft, ignore_errors=True)
            return
        bad = Path(tempfile.mkdtemp(prefix=BAD, dir=folder.parent))
        try:
            folder.rename(bad / folder.name)
        except FileNotFoundError:
            pass  # another process was quicker
        finally:
            shutil.rmtree(bad, ignore_errors=True)


def _sweep(cache: Path) -> None:
    """Remove what was left unfinished so long ago that nobody will go on with it."""
    for path in (*cache.glob(f"{DRAFT}*"), *cache.glob(f"{BAD}*")):
        with suppress(OSError):
            newest = max((p.stat().st_mtime for p in (path, *path.iterdir())), default=0.0)
            if newest < time.time() - ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

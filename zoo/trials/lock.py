"""A folder that one process has to itself. The lock is the system's, so that it ends with the process, however that ends."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: folders cannot be locked there, and everybody gets what they ask for
    fcntl = None

LOCKS = fcntl is not None


class Lock:
    """A folder held by this process until ``release``. It may be renamed meanwhile."""

    def __init__(self, folder: Path, handle: int | None) -> None:
        self.folder, self.handle = folder, handle

    @classmethod
    def of(cls, folder: Path) -> Lock | None:
        """Hold ``folder``; None if somebody else does, or if it is gone.

        On a file system that cannot lock folders it is given to whoever asks.
        """
        if not LOCKS:
            return cls(folder, None)
        try:
            handle = os.open(folder, os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:
            pass
        if _same(folder, handle):
            return cls(folder, handle)
        os.close(handle)  # its last holder has removed or renamed it before it let go
        return None

    def release(self) -> None:
        """Let go of it."""
        if self.handle is not None:
            with suppress(OSError):
                os.close(self.handle)
            self.handle = None


def _same(folder: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(folder), os.fstat(handle))
    except OSError:
        return False

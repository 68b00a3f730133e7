"""How worker processes begin: as copies of one that has imported everything already.

Importing torch takes seconds of processor time. On Linux a server process does it once, beside the parent's own imports, and
each worker is forked from it, at the start and whenever one is replaced. The server computes nothing and so has no threads,
which a copy would lack. Elsewhere each worker is started afresh.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext

PRELOADED = "zoo.trials.preload"


def context() -> BaseContext:
    """What makes processes, pipes and shared values for workers."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([PRELOADED])
    return found


def warm_up() -> None:
    """Start the server, if there is one and it is not running; it imports while the caller goes on."""
    if context().get_start_method() == "forkserver":
        from multiprocessing import forkserver

        with interrupts_held_back(), _own_path_handed_on():
            forkserver.ensure_running()


@contextmanager
def _own_path_handed_on() -> Iterator[None]:
    """A Python that is started inside finds the modules that this one finds: else it could import another copy of the zoo."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """A process that is started inside never hears Ctrl-C: that is for its parent, which then stops its workers."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

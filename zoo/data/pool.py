"""Several processes that tokenise, with the answers in the order of the questions.

The processes import neither torch nor the caller's main module, so they start in a fraction of a second and stay small; they
end when the pipe from their parent does, so none outlives a parent that is killed.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from zoo.core.part import ConfigError
from zoo.data.slots import Tokenizer
from zoo.data.worker import Chunk, Encoded, Order, encode

ALONE = 2**23  # bytes of text that are not worth a second process
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encoded(
    chunks: Iterable[tuple[Chunk, int]], tokenizer: Tokenizer, learned: bytes, workers: int | None
) -> Iterator[Encoded]:
    """The tokens of every chunk, in order; at most a few chunks are held at once.

    Args:
        chunks: with their size in bytes; read as they are needed.
        tokenizer: ready for use.
        learned: what made it so.
        workers: processes; 0: this one does it; None: this one does the first ALONE bytes, and then one for each core.

    Raises:
        ConfigError: whatever is wrong with a chunk, or a process that died.
    """
    chunks, order = iter(chunks), _order(tokenizer, learned)
    n = 0 if order is None else cores() if workers is None else workers
    alone = 0 if workers else ALONE
    if n > (workers is None):
        for chunk, size in chunks:
            if alone <= 0:
                yield from _side_by_side(_before((chunk, size), chunks), order, n)
                return
            alone -= size
            yield encode(tokenizer, chunk)
        return
    for chunk, _ in chunks:
        yield encode(tokenizer, chunk)


def _before(first: tuple[Chunk, int], rest: Iterator[tuple[Chunk, int]]) -> Iterator[Chunk]:
    yield first[0]
    yield from (chunk for chunk, _ in rest)


def _order(tokenizer: Tokenizer, learned: bytes) -> Order | None:
    """How another process gets this tokenizer; None: it cannot, since the class stands in a function or a main module."""
    kind = type(tokenizer)
    file = None
    if kind.__module__.startswith("zoo_plugin_"):
        file = sys.modules[kind.__module__].__file__
    elif kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        return None
    knobs = tokenizer.config.model_dump(mode="json")
    return Order(kind.__module__, file, knobs, str(Path(tokenizer.base).absolute()), learned)


def _side_by_side(chunks: Iterator[Chunk], order: Order, n: int) -> Iterator[Encoded]:
    """As many chunks in hand as there are processes, and one more for each, so that none waits for the next question."""
    processes = [Process(order) for _ in range(n)]
    idle: SimpleQueue[Process] = SimpleQueue()
    for process in processes:
        idle.put(process)

    def ask(chunk: Chunk) -> Encoded:
        process = idle.get()
        try:
            return process.ask(chunk)
        finally:
            idle.put(process)

    waiting: deque[Future[Encoded]] = deque()
    threads = ThreadPoolExecutor(n)
    try:
        for chunk in chunks:
            waiting.append(threads.submit(ask, chunk))
            if len(waiting) > 2 * n:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for process in processes:
            process.stop()
        threads.shutdown(cancel_futures=True)


class Process:
    """One tokenising process and its two pipes."""

    def __init__(self, order: Order) -> None:
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from zoo.data.worker import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": path},
        )
        self._send(order)

    def ask(self, chunk: Chunk) -> Encoded:
        """The tokens of a chunk; blocks until they are there."""
        self._send(chunk)
        try:
            answer = pickle.load(self.process.stdout)
        except (EOFError, pickle.UnpicklingError, ValueError, OSError):
            raise self._death() from None
        if isinstance(answer, ConfigError):
            raise answer
        return answer

    def _send(self, message: object) -> None:
        try:
            pickle.dump(message, self.process.stdin, pickle.HIGHEST_PROTOCOL)
            self.process.stdin.flush()
        except (OSError, ValueError):
            raise self._death() from None

    def _death(self) -> ConfigError:
        code = self.process.wait()
        ended = f"by signal {-code}: the system may have run out of memory" if code < 0 else f"with exit code {code}"
        return ConfigError(f"a tokenising process ended {ended}")

    def stop(self) -> None:
        """End it, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # what was not sent yet cannot be sent any more
                pipe.close()

"""Several processes that tokenise, with the answers in the order of the questions.

The processes beside this one import neither torch nor the caller's main module, so they start in a fraction of a second and
stay small; they end when the pipe from their parent does, so none outlives a parent that is killed.
"""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Self

from zoo.core.part import ConfigError
from zoo.data.slots import Tokenizer
from zoo.data.worker import Chunk, Encoded, Order, encode

ALONE = 2**23  # bytes of text that are not worth a second process
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """This process and others beside it, which tokenise. They start when there is much to do, and end with the context.

    Args:
        tokenizer: ready for use.
        learned: what made it so.
        workers: processes, this one among them; None: this one does the first ALONE bytes, then there is one for each core.
    """

    def __init__(self, tokenizer: Tokenizer, learned: bytes, workers: int | None) -> None:
        self.tokenizer, self.order = tokenizer, _order(tokenizer, learned)
        self.n = 1 if self.order is None else cores() if workers is None else workers
        self.alone = ALONE if workers is None else 0  # bytes that are not worth a second process
        self.others: list[Process] = []
        self.idle: SimpleQueue[Process] = SimpleQueue()
        self.threads = ThreadPoolExecutor(max(1, self.n - 1))  # one waits for each of the others

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        for process in self.others:
            process.stop()
        self.threads.shutdown(cancel_futures=True)

    def encoded(self, chunks: Iterable[tuple[Chunk, int]]) -> Iterator[Encoded]:
        """The tokens of every chunk, in order; at most a few chunks are held at once.

        Args:
            chunks: with their size in bytes; read as they are needed.

        Raises:
            ConfigError: whatever is wrong with a chunk, or a process that died.
        """
        chunks = iter(chunks)
        for chunk, size in chunks:
            if self.n > 1 and self.alone <= 0:
                yield from self._side_by_side(itertools.chain([chunk], (later for later, _ in chunks)))
                return
            self.alone -= size
            yield encode(self.tokenizer, chunk)

    def _side_by_side(self, chunks: Iterator[Chunk]) -> Iterator[Encoded]:
        """As many chunks in hand as there are processes, and one more for each, so that none waits for the next question."""
        while len(self.others) < self.n - 1:
            self.others.append(Process(self.order))
            self.idle.put(self.others[-1])
        waiting: deque[Task] = deque()
        for chunk in chunks:
            waiting.append(Task(chunk, self.threads.submit(self._ask, chunk)))
            if len(waiting) > 2 * self.n:
                yield self._first(waiting)
        while waiting:
            yield self._first(waiting)

    def _ask(self, chunk: Chunk) -> Encoded:
        process = self.idle.get()
        try:
            return process.ask(chunk)
        finally:
            self.idle.put(process)

    def _first(self, waiting: deque[Task]) -> Encoded:
        """The answer to the first task. Until it is there, this process does what nobody has begun."""
        while not waiting[0].answer.done():
            free = next((task for task in waiting if task.answer.cancel()), None)
            if free is None:
                break
            free.answer = Future()
            try:
                free.answer.set_result(encode(self.tokenizer, free.chunk))
            except ConfigError as fault:
                free.answer.set_exception(fault)
        return waiting.popleft().answer.result()


@dataclass
class Task:
    """A chunk, and the answer that will come."""

    chunk: Chunk
    answer: Future[Encoded]


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

"""How fast text becomes tokens, what a training step waits for them, and what memory a long stream takes.

    python benchmarks/data.py speed [MEGABYTES]      tokens/s of a preparation over those of the library's plain call
    python benchmarks/data.py wait [RECIPE] [STEPS]  share of a training step spent on its batch
    python benchmarks/data.py memory [GIGABYTES]     peak resident memory of a preparation with all its processes

``speed`` measures both sides in turn in one run, three times, and gives the ratio of the best of each; the plain call runs on
one core, over the first megabytes of the same text. A byte tokenizer has nothing to look up: for numpy it is a copy in
memory, which no preparation that checks, compares and stores its tokens can equal, so it is compared with the library whose
byte tokenizer people use as well, and both figures are printed.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import zoo.data  # noqa: F401 (registers the kinds)
from zoo.data.pool import cores
from zoo.data.prepare import prepare
from zoo.data.slots import Document, Source, Tokenizer
from zoo.recipe import DataConfig

PLAIN = 4.0  # megabytes for the plain calls
TOKENIZERS = (
    {"kind": "byte"},
    {"kind": "sentencepiece", "vocab_size": 1024},
    {"kind": "byte_bpe", "vocab_size": 49_152},
)


class Repeated(Source, kind="repeated"):
    """The standard library again and again, up to a number of bytes; every document is numbered, so none is a copy."""

    class Config(Source.Config):
        n_bytes: int

    def split(self) -> tuple[Iterator[Document], Iterator[Document]]:
        return iter(self.texts()), iter([Document("valid", "".join(map(str, range(30_000))))])

    def texts(self) -> Iterator[Document]:
        """Training documents; they are made as they are read."""
        size, number, library = 0, 0, self.library()
        while size < self.config.n_bytes:
            text = f"# {number}\n{library[number % len(library)]}"
            size, number = size + len(text), number + 1
            yield Document(f"document {number}", text)

    def library(self) -> list[str]:
        """The texts that are repeated."""
        if not hasattr(self, "_library"):
            self._library = [d.text for part in Source.parse("stdlib").build(self.base).split() for d in part]
            random.Random(0).shuffle(self._library)
        return self._library

    def size(self) -> int:
        return self.config.n_bytes

    def fingerprint(self) -> str:
        return f"repeated {self.config.n_bytes} {time.time_ns()}"  # never found in a cache


def plain_calls(tokenizer: Tokenizer) -> dict[str, Callable[[str], object]]:
    """The calls that somebody would make without us, one text each, by the name of the library."""
    if tokenizer.kind == "byte":
        from transformers import ByT5Tokenizer

        ids = ByT5Tokenizer()
        return {
            "transformers' ByT5Tokenizer": lambda text: ids.encode(text, add_special_tokens=False),
            "numpy, a copy in memory": lambda text: np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32),
        }
    if tokenizer.kind == "sentencepiece":
        return {"sentencepiece": tokenizer.model.encode}
    return {"tokenizers": lambda text: tokenizer.backend.encode(text, add_special_tokens=False).ids}


def speed(megabytes: float = 24.0) -> None:
    """One line per tokenizer and plain call."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    print(f"{cores()} cores, {megabytes:g} MB of the standard library's text, best of three, tokens/s")
    for knobs in TOKENIZERS:
        source = Source.parse({"kind": "repeated", "n_bytes": int(megabytes * 1e6)})
        config = DataConfig(source=source, tokenizer=Tokenizer.parse(knobs))
        learned = prepare(config.model_copy(update={"source": Source.parse("stdlib")}), Path()).tokenizer
        sample = Source.parse({"kind": "repeated", "n_bytes": int(PLAIN * 1e6)}).build(Path())
        texts = [document.text for document in sample.texts()]
        calls = plain_calls(learned)
        plain, prepared = dict.fromkeys(calls, 0.0), 0.0
        for _ in range(3):
            for name, call in calls.items():
                plain[name] = max(plain[name], _plain(call, texts))
            prepared = max(prepared, _prepared(config, learned))
        for name, rate in plain.items():
            print(
                f"{knobs['kind']:14s} V {learned.vocab_size:6,}  prepared {prepared:12,.0f}  "
                f"{name:28s} {rate:13,.0f}  ratio {prepared / rate:.2f}",
                flush=True,
            )


def _plain(call: Callable[[str], object], texts: list[str]) -> float:
    began = time.perf_counter()
    n_tokens = sum(len(call(text)) + 1 for text in texts)
    return n_tokens / (time.perf_counter() - began)


def _prepared(config: DataConfig, learned: Tokenizer) -> float:
    """Tokens/s from the first document to the finished, renamed folder; the tokenizer has been learned before."""
    from zoo.data.encode import Encoding

    folder = Path(tempfile.mkdtemp(prefix="zoo-benchmark-"))
    try:
        source = config.source.build(Path())
        source.library()
        began = time.perf_counter()
        said = lambda what, share, words: None  # noqa: E731
        Encoding(source, learned, _learned(learned), (None, None), "kept", said, cores())(folder)
        seconds = time.perf_counter() - began
        n_bytes = (folder / "train.tokens").stat().st_size
        return n_bytes / (2 if learned.vocab_size <= 2**16 else 4) / seconds
    finally:
        shutil.rmtree(folder)


def _learned(tokenizer: Tokenizer) -> bytes:
    return getattr(tokenizer, "learned", b"")


def wait(recipe: str = "recipes/quickstart.toml", steps: str = "40") -> None:
    """The share of the time of ``steps`` updates that was spent on making their batches."""
    from zoo.loop import Loop
    from zoo.optim.slots import Schedule
    from zoo.trials.grid import plan
    from zoo.trials.run import text_of
    from zoo.trials.vocabulary import with_vocabulary

    grid = plan(Path(recipe), None, [f"train.steps={steps}"])
    prepared = text_of(grid.recipe, grid.folder)
    settled = with_vocabulary(grid.recipe, prepared.tokenizer.vocab_size)
    settled = settled.model_copy(update={"schedule": Schedule.parse("constant")})  # which fits any number of steps
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        loop = Loop(settled, prepared, lambda progress: None, log)
        batch, spent = loop.batches.batch, [0.0]

        def timed(step: int, micro: int = 0) -> object:
            began = time.perf_counter()
            try:
                return batch(step, micro)
            finally:
                spent[0] += time.perf_counter() - began

        loop.batches.batch = timed
        loop.run()
        print(
            f"{recipe}: {loop.step} steps, {1e3 * loop.seconds / loop.step:.2f} ms a step, "
            f"{1e3 * spent[0] / loop.step:.3f} ms of them on batches: {spent[0] / loop.seconds:.3%}"
        )


def memory(gigabytes: float = 10.0) -> None:
    """Peak resident memory of this process and its children while a synthetic stream is prepared."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-benchmark-"))
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            peak[0] = max(peak[0], sum(_resident(pid) for pid in _family(os.getpid())))

    before = _resident(os.getpid())
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        config = DataConfig(
            source=Source.parse({"kind": "repeated", "n_bytes": int(gigabytes * 1e9)}),
            tokenizer=Tokenizer.parse("byte"),
        )
        began = time.perf_counter()
        found = prepare(config, Path(), folder, None, cores())
        seconds = time.perf_counter() - began
    finally:
        over.set()
        watcher.join()
        shutil.rmtree(folder)
    print(
        f"{found.train_bytes / 1e9:.2f} GB in {seconds:.0f} s, {found.train_bytes / 1e6 / seconds:.0f} MB/s; "
        f"resident {before / 1e6:.0f} MB before, {peak[0] / 1e6:.0f} MB at most with {cores()} tokenising processes"
    )


def _family(pid: int) -> list[int]:
    """A process and its children."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _resident(pid: int) -> int:
    """Resident bytes that are the process's own: pages of mapped files are the system's to drop."""
    try:
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(row.split()[1]) for row in rows if row.startswith(("RssAnon", "RssShmem")))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("speed", "wait", "memory"):
        sys.exit(__doc__)
    given = sys.argv[2:]
    {"speed": speed, "wait": wait, "memory": memory}[sys.argv[1]](
        *(given if sys.argv[1] == "wait" else map(float, given))
    )

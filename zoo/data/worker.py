"""Text to tokens, a chunk at a time: what a tokenising process does, and the same in this process."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.core.part import ConfigError
from zoo.data.overlap import marks
from zoo.data.slots import Document, Tokenizer


class Chunk(NamedTuple):
    """Some documents of one part, in order."""

    documents: tuple[Document, ...]
    part: str  # "train" or "valid"


class Encoded(NamedTuple):
    """The tokens of a chunk: each document is a bos and its ids."""

    tokens: bytes  # uint16 or uint32
    spans: bytes  # uint32, the bytes that each token covers; of training text nothing
    marks: bytes  # uint64, see zoo.data.overlap; of validation text nothing
    counts: dict[str, int]  # documents, tokens and bytes


class Order(NamedTuple):
    """A tokenizer as it is sent to a process: its class by module, since a plug-in's classes cannot be sent."""

    module: str
    file: str | None  # of a plug-in
    knobs: dict[str, Any]
    base: str
    learned: bytes

    def build(self) -> Tokenizer:
        """The tokenizer, ready for use."""
        if self.file is None:
            importlib.import_module(self.module)
        else:
            from zoo import plugins

            plugins.load(Path(self.file))
        tokenizer = Tokenizer.parse(self.knobs).build(Path(self.base))
        tokenizer.load(self.learned)
        return tokenizer


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The smaller of uint16 and uint32 that holds every id."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def encode(tokenizer: Tokenizer, chunk: Chunk) -> Encoded:
    """Tokens of a chunk, after a check that they cover its text byte for byte.

    Raises:
        ConfigError: bytes covered twice or never, ids outside the vocabulary, or validation text that does not come back.
    """
    valid, dtype = chunk.part == "valid", token_dtype(tokenizer.vocab_size)
    texts = [document.text for document in chunk.documents]
    raw = [text.encode("utf-8") for text in texts]
    if valid or not tokenizer.lossless:  # offsets are slow, and where they count bytes they add up by construction
        ids = [] if valid else tokenizer.encode_many(texts)
        spans = [tokenizer.spans(text) for text in texts] if valid else []
        ids = [found for found, _ in spans] or ids
    else:
        lengths = tokenizer.byte_lengths()
        ids, spans = tokenizer.encode_many(texts), []
    pieces, widths, n_bytes, documents = [], [], 0, 0
    for i, found in enumerate(ids):
        if not len(found):
            continue  # a tokenizer that normalises may leave nothing of a document of spaces
        _check_ids(tokenizer, chunk.documents[i], found)
        if valid:
            _check(tokenizer, chunk.documents[i], found, int(spans[i][1].sum()), len(raw[i]))
            widths += [np.zeros(1, np.uint32), spans[i][1].astype(np.uint32)]
        elif tokenizer.lossless:
            _check(tokenizer, chunk.documents[i], None, int(lengths[found].sum()), len(raw[i]))
        pieces += [np.array([tokenizer.bos], dtype), found.astype(dtype)]
        documents, n_bytes = documents + 1, n_bytes + len(raw[i])
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype)
    kept = b"" if valid else marks(raw)[0].tobytes()
    covered = np.concatenate(widths).tobytes() if widths else b""
    return Encoded(tokens.tobytes(), covered, kept, {"documents": documents, "tokens": len(tokens), "bytes": n_bytes})


def _check_ids(tokenizer: Tokenizer, document: Document, ids: np.ndarray) -> None:
    if int(ids.max()) >= tokenizer.vocab_size or int(ids.min()) < 0:
        worst = int(ids.max()) if int(ids.min()) >= 0 else int(ids.min())
        reason = f"gives id {worst:,} for {document.name}, but its vocabulary has {tokenizer.vocab_size:,} ids"
        raise ConfigError(reason, "tokenizer", tokenizer.kind)


def _check(tokenizer: Tokenizer, document: Document, ids: np.ndarray | None, covered: int, n_bytes: int) -> None:
    """Bits per byte stand on this: every byte of the text is covered once."""
    if covered != n_bytes:
        raise ConfigError(
            f"its tokens cover {covered:,} bytes of {document.name}, which has {n_bytes:,}; bits per byte would be wrong",
            "tokenizer",
            tokenizer.kind,
        )
    if ids is not None and tokenizer.lossless and tokenizer.decode(ids) != document.text:
        raise ConfigError(f"does not give back {document.name} as it was", "tokenizer", tokenizer.kind)


def main() -> None:
    """Read an Order and then Chunks from stdin, answer each on stdout, until stdin ends with the process that asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, whose end closes the pipe
    asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the answers
    try:
        tokenizer = pickle.load(asked).build()
        while True:
            chunk = pickle.load(asked)
            try:
                answer: Any = encode(tokenizer, chunk)
            except ConfigError as fault:
                answer = fault
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
    except (EOFError, BrokenPipeError):
        os._exit(0)  # nobody is left to tell; buffers cannot be flushed into a pipe that is gone

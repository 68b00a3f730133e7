"""The slots of data: where text comes from and how it becomes tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.core.part import ConfigError, Part


class Unfinished(ConfigError):
    """Reading stopped for a reason that may pass, as a server that does not answer: what was prepared is kept."""


class Document(NamedTuple):
    """One text with a name that is stable over machines (for messages and for the split)."""

    name: str
    text: str
    group: int = 0  # which of the sources of a mixture it comes from


class Source(Part, slot="source"):
    """Where text comes from. ``base`` is the folder that relative paths are relative to (the recipe's)."""

    holds_tokens = False  # whether it has ``tokens(part)`` instead of documents

    def __init__(self, config: Source.Config, base: Path) -> None:
        self.config, self.base = config, base

    def split(self) -> tuple[Iterator[Document], Iterator[Document]]:
        """Training and validation documents, disjoint, in an order that is stable over machines."""
        raise NotImplementedError

    def stream(self, start: int = 0, mark: Any = None) -> Iterator[tuple[str, Document]]:
        """All documents in one pass, each with its part ("train" or "valid"), from document number ``start`` on.

        Args:
            start: how many documents to leave out.
            mark: what ``mark(start)`` said in an earlier process, or None.
        """
        train, valid = self.split()
        parts = chain((("train", d) for d in train), (("valid", d) for d in valid))
        return islice(parts, start, None)

    def mark(self, start: int) -> Any:
        """What helps ``stream`` to begin at ``start`` without reading all that comes before; something JSON can hold."""
        return None

    @property
    def weights(self) -> tuple[float, ...]:
        """The share of training windows that each group of documents is to have."""
        return (1.0,)

    def size(self) -> int | None:
        """About how many bytes of text there are, where that is known."""
        return None

    def fingerprint(self) -> str:
        """A hash of the content that ``split`` yields, cheap enough to ask before every run."""
        raise NotImplementedError

    def facts(self) -> dict[str, str]:
        """What must stand beside every figure made with this text (e.g. the Python version)."""
        return {}


class Tokenizer(Part, slot="tokenizer"):
    """Text to ids and back. Ids are 0 ... vocab_size - 1; ``bos`` starts every document and covers no bytes.

    ``lossless``, settled by ``load``: whether decode(encode(text)) == text for every text. ``train`` sees training
    documents only, and returns bytes (cached by content) from which ``load`` makes the tokenizer usable; kinds with nothing
    to train return b"". ``learned`` keeps those bytes once loaded: with the knobs they are the whole tokenizer.
    """

    lossless: bool = True
    learned: bytes = b""

    def __init__(self, config: Tokenizer.Config, base: Path) -> None:
        self.config, self.base = config, base

    def origin(self) -> str:
        """A hash of all that ``train`` depends on beside the documents: the knobs and the content of files they name."""
        return hashlib.sha256(self.config.model_dump_json().encode()).hexdigest()

    def train(self, documents: Iterable[Document]) -> bytes:
        """Learn from training text; the result is what the cache keeps."""
        return b""

    def load(self, learned: bytes) -> None:
        """Become usable with what ``train`` returned, and keep it as ``learned``."""
        self.learned = learned

    def fingerprint(self) -> str:
        """A hash of all that decides its ids, once loaded."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        raise NotImplementedError

    @property
    def bos(self) -> int:
        raise NotImplementedError

    def encode(self, text: str) -> np.ndarray:
        """ids (T,) int32 of one document, without bos."""
        raise NotImplementedError

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``encode`` of several documents."""
        return [self.encode(text) for text in texts]

    @property
    def unknown(self) -> int | None:
        """The id that stands for text the vocabulary has no token for; None: there is no such text."""
        return None

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are no UTF-8 come out as U+FFFD, special tokens as nothing."""
        raise NotImplementedError

    def byte_lengths(self) -> np.ndarray:
        """(vocab_size,) int32: raw UTF-8 bytes that each id stands for; special tokens 0.

        Where ``lossless`` is False an id covers now more and now fewer bytes of the raw text: ask ``spans``.
        """
        raise NotImplementedError

    def bytes_of(self, ids: np.ndarray) -> np.ndarray:
        """(N,) int: bytes that each id of a stream (N,) covers, where there is no raw text but only what the ids spell."""
        return self.byte_lengths()[ids]

    def spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """ids (T,) of one document, and the raw UTF-8 bytes (T,) that each of them covers in it, all bytes covered once."""
        ids = self.encode(text)
        return ids, self.byte_lengths()[ids]

"""Tokenizer `char`: one id for each character of the training text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from zoo.core.part import ConfigError
from zoo.data.slots import Document
from zoo.data.table import Bytewise


class Characters(Bytewise, kind="char"):
    """One id for each character of the training text, in the order of Unicode, and a bos behind them.

    There is nothing to fall back on: a character that the training text does not have is refused by name, so that a text that
    is encoded comes back exactly and every byte of it is counted. Nats per token are nats per character.

    Source: github.com/karpathy/nanoGPT, data/shakespeare_char (65 characters; those of its validation text are among them).
    """

    def train(self, documents: Iterable[Document]) -> bytes:
        found = sorted({character for document in documents for character in set(document.text)})
        if not found:
            raise ConfigError("has no characters to learn: the training text is empty", "kind", "char")
        return "".join(found).encode("utf-8")

    def load(self, learned: bytes) -> None:
        self.learned = learned
        self.characters = learned.decode("utf-8")
        self.points = points(self.characters)  # (V - 1,), rising
        self.pieces = [*(c.encode("utf-8") for c in self.characters), b""]

    def fingerprint(self) -> str:
        return hashlib.sha256(b"char " + self.learned).hexdigest()

    @property
    def bos(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> np.ndarray:
        """Raises ConfigError for a character that the training text does not have."""
        wanted = points(text)
        ids = np.minimum(np.searchsorted(self.points, wanted), len(self.points) - 1)
        strange = np.flatnonzero(self.points[ids] != wanted)
        if len(strange):
            at = int(strange[0])
            reason = (
                f"knows no {text[at]!r} (character {at:,} of a text): the training text has none; kind byte knows all"
            )
            raise ConfigError(reason, "kind", "char")
        return ids.astype(np.int32)


def points(text: str) -> np.ndarray:
    """The code point of each character, (characters,) uint32."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)

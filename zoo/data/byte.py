"""Tokenizer `byte`: the text's own bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zoo.data.table import Bytewise

BOS = 256


class Bytes(Bytewise, kind="byte"):
    """One id for each of the 256 bytes, and a bos: nothing to train, and nats per token are nats per byte.

    Source: ByT5, arXiv:2105.13626, whose special tokens come first instead of last.
    """

    def __init__(self, config: Bytes.Config, base: Path) -> None:
        super().__init__(config, base)
        self.pieces = [bytes([i]) for i in range(256)] + [b""]

    def fingerprint(self) -> str:
        return "byte-257"

    @property
    def bos(self) -> int:
        return BOS

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

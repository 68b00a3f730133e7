"""Prepares a text in a process of its own, for tests that kill it: FOLDER CACHE WORKERS."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from zoo.data import encode
from zoo.data.prepare import prepare
from zoo.data.slots import Source, Tokenizer


class Wanted(NamedTuple):
    """A [data] table; zoo.recipe, which has the real one, would bring torch along."""

    source: Source.Config
    tokenizer: Tokenizer.Config
    train_bytes: int | None = None
    valid_bytes: int | None = None
    duplicates: str = "removed"


def main(folder: str, cache: str, workers: str) -> None:
    encode.CHUNK, encode.Encoding.every = 4000, 0.0
    source = Source.parse({"kind": "text", "files": ["*.txt"], "split": "documents", "separator": "@"})
    print("begins", flush=True)
    found = prepare(Wanted(source, Tokenizer.parse("byte")), Path(folder), Path(cache), None, int(workers))
    print(found.fingerprint, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

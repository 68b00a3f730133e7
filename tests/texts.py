"""Text in a folder, and [data] tables on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from zoo.data.slots import Document, Source, Tokenizer
from zoo.recipe import DataConfig

TOOLS = "".join(f"def tool_{i}(x):\n    y = x + {i}\n    print(y, 'tool {i}')\n    return y * {i}\n" for i in range(40))


def texts(documents: Iterator[Document]) -> list[str]:
    return [d.text for d in documents]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))


def data(tokenizer: object = "byte", **knobs: object) -> DataConfig:
    source = {"kind": "text", "files": ["train.txt"], "valid_files": ["valid.txt"], "separator": "@"}
    more = {"duplicates": "kept", **knobs}
    return DataConfig(source=Source.parse(source), tokenizer=Tokenizer.parse(tokenizer), **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(
        tmp_path / "train.txt", "@".join(f"Document {i} has größe {i * i} \u2581.\n" * (1 + i % 4) for i in range(60))
    )
    write(
        tmp_path / "valid.txt",
        "@".join(f"Other text {i} of größe {i}.\n" for i in range(20)) + "@Document 0 has größe 0 \u2581.\n",
    )
    return tmp_path

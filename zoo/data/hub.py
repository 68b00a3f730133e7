"""Source `hf`: a dataset of the Hugging Face hub, or local files, through the `datasets` library."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from zoo.core.part import ConfigError
from zoo.data.slots import Document, Source


class HubSource(Source, kind="hf"):
    """A dataset by hub name, streamed; or a builder ("parquet", "json", "text") over local ``files``.

    A document goes to validation when the hash of its text says so, so the split needs no second pass and is the same on
    every machine. Cap a large stream with ``data.train_bytes`` and ``data.valid_bytes``.

    Source: the datasets library, huggingface/datasets.
    """

    class Config(Source.Config):
        name: str  # hub name, or a builder's name beside `files`
        config: str | None = None
        split: str = "train"
        column: str = "text"
        files: tuple[str, ...] = ()  # local paths or globs, relative to the recipe
        revision: str | None = None
        valid_share: float = Field(0.01, gt=0, lt=1)

    def split(self) -> tuple[Iterator[Document], Iterator[Document]]:
        return self._documents(validation=False), self._documents(validation=True)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        for path in self._files():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def facts(self) -> dict[str, str]:
        return {"corpus": "/".join(filter(None, (self.config.name, self.config.config, self.config.split)))}

    def _files(self) -> list[Path]:
        found: list[Path] = []
        for pattern in self.config.files:
            matches = sorted(glob.glob(str(self.base / pattern), recursive=True))
            if not matches:
                raise ConfigError("no such file", "files", pattern)
            found += map(Path, matches)
        return found

    def _documents(self, validation: bool) -> Iterator[Document]:
        for index, text in enumerate(self._texts()):
            bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
            if (bucket < self.config.valid_share) is validation and text:
                yield Document(f"{self.config.name}[{index}]", text)

    def _texts(self) -> Iterator[str]:
        from datasets import load_dataset

        cfg, files = self.config, [str(path) for path in self._files()]
        try:
            rows = load_dataset(
                cfg.name,
                cfg.config,
                split=cfg.split,
                data_files=files or None,
                revision=cfg.revision,
                streaming=True,
            )
        except (OSError, ValueError) as fault:
            raise ConfigError(f"cannot be opened: {fault}", "name", cfg.name) from None
        for row in rows:
            if cfg.column not in row:
                raise ConfigError(f"no such column; there are: {', '.join(row)}", "column", cfg.column)
            yield row[cfg.column]

"""Source `text`: files of your own."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from zoo.core.part import ConfigError
from zoo.data.slots import Document, Source


class TextFiles(Source, kind="text"):
    """Text files of your own, by path or glob; every byte of them counts.

    Validation is ``valid_files`` where they are given. Otherwise ``split`` cuts it off: "position" takes the last
    ``valid_share`` of the characters of all files in order (nanoGPT's rule for tinyshakespeare, int(n * 0.9)), "documents"
    takes each document whose content's hash falls below ``valid_share``.

    Source: the split by position is that of github.com/karpathy/nanoGPT, data/shakespeare_char.
    """

    class Config(Source.Config):
        files: tuple[str, ...] = Field(min_length=1, description="paths or globs, relative to the recipe's folder")
        valid_files: tuple[str, ...] = ()
        split: Literal["position", "documents"] = "position"
        valid_share: float = Field(0.1, gt=0, lt=1)
        found_at: str | None = Field(None, description="where the files can be had, which is said when one is missing")
        separator: str | None = Field(
            None,
            description="regular expression at which files are cut into documents; what it matches is dropped, "
            "so write a lookahead, (?=...), to keep it. None: one document per file",
        )

        @field_validator("separator")
        @classmethod
        def _is_regular_expression(cls, value: str | None) -> str | None:
            try:
                re.compile(value or "")
            except re.error as fault:
                raise ValueError(f"is no regular expression: {fault}") from None
            return value

    config: Config
    _digest: str | None = None

    def split(self) -> tuple[Iterator[Document], Iterator[Document]]:
        cfg = self.config
        train = self._files("files")
        if cfg.valid_files:
            valid = self._files("valid_files")
            if both := sorted({p.resolve() for p in train} & {p.resolve() for p in valid}):
                raise ConfigError(f"{both[0]} is training text too", "valid_files", cfg.valid_files)
            return self._documents(train, "files"), self._documents(valid, "valid_files")
        if cfg.split == "position":
            return self._by_position(train)
        return (
            (d for d in self._documents(train, "files") if _share(d.text) >= cfg.valid_share),
            (d for d in self._documents(train, "files") if _share(d.text) < cfg.valid_share),
        )

    def fingerprint(self) -> str:
        if self._digest is None:
            digest = hashlib.sha256(self.config.model_dump_json(exclude={"files", "valid_files", "found_at"}).encode())
            for knob in ("files", "valid_files"):
                digest.update(knob.encode())
                for path in self._files(knob):
                    with path.open("rb") as file:
                        digest.update(hashlib.file_digest(file, "sha256").digest())
            self._digest = digest.hexdigest()
        return self._digest

    def facts(self) -> dict[str, str]:
        return {"corpus": self.fingerprint()[:12]}

    def size(self) -> int:
        return sum(path.stat().st_size for path in self._files("files"))

    def _files(self, knob: str) -> list[Path]:
        """The files that a knob names, in its order, those of one glob sorted, each once."""
        found: dict[Path, None] = {}
        for i, pattern in enumerate(getattr(self.config, knob)):
            where = Path(pattern).expanduser()
            names = (
                [str(where)]
                if (self.base / where).is_file()
                else sorted(glob.glob(str(where), root_dir=self.base, recursive=True))
            )
            files = [self.base / name for name in names if (self.base / name).is_file()]
            if not files:
                known = f"; it can be had from {self.config.found_at}" if self.config.found_at else ""
                raise ConfigError(f"no such file ({self.base / where}){known}", f"{knob}[{i}]", pattern)
            found.update(dict.fromkeys(files))
        return list(found)

    def _documents(self, paths: list[Path], knob: str) -> Iterator[Document]:
        for path in paths:
            yield from self._cut(path.name, self._text(path, knob))

    def _cut(self, name: str, text: str) -> Iterator[Document]:
        if self.config.separator is None:
            yield Document(name, text)
            return
        pieces = _split(re.compile(self.config.separator, re.MULTILINE), text)
        yield from (Document(f"{name}[{i}]", piece) for i, piece in enumerate(pieces))

    def _by_position(self, paths: list[Path]) -> tuple[Iterator[Document], Iterator[Document]]:
        texts = [(path.name, self._text(path, "files")) for path in paths]
        n_train = int(sum(len(text) for _, text in texts) * (1.0 - self.config.valid_share))
        parts: tuple[list[Document], list[Document]] = ([], [])
        for name, text in texts:
            for part, piece in zip(parts, (text[:n_train], text[n_train:]), strict=True):
                part.extend(self._cut(name, piece) if piece else ())
            n_train = max(0, n_train - len(text))
        return iter(parts[0]), iter(parts[1])

    def _text(self, path: Path, knob: str) -> str:
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as fault:
            byte = f"byte 0x{fault.object[fault.start]:02x} at offset {fault.start}"
            raise ConfigError(f"is not UTF-8: {byte}", knob, str(path)) from None
        except OSError as fault:
            raise ConfigError(f"cannot be read: {fault.strerror}", knob, str(path)) from None
        if not text:
            raise ConfigError("is empty", knob, str(path))
        return text


def _split(separator: re.Pattern[str], text: str) -> Iterator[str]:
    """What stands between matches, empty pieces left out."""
    at = 0
    for match in separator.finditer(text):
        if match.start() > at:
            yield text[at : match.start()]
        at = match.end()
    if at < len(text):
        yield text[at:]


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64

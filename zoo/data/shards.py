"""Source `shards`: text that others have already turned into tokens."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from zoo.core.part import ConfigError
from zoo.data.digests import digest_of
from zoo.data.slots import Document, Source, Tokenizer

MAGIC, VERSION = 20240520, 1
HEADER = 256  # int32: magic, version, number of tokens, and zeros
BLOCK = 2**22  # tokens looked at together


class TokenShards(Source, kind="shards"):
    """Files of uint16 tokens behind a header of 256 int32, as the FineWeb speedruns share them; used where they lie.

    ``data.tokenizer`` names the tokenizer that made them. The raw text is not in them: where that tokenizer changes text,
    bytes are those of the text that the tokens spell, and every table says so.

    Source: github.com/KellerJordan/modded-nanogpt and github.com/openai/parameter-golf, data/.
    """

    class Config(Source.Config):
        train: tuple[str, ...] = Field(min_length=1, description="paths or globs, relative to the recipe's folder")
        valid: tuple[str, ...] = Field(min_length=1)

    config: Config
    holds_tokens = True

    def tokens(self, part: str) -> Joined:
        return Joined([open_shard(path, part) for path in self._files(part)])

    def split(self) -> tuple[Iterator[Document], Iterator[Document]]:
        raise ConfigError("holds tokens and no text", "train", self.config.train)

    def fingerprint(self) -> str:
        found = {part: self._files(part) for part in ("train", "valid")}
        if both := sorted({p.resolve() for p in found["train"]} & {p.resolve() for p in found["valid"]}):
            raise ConfigError(f"{both[0]} is training text too", "valid", self.config.valid)
        for part, paths in found.items():
            for path in paths:
                open_shard(path, part)
        told = {part: [digest_of(path) for path in paths] for part, paths in found.items()}
        return hashlib.sha256(json.dumps(["shards", told]).encode()).hexdigest()

    def facts(self) -> dict[str, str]:
        return {"corpus": self.fingerprint()[:12]}

    def _files(self, part: str) -> list[Path]:
        """The files that a knob names, in its order, those of one glob sorted."""
        found: dict[Path, None] = {}
        for i, pattern in enumerate(getattr(self.config, part)):
            where = self.base / Path(pattern).expanduser()
            matches = [Path(name) for name in sorted(glob.glob(str(where)))]
            if not matches:
                raise ConfigError(f"no such file ({where})", f"{part}[{i}]", pattern)
            found.update(dict.fromkeys(matches))
        return list(found)


def open_shard(path: Path, part: str) -> np.ndarray:
    """The tokens of one file, (N,) uint16, memory-mapped.

    Raises:
        ConfigError: a file that is no shard, of another version, or not as long as its header says.
    """
    try:
        size = path.stat().st_size
        header = np.fromfile(path, "<i4", HEADER)
    except OSError as fault:
        raise ConfigError(f"cannot be read: {fault.strerror}", part, str(path)) from None
    if len(header) < HEADER or header[0] != MAGIC:
        raise ConfigError(f"is no token shard: it does not begin with {MAGIC}", part, str(path))
    if header[1] != VERSION:
        raise ConfigError(f"is a token shard of version {header[1]}; only {VERSION} is known", part, str(path))
    expected = 4 * HEADER + 2 * int(header[2])
    if size != expected or header[2] < 1:
        reason = f"has {size:,} bytes, but its header speaks of {header[2]:,} tokens, which take {expected:,}"
        raise ConfigError(reason, part, str(path))
    return np.memmap(path, "<u2", mode="r", offset=4 * HEADER)


class Joined:
    """Several arrays seen as one (N,), without copying; slices and integer indices of any shape give arrays.

    Args:
        parts: (n,) each, of one dtype.
        length: how much of them all is seen.
    """

    def __init__(self, parts: Sequence[np.ndarray], length: int | None = None) -> None:
        self.parts, self.dtype = list(parts), parts[0].dtype
        self.edges = np.cumsum([0, *map(len, parts)])
        self.length = int(self.edges[-1]) if length is None else length

    def __len__(self) -> int:
        return self.length

    @property
    def shape(self) -> tuple[int]:
        return (self.length,)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, step = index.indices(self.length)
            return (
                self._between(start, max(start, stop))[::step] if step > 0 else self._at(np.arange(start, stop, step))
            )
        return self._at(np.asarray(index))[()]

    def _between(self, start: int, stop: int) -> np.ndarray:
        cut = [
            part[max(0, start - edge) : max(0, stop - edge)] for part, edge in zip(self.parts, self.edges, strict=False)
        ]
        cut = [piece for piece in cut if len(piece)]
        return np.concatenate(cut) if cut else np.zeros(0, self.dtype)

    def _at(self, index: np.ndarray) -> np.ndarray:
        index = np.where(index < 0, index + self.length, index)
        if index.size and (index.min() < 0 or index.max() >= self.length):
            raise IndexError(f"index out of range for {self.length} tokens")
        found = np.empty(index.shape, self.dtype)
        owner = np.searchsorted(self.edges, index, side="right") - 1
        for i in np.unique(owner):
            found[owner == i] = self.parts[i][index[owner == i] - self.edges[i]]
        return found


class Measured:
    """What is found out about shards once: that their ids exist, their bytes, and where the caps cut them.

    Args:
        source: the shards.
        tokenizer: ready for use.
        limits: on the bytes of training and validation text; documents are taken whole.
    """

    def __init__(self, source: TokenShards, tokenizer: Tokenizer, limits: tuple[int | None, int | None]) -> None:
        self.source, self.tokenizer, self.limits = source, tokenizer, limits

    def __call__(self, folder: Path) -> None:
        told: dict[str, Any] = {"corpus": self.source.fingerprint()}
        for part, limit in zip(("train", "valid"), self.limits, strict=True):
            stream = self.source.tokens(part)
            told[part] = self._measure(stream, part, limit)
            if part == "valid":
                told["valid_text"] = self._write(stream[: told[part]["tokens"]], folder)
        (folder / "counts.json").write_text(json.dumps(told))

    def _measure(self, stream: Joined, part: str, limit: int | None) -> dict[str, int]:
        """Documents, tokens and bytes up to the cap."""
        bos, n_bytes, documents = self.tokenizer.bos, 0, 0
        ends = [0, 0, 0]  # documents, tokens and bytes at the last document's end
        for start in range(0, len(stream), BLOCK):
            ids = stream[start : start + BLOCK]
            self._check(ids, part)
            total = n_bytes + np.cumsum(self._widths(stream, start, ids), dtype=np.int64)
            starts = np.flatnonzero(ids == bos)
            before = np.where(starts > 0, total[starts - 1], n_bytes)  # bytes ahead of each document
            fits = np.ones(len(starts), bool) if limit is None else before <= limit
            if fits.any():
                last = int(np.flatnonzero(fits)[-1])
                ends = [documents + last, start + int(starts[last]), int(before[last])]
            if not fits.all():
                break
            documents, n_bytes = documents + len(starts), int(total[-1])
        else:
            if limit is None or n_bytes <= limit:
                ends = [documents, len(stream), n_bytes]
        if ends[1] < 2:
            reason = "does not even hold the first document" if limit else f"has no text behind a bos ({bos})"
            raise ConfigError(
                reason, f"{part}_bytes" if limit else f"source.{part}", limit or getattr(self.source.config, part)
            )
        return dict(zip(("documents", "tokens", "bytes"), ends, strict=True))

    def _check(self, ids: np.ndarray, part: str) -> None:
        if int(ids.max()) >= self.tokenizer.vocab_size:
            reason = f"has {self.tokenizer.vocab_size:,} ids, but the {part} shards hold id {int(ids.max()):,}"
            raise ConfigError(f"{reason}: they were made by another tokenizer", "tokenizer", self.tokenizer.kind)

    def _widths(self, stream: Joined, start: int, ids: np.ndarray) -> np.ndarray:
        """The bytes of each token; the one before the block decides about a space at its beginning."""
        if not start:
            return self.tokenizer.bytes_of(ids)
        return self.tokenizer.bytes_of(np.concatenate([stream[start - 1 : start], ids]))[1:]

    def _write(self, ids: np.ndarray, folder: Path) -> str:
        ids.tofile(folder / "valid.tokens")
        self.tokenizer.bytes_of(ids).astype(np.uint32).tofile(folder / "valid.spans")
        digest = hashlib.sha256()
        for document in spelt(ids, self.tokenizer):
            digest.update(hashlib.sha256(document.text.encode()).digest())
        return digest.hexdigest()


def spelt(stream: Any, tokenizer: Tokenizer) -> Iterator[Document]:
    """The documents that a token stream spells, one block of it in memory at a time."""
    rest, number = np.zeros(0, np.int64), 0
    for start in range(0, len(stream), BLOCK):
        ids = np.concatenate([rest, np.asarray(stream[start : start + BLOCK], np.int64)])
        edges = np.flatnonzero(ids == tokenizer.bos)
        whole, rest = (ids[: edges[-1]], ids[edges[-1] :]) if len(edges) else (ids[:0], ids)
        for piece in np.split(whole, edges[:-1]) if len(edges) else ():
            if len(piece):
                yield Document(f"document {number}", tokenizer.decode(piece.tolist()))
                number += 1
    if len(rest):
        yield Document(f"document {number}", tokenizer.decode(rest.tolist()))

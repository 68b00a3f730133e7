"""From a [data] table to token streams on disk, with every byte of the text accounted for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from zoo.core.part import ConfigError
from zoo.data.cache import default_cache, entry
from zoo.data.slots import Document, Source, Tokenizer
from zoo.data.yardstick import xz_facts

FORMAT = "2"  # change it when files of the cache change their meaning

Progress = Callable[[str, float], None]  # what is being done, and the share of it that is done (0 where unknown)
T = TypeVar("T")


class Wanted(Protocol):
    """The [data] table, as far as it matters here (zoo.recipe.DataConfig)."""

    @property
    def source(self) -> Source.Config: ...
    @property
    def tokenizer(self) -> Tokenizer.Config: ...
    @property
    def train_bytes(self) -> int | None: ...
    @property
    def valid_bytes(self) -> int | None: ...


@dataclass(frozen=True)
class Prepared:
    """Text as token streams: each document is bos and then its ids, documents stand in order."""

    train: np.ndarray  # (N,) uint16 or uint32, memory-mapped
    valid: np.ndarray  # likewise
    valid_spans: np.ndarray  # (N,) uint32, memory-mapped: the raw bytes that each validation token covers; bos 0
    byte_lengths: np.ndarray  # (V,) int32: bytes that each id stands for, exact where tokenizer.lossless
    tokenizer: Tokenizer
    source: Source
    train_bytes: int  # raw UTF-8 bytes of the training text, equal to what its tokens cover
    valid_bytes: int  # likewise
    valid_text: str  # hash of the validation documents as raw text, whatever the tokenizer
    shared_bytes: int  # of valid_bytes, those in documents that are training documents too, word for word
    fingerprint: str  # hash of both streams, the bytes they cover, and the tokenizer
    facts: dict[str, str]  # what must stand beside every figure made with this text
    limits: tuple[int | None, int | None]  # the caps on training and validation bytes

    def documents(self, part: str) -> Iterator[Document]:
        """The documents behind a stream, ``part`` "train" or "valid", read from the source again."""
        index = ("train", "valid").index(part)
        return capped(self.source.split()[index], self.limits[index])


def prepare(config: Wanted, base: Path, cache: Path | None = None, progress: Progress | None = None) -> Prepared:
    """Read the text, train the tokenizer, encode, and keep all of it in the cache.

    The cache knows its entries by the content of the text, the tokenizer and the options; it is checked before use, and safe
    for processes that prepare the same text at once.

    Args:
        config: the [data] table.
        base: the folder that relative paths are relative to (the recipe's).
        cache: None: ``default_cache()``.
        progress: called now and then with what is being done.

    Raises:
        ConfigError: text that is missing, empty or no UTF-8, a tokenizer that does not cover every byte of the text exactly
            once, or a cache that cannot be written. Its path is relative to [data].
    """
    say = progress or (lambda what, share: None)
    cache = cache or default_cache()
    source = _under("source", lambda: config.source.build(base))
    tokenizer = _under("tokenizer", lambda: config.tokenizer.build(base))
    corpus = _under("source", source.fingerprint)
    origin = _under("tokenizer", tokenizer.origin)
    limits = (config.train_bytes, config.valid_bytes)
    work = _Work(source, tokenizer, limits, say)
    try:
        learned = entry(cache, f"tokenizer-{_key(corpus, limits[0], origin)}", work.train_tokenizer)
        _under("tokenizer", lambda: tokenizer.load((learned / "learned").read_bytes()))
        folder = entry(cache, f"tokens-{_key(corpus, *limits, tokenizer.fingerprint())}", work.encode)
    except _SourceFault as fault:
        raise fault.args[0] from None
    prepared = _open(folder, source, tokenizer, limits)
    prepared.facts.update(xz_facts(prepared, cache))
    return prepared


def capped(documents: Iterator[Document], limit: int | None) -> Iterator[Document]:
    """Whole documents in order for as long as they fit into ``limit`` bytes; empty ones left out."""
    total = 0
    for document in documents:
        total += len(document.text.encode("utf-8"))
        if limit is not None and total > limit:
            return
        if document.text:
            yield document


class _Work:
    """The two things that are slow: each fills a folder of the cache."""

    def __init__(self, source: Source, tokenizer: Tokenizer, limits: tuple[int | None, int | None], say: Progress):
        self.source, self.tokenizer, self.limits, self.say = source, tokenizer, limits, say

    def train_tokenizer(self, folder: Path) -> None:
        self.say("training the tokenizer", 0.0)
        documents = _blame_source(capped(_under("source", self.source.split)[0], self.limits[0]))
        (folder / "learned").write_bytes(_under("tokenizer", lambda: self.tokenizer.train(documents)))

    def encode(self, folder: Path) -> None:
        streams = _under("source", self.source.split)
        seen: set[bytes] = set()
        counts: dict[str, dict[str, int | str]] = {}
        for part, documents, limit in zip(("train", "valid"), streams, self.limits, strict=True):
            documents = _blame_source(capped(documents, limit))
            self.say(f"encoding the {part} text", 0.0)
            with (folder / f"{part}.tokens").open("wb") as tokens, (folder / f"{part}.spans").open("wb") as spans:
                writer = _Writer(self.tokenizer, part, tokens, spans)
                for document in documents:
                    writer.add(document, seen)
                    self.say(f"encoding the {part} text", min(1.0, writer.bytes / limit) if limit else 0.0)
            if not writer.documents:
                raise _nothing(part, limit)
            counts[part] = {k: getattr(writer, k) for k in ("documents", "tokens", "bytes", "shared")}
            counts[part]["text"] = writer.text.hexdigest()
        (folder / "train.spans").unlink()  # only scores are counted per byte
        (folder / "counts.json").write_text(json.dumps({"format": FORMAT, **counts}))


class _Writer:
    """Appends documents to a stream on disk and checks that tokens cover them byte for byte."""

    def __init__(self, tokenizer: Tokenizer, part: str, tokens: Any, spans: Any) -> None:
        self.tokenizer, self.part, self.files = tokenizer, part, (tokens, spans)
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.documents = self.tokens = self.bytes = self.shared = 0
        self.text = hashlib.sha256()

    def add(self, document: Document, seen: set[bytes]) -> None:
        """One document; ``seen`` collects training documents, which validation documents are looked up in."""
        raw = document.text.encode("utf-8")
        ids, spans = self.tokenizer.spans(document.text)
        if not len(ids):
            return  # a tokenizer that normalises may leave nothing of a document of spaces
        self._check(document, ids, int(spans.sum()), len(raw))
        for file, head, values, dtype in zip(
            self.files, (self.tokenizer.bos, 0), (ids, spans), (self.dtype, np.uint32), strict=True
        ):
            file.write(np.concatenate([[head], values]).astype(dtype).tobytes())
        digest = hashlib.sha256(raw).digest()
        self.text.update(digest)
        if self.part == "train":
            seen.add(digest)
        elif digest in seen:
            self.shared += len(raw)
        self.documents, self.tokens, self.bytes = (
            self.documents + 1,
            self.tokens + len(ids) + 1,
            self.bytes + len(raw),
        )

    def _check(self, document: Document, ids: np.ndarray, covered: int, n_bytes: int) -> None:
        """Bits per byte stand on this: every byte of the text is covered once."""
        if covered != n_bytes:
            raise ConfigError(
                f"its tokens cover {covered:,} bytes of {document.name}, which has {n_bytes:,}; bits per byte would be wrong",
                "tokenizer",
                self.tokenizer.kind,
            )
        if self.part == "valid" and self.tokenizer.lossless and self.tokenizer.decode(ids) != document.text:
            raise ConfigError(f"does not give back {document.name} as it was", "tokenizer", self.tokenizer.kind)


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The smaller of uint16 and uint32 that holds every id."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def _nothing(part: str, limit: int | None) -> ConfigError:
    if limit is None:
        return ConfigError(f"leaves no {part} text: give it more text, or another share for validation", "source")
    reason = (
        "does not even hold the first document (documents are taken whole): raise it, or cut the text into documents"
    )
    return ConfigError(reason, f"{part}_bytes", limit)


def _open(folder: Path, source: Source, tokenizer: Tokenizer, limits: tuple[int | None, int | None]) -> Prepared:
    dtype = token_dtype(tokenizer.vocab_size)
    counts = json.loads((folder / "counts.json").read_text())
    manifest = json.loads((folder / "files.json").read_text())
    print_of = {**manifest, "tokenizer": tokenizer.fingerprint()}
    fingerprint = hashlib.sha256(json.dumps(print_of, sort_keys=True).encode()).hexdigest()
    facts = {
        "source": str(source.kind),
        **source.facts(),
        "tokenizer": str(tokenizer.kind),
        "vocab_size": str(tokenizer.vocab_size),
        "bytes_counted": "by id" if tokenizer.lossless else "by offset in the raw text: this tokenizer changes text",
        "data": fingerprint[:12],
    }
    for part in ("train", "valid"):
        facts |= {f"{part}_{what}": str(counts[part][what]) for what in ("documents", "bytes", "tokens")}
    return Prepared(
        train=np.memmap(folder / "train.tokens", dtype, mode="r"),
        valid=np.memmap(folder / "valid.tokens", dtype, mode="r"),
        valid_spans=np.memmap(folder / "valid.spans", np.uint32, mode="r"),
        byte_lengths=tokenizer.byte_lengths(),
        tokenizer=tokenizer,
        source=source,
        train_bytes=counts["train"]["bytes"],
        valid_bytes=counts["valid"]["bytes"],
        valid_text=counts["valid"]["text"],
        shared_bytes=counts["valid"]["shared"],
        fingerprint=fingerprint,
        facts=facts,
        limits=limits,
    )


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()[:32]


def _under(knob: str, make: Callable[[], T]) -> T:
    """The result of ``make``; a fault in it comes out with the knob's name in front."""
    try:
        return make()
    except ConfigError as fault:
        raise fault.under(knob) from None


class _SourceFault(Exception):
    """A ConfigError of the source, met while somebody else was reading from it."""


def _blame_source(documents: Iterator[Document]) -> Iterator[Document]:
    try:
        yield from documents
    except ConfigError as fault:
        raise _SourceFault(fault.under("source")) from None

"""From a [data] table to token streams on disk, with every byte of the text accounted for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from zoo.core.part import ConfigError
from zoo.data.cache import default_cache, entry
from zoo.data.encode import Encoding, blamed
from zoo.data.room import Limits, Room
from zoo.data.shards import Joined, Measured, TokenShards, spelt
from zoo.data.slots import Document, Source, Tokenizer
from zoo.data.windows import Group
from zoo.data.worker import token_dtype
from zoo.data.yardstick import xz_facts

FORMAT = "3"  # change it when files of the cache change their meaning

Progress = Callable[[str, float, str], None]  # what is being done, the share of it that is done (0: unknown), figures
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
    @property
    def duplicates(self) -> str: ...


@dataclass(frozen=True)
class Prepared:
    """Text as token streams: each document is bos and then its ids, documents stand in order."""

    train: np.ndarray | Joined  # (N,) uint16 or uint32, memory-mapped
    valid: np.ndarray  # likewise
    valid_spans: np.ndarray  # (N,) uint32, memory-mapped: the raw bytes that each validation token covers; bos 0
    byte_lengths: np.ndarray  # (V,) int32: bytes that each id stands for, exact where tokenizer.lossless
    tokenizer: Tokenizer
    source: Source
    train_bytes: int  # raw UTF-8 bytes of the training text, equal to what its tokens cover
    valid_bytes: int  # likewise
    valid_text: str  # hash of the validation documents as raw text, whatever the tokenizer
    shared_bytes: int  # of validation documents that (nearly) stand in the training text; removed unless told otherwise
    fingerprint: str  # hash of both streams, the bytes they cover, and the tokenizer
    facts: dict[str, str]  # what must stand beside every figure made with this text
    limits: Limits  # the caps on training and validation bytes
    removed: frozenset[int] = frozenset()  # numbers of validation documents that stand in the training text
    groups: tuple[Group, ...] = ()  # of a mixture: each source's stretch of ``train``, and its share of windows

    def documents(self, part: str) -> Iterator[Document]:
        """The documents behind a stream, ``part`` "train" or "valid", read from the source again."""
        if self.source.holds_tokens:
            return spelt(getattr(self, part), self.tokenizer)
        kept = taken(self.source, part, self.limits)
        return kept if part == "train" else (d for i, d in enumerate(kept) if i not in self.removed)


def prepare(
    config: Wanted,
    base: Path,
    cache: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Prepared:
    """Read the text, train the tokenizer, encode, and keep all of it in the cache.

    The cache knows its entries by the content of the text, the tokenizer and the options; it is checked before use, and safe
    for processes that prepare the same text at once. A preparation that was interrupted goes on where it stopped.

    Args:
        config: the [data] table.
        base: the folder that relative paths are relative to (the recipe's).
        cache: None: ``default_cache()``.
        progress: called now and then with what is being done.
        workers: processes that tokenise, this one among them; None: this one, and for much text one for each core.

    Raises:
        Unfinished: the source cannot be read on for now; what was prepared is kept.
        ConfigError: text that is missing, empty or no UTF-8, a tokenizer that does not cover every byte of the text exactly
            once, or a cache that cannot be written. Its path is relative to [data].
    """
    say = progress or (lambda what, share, words: None)
    cache = cache or default_cache()
    source = _under("source", lambda: config.source.build(base))
    tokenizer = _under("tokenizer", lambda: config.tokenizer.build(base))
    corpus = _under("source", source.fingerprint)
    origin = _under("tokenizer", tokenizer.origin)
    limits = (config.train_bytes, config.valid_bytes)

    def wait() -> None:
        say("waiting for another process that prepares the same text", 0.0, "")

    def train_tokenizer(folder: Path) -> None:
        say("training the tokenizer", 0.0, "")
        documents = iter(()) if source.holds_tokens else _set_apart(taken(source, "train", limits))
        (folder / "learned").write_bytes(_under("tokenizer", lambda: _trained(source, tokenizer, documents)))

    def encode(folder: Path) -> None:
        if isinstance(source, TokenShards):
            say("measuring the shards", 0.0, "")
            Measured(source, tokenizer, limits)(folder)
            return
        Encoding(source, tokenizer, learned, limits, config.duplicates, say, workers)(folder)

    try:
        known = entry(cache, f"tokenizer-{_key(corpus, limits[0], origin)}", train_tokenizer, waiting=wait)
        learned = (known / "learned").read_bytes()
        _under("tokenizer", lambda: tokenizer.load(learned))
        key = _key(corpus, *limits, tokenizer.fingerprint(), config.duplicates)
        folder = entry(cache, f"tokens-{key}", encode, resumes=True, waiting=wait)
    except _SourceFault as fault:
        raise fault.args[0] from None
    prepared = _open(folder, source, tokenizer, limits)
    prepared.facts.update(xz_facts(prepared, cache))
    return prepared


def _trained(source: Source, tokenizer: Tokenizer, documents: Iterator[Document]) -> bytes:
    try:
        return tokenizer.train(documents)
    except ConfigError:
        if not source.holds_tokens:
            raise
        reason = "cannot learn from a source that holds tokens: name the tokenizer that made them (a .model, a folder)"
        raise ConfigError(reason) from None


def taken(source: Source, part: str, limits: Limits) -> Iterator[Document]:
    """The documents of one part that a preparation takes, in order."""
    room = Room(limits, source.weights)
    for belongs, document in blamed(source.stream):
        if room.takes(belongs, document) and belongs == part:
            yield document
        if room.full():
            return


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
        "bytes_counted": _how_counted(source, tokenizer),
        "data": fingerprint[:12],
        "shared": "unknown: the source holds tokens" if source.holds_tokens else _shared(counts),
    }
    for part in ("train", "valid"):
        facts |= {f"{part}_{what}": str(counts[part][what]) for what in ("documents", "bytes", "tokens")}
    return Prepared(
        train=_train_stream(folder, source, dtype, counts["train"]["tokens"]),
        valid=np.memmap(folder / "valid.tokens", np.uint16 if source.holds_tokens else dtype, mode="r"),
        valid_spans=np.memmap(folder / "valid.spans", np.uint32, mode="r"),
        byte_lengths=tokenizer.byte_lengths(),
        tokenizer=tokenizer,
        source=source,
        train_bytes=counts["train"]["bytes"],
        valid_bytes=counts["valid"]["bytes"],
        valid_text=counts["valid_text"],
        shared_bytes=counts.get("shared_bytes", 0),
        fingerprint=fingerprint,
        facts=facts,
        limits=limits,
        removed=frozenset(counts.get("removed", ())),
        groups=_groups(counts.get("groups", ()), source.weights),
    )


def _train_stream(folder: Path, source: Source, dtype: type, n_tokens: int) -> np.ndarray | Joined:
    if isinstance(source, TokenShards):
        return Joined(source.tokens("train").parts, n_tokens)
    return np.memmap(folder / "train.tokens", dtype, mode="r")


def _how_counted(source: Source, tokenizer: Tokenizer) -> str:
    if tokenizer.lossless:
        return "by id"
    if source.holds_tokens:
        return "of the text that the tokens spell: this tokenizer changed the raw text, which is not there"
    return "by offset in the raw text: this tokenizer changes text"


def _shared(counts: dict[str, Any]) -> str:
    """What a reader has to know of text on both sides of the split."""
    found, gone = (len(counts["copies"]), len(counts["near_copies"])), bool(counts["removed"])
    if not any(found):
        return "no validation document stands in the training text"
    what = f"{found[0]} copies and {found[1]} near copies of training documents ({counts['shared_bytes']:,} bytes)"
    return f"{what} {'removed from' if gone else 'left in'} the validation text"


def _groups(tokens: Sequence[int], weights: tuple[float, ...]) -> tuple[Group, ...]:
    """Where the tokens of each source of a mixture are; nothing where there is one source."""
    if len(weights) == 1:
        return ()
    ends = np.cumsum(tokens).tolist()
    return tuple(Group(end - n, end, weight) for end, n, weight in zip(ends, tokens, weights, strict=True))


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()[:32]


def _under(knob: str, make: Callable[[], T]) -> T:
    """The result of ``make``; a fault in it comes out with the knob's name in front."""
    try:
        return make()
    except ConfigError as fault:
        raise fault.under(knob) from None


class _SourceFault(Exception):
    """A ConfigError of the source, met while the tokenizer was reading from it."""


def _set_apart(documents: Iterator[Document]) -> Iterator[Document]:
    try:
        yield from documents
    except ConfigError as fault:
        raise _SourceFault(fault) from None

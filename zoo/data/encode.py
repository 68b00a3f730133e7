"""The long part of a preparation: documents to token streams on disk, in a folder that a later process can go on with.

Streams only ever grow, and a journal says how far they are whole: after a kill at any moment the next process cuts them back
to what the journal knows, and asks the source for the first document that is missing. What comes out is the same to the last
byte, however often that happens and however many processes tokenise.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from zoo.core.part import ConfigError
from zoo.data.overlap import find_copies
from zoo.data.pool import Pool
from zoo.data.room import Limits, Room
from zoo.data.slots import Document, Source, Tokenizer
from zoo.data.worker import Chunk, Encoded

CHUNK = 2**20  # bytes of text that are tokenised together
NEAR = 0.8  # of a validation document's stretches in training text: a near copy
TRAIN, MARKS, TEXTS, JOURNAL, COUNTS = "train.tokens", "train.marks", "valid.texts", "journal.json", "counts.json"
STREAMS = (TRAIN, MARKS, TEXTS)

Say = Callable[[str, float, str], None]  # what is being done, the share of it that is done (0 where unknown), figures


def blamed(read: Callable[[], Iterator[tuple[str, Document]]]) -> Iterator[tuple[str, Document]]:
    """What a source gives; a fault of it comes out with the path "source"."""
    try:
        yield from read()
    except ConfigError as fault:
        raise fault.under("source") from None


class State(NamedTuple):
    """How far a preparation is: what the journal holds."""

    documents: int = 0  # of the source, taken or not
    used: dict[str, int] = {}  # see Room
    train: dict[str, int] = {"documents": 0, "tokens": 0, "bytes": 0}
    groups: tuple[int, ...] = ()  # training tokens of each
    sizes: dict[str, int] = dict.fromkeys(STREAMS, 0)
    mark: Any = None  # see Source.mark


class Piece(NamedTuple):
    """What is committed together: training documents for the pool, validation documents for later, and where we are then."""

    train: tuple[Document, ...]
    valid: tuple[Document, ...]
    documents: int
    used: dict[str, int]


class Encoding:
    """One preparation: call it with a folder, in which an earlier one may have been interrupted.

    Args:
        source: of the text.
        tokenizer: ready for use.
        learned: what made it so.
        limits: on the bytes of each part.
        duplicates: whether validation documents that (nearly) stand in the training text are removed, or counted only.
        say: told now and then how it goes.
        workers: see zoo.data.pool.Pool.
    """

    every = 2.0  # seconds between two entries of the journal

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        learned: bytes,
        limits: Limits,
        duplicates: str,
        say: Say,
        workers: int | None,
    ) -> None:
        self.source, self.tokenizer, self.learned, self.limits = source, tokenizer, learned, limits
        self.duplicates, self.say, self.workers = duplicates, say, workers

    def __call__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / COUNTS).exists():
            with Pool(self.tokenizer, self.learned, self.workers) as pool:
                state = self._read_stream(self._resumed(), pool)
                self._finish(state, pool)
        for name in (MARKS, TEXTS, JOURNAL):
            (folder / name).unlink(missing_ok=True)

    def _resumed(self) -> State:
        """What the journal of an interrupted preparation says, with all streams cut back to it."""
        try:
            told = json.loads((self.folder / JOURNAL).read_text(encoding="utf-8"))
            state = State(**{**told, "groups": tuple(told["groups"])})
            for name in STREAMS:
                if (self.folder / name).stat().st_size < state.sizes[name]:
                    raise ValueError(name)
                os.truncate(self.folder / name, state.sizes[name])
        except (OSError, ValueError, TypeError, KeyError):  # none, or a disk that lost what had been written
            for name in STREAMS:
                (self.folder / name).write_bytes(b"")
            return State()
        return state

    def _read_stream(self, state: State, pool: Pool) -> State:
        """Training text to tokens, validation text put aside."""
        pieces: list[Piece] = []
        began, start, written = time.monotonic(), state.train["tokens"], time.monotonic()
        if state.documents:
            self.say(f"going on with an interrupted preparation at document {state.documents:,}", 0.0, "")
        files = {name: (self.folder / name).open("ab") for name in STREAMS}
        try:
            chunks = ((Chunk(piece.train, "train"), _size(piece)) for piece in self._pieces(state, pieces))
            for answer in pool.encoded(chunks):
                state = self._append(state, pieces.pop(0), answer, files)
                if time.monotonic() - written > self.every:
                    self._write_journal(state, files)
                    written = time.monotonic()
                self._tell(state, start, time.monotonic() - began)
        except BaseException:
            self._write_journal(state, files)
            raise
        finally:
            for file in files.values():
                file.close()
        return state

    def _pieces(self, state: State, begun: list[Piece]) -> Iterator[Piece]:
        """The source's documents in pieces of about CHUNK bytes; each is entered in ``begun`` before it is given away."""
        room, number, size = Room(self.limits, self.source.weights, dict(state.used)), state.documents, 0
        train: list[Document] = []
        valid: list[Document] = []

        def piece() -> Piece:
            begun.append(Piece(tuple(train), tuple(valid), number, dict(room.used)))
            train.clear(), valid.clear()
            return begun[-1]

        for part, document in blamed(lambda: self.source.stream(state.documents, state.mark)):
            if train and document.group != train[-1].group:
                yield piece()
                size = 0
            number += 1
            if room.takes(part, document):
                (train if part == "train" else valid).append(document)
                size += len(document.text)
            if size >= CHUNK:
                yield piece()
                size = 0
            if room.full():
                break
        if train or valid:
            yield piece()

    def _append(self, state: State, piece: Piece, answer: Encoded, files: dict[str, BinaryIO]) -> State:
        texts = b"".join(json.dumps([d.name, d.text]).encode() + b"\n" for d in piece.valid)
        sizes = dict(state.sizes)
        for name, data in zip(STREAMS, (answer.tokens, answer.marks, texts), strict=True):
            files[name].write(data)
            sizes[name] += len(data)
        groups = list(state.groups)
        if piece.train:
            groups += [0] * (piece.train[-1].group + 1 - len(groups))
            groups[piece.train[-1].group] += answer.counts["tokens"]
        train = {what: state.train[what] + answer.counts[what] for what in state.train}
        done = {"documents": piece.documents, "used": piece.used, "train": train, "groups": tuple(groups)}
        return state._replace(**done, sizes=sizes)

    def _write_journal(self, state: State, files: dict[str, BinaryIO]) -> None:
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        told = state._replace(mark=self.source.mark(state.documents))._asdict()
        write_aside(self.folder / JOURNAL, json.dumps(told))

    def _tell(self, state: State, start: int, seconds: float) -> None:
        limit, size = self.limits[0], self.source.size()
        goal = min((n for n in (limit, size) if n is not None), default=None)
        share = min(1.0, state.train["bytes"] / goal) if goal else 0.0
        rate = (state.train["tokens"] - start) / seconds if seconds else 0.0
        words = f"{state.train['tokens']:,} tokens  {rate:,.0f} tokens/s"
        if share and rate:
            left = state.train["tokens"] * (1 / share - 1) / rate
            words += f"  {int(left) // 60}:{int(left) % 60:02} left"
        self.say("encoding the train text", share, words)

    def _finish(self, state: State, pool: Pool) -> None:
        """Validation text: what stands in the training text goes, the rest becomes tokens."""
        if not state.train["documents"]:
            raise nothing("train", self.limits[0])
        self.say("encoding the valid text", 0.0, "")
        named = [json.loads(line) for line in (self.folder / TEXTS).read_bytes().splitlines()]
        copies = find_copies([text.encode() for _, text in named], self.folder / MARKS, NEAR)
        gone = {*copies.exact, *copies.near} if self.duplicates == "removed" else set()
        kept = [Document(*item) for i, item in enumerate(named) if i not in gone]
        if named and not kept:
            raise ConfigError("leaves no valid text: all of it stands in the training text too", "source")
        counts = {"documents": 0, "tokens": 0, "bytes": 0}
        with (self.folder / "valid.tokens").open("wb") as tokens, (self.folder / "valid.spans").open("wb") as spans:
            chunks = ((Chunk(documents, "valid"), _length(documents)) for documents in _packets(kept))
            for answer in pool.encoded(chunks):
                tokens.write(answer.tokens)
                spans.write(answer.spans)
                counts = {what: counts[what] + answer.counts[what] for what in counts}
        if not counts["documents"]:
            raise nothing("valid", self.limits[1])
        text = hashlib.sha256(b"".join(hashlib.sha256(d.text.encode()).digest() for d in kept)).hexdigest()
        found = {
            "valid_text": text,
            "copies": list(copies.exact),
            "near_copies": list(copies.near),
            "removed": sorted(gone),
        }
        shared = sum(len(named[i][1].encode()) for i in (*copies.exact, *copies.near))
        told = {"train": state.train, "valid": counts, "groups": state.groups, "shared_bytes": shared, **found}
        write_aside(self.folder / COUNTS, json.dumps(told))


def write_aside(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one, never half of it."""
    aside = path.with_name(f"{path.name}.new")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def _size(piece: Piece) -> int:
    return _length(piece.train)


def _length(documents: tuple[Document, ...]) -> int:
    return sum(len(document.text) for document in documents)


def _packets(documents: list[Document]) -> Iterator[tuple[Document, ...]]:
    """Documents in order, about CHUNK bytes together."""
    packet: list[Document] = []
    for document in documents:
        packet.append(document)
        if _length(tuple(packet)) >= CHUNK:
            yield tuple(packet)
            packet = []
    if packet:
        yield tuple(packet)


def nothing(part: str, limit: int | None) -> ConfigError:
    """There is not one document of a part."""
    if limit is None:
        return ConfigError(f"leaves no {part} text: give it more text, or another share for validation", "source")
    reason = (
        "does not even hold the first document (documents are taken whole): raise it, or cut the text into documents"
    )
    return ConfigError(reason, f"{part}_bytes", limit)

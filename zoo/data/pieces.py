"""Tokenizer `sentencepiece`: trained here on the training text, or an existing .model file."""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt

from zoo.core.part import ConfigError
from zoo.data.slots import Document
from zoo.data.table import Bytewise, tile

SPACE = "\u2581"  # how the library writes a space inside pieces; the character itself must never reach it
UNUSABLE = re.compile("[\u2581\u2585]")  # U+2585 is the library's own mark in training; sentences with it are skipped
LINES, LONGEST = 16, 8192  # lines and characters of one training sentence
WORD = re.compile(" *[^ ]+| +")


class SentencePiece(Bytewise, kind="sentencepiece"):
    """Pieces learned from the training text (BPE or unigram) with bytes to fall back on, undone exactly by decoding.

    Trained without normalisation, prefix or whitespace rules; U+2581, which the library takes for a space, is written as its
    three bytes. A ``model`` file that normalises text is accepted as it is: then ``lossless`` is False, and bytes are
    counted against the raw text by the offsets of its pieces.

    Source: SentencePiece, arXiv:1808.06226; BPE, arXiv:1508.07909; unigram, arXiv:1804.10959.
    """

    class Config(Bytewise.Config):
        vocab_size: PositiveInt = 1024  # unknown, bos and 256 bytes among them; of a `model` file: its own
        model_type: Literal["bpe", "unigram"] = "bpe"
        model: str | None = None  # path of a .model file, relative to the recipe; None or "": train
        sample_bytes: PositiveInt = Field(
            2_000_000, description="of training text to learn from at most, spread evenly over it"
        )

    config: Config

    def origin(self) -> str:
        digest = hashlib.sha256(f"{super().origin()} {version('sentencepiece')}".encode())
        if self.config.model:
            digest.update(self._file())
        return digest.hexdigest()

    def _file(self) -> bytes:
        path = self.base / Path(self.config.model).expanduser()
        try:
            return path.read_bytes()
        except OSError as fault:
            raise ConfigError(f"cannot be read: {fault.strerror} ({path})", "model", self.config.model) from None

    def train(self, documents: Iterable[Document]) -> bytes:
        if self.config.model:
            return self._file()
        from sentencepiece import SentencePieceTrainer

        written = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=iter(sample(documents, self.config.sample_bytes)),
                model_writer=written,
                model_type=self.config.model_type,
                vocab_size=self.config.vocab_size,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                byte_fallback=True,
                allow_whitespace_only_pieces=True,
                split_by_unicode_script=False,
                max_sentence_length=4 * LONGEST,
                unk_id=0,
                bos_id=1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,  # stored in the model and part of the sums of `unigram`: more would change both
                minloglevel=2,
            )
        except RuntimeError as fault:
            reason = str(fault).rpartition("] ")[2] or "the text is empty"
            raise ConfigError(
                f"cannot be learned from this text: {reason}", "vocab_size", self.config.vocab_size
            ) from None
        return written.getvalue()

    def load(self, learned: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self.model = SentencePieceProcessor(model_proto=learned)
        except RuntimeError:
            raise ConfigError("is not a SentencePiece model", "model", self.config.model) from None
        self.learned = learned
        self.lossless = is_lossless(learned)
        self.pieces = [self._piece(i) for i in range(self.model.vocab_size())]
        found = [i for i in (self.model.bos_id(), self.model.eos_id()) if i >= 0]
        if not found:
            self.pieces.append(b"")
        self._bos = found[0] if found else self.model.vocab_size()
        self._mark = [self.model.piece_to_id(f"<0x{b:02X}>") for b in SPACE.encode()]
        self._words = Words(self.model.encode) if self.lossless and ends_at_spaces(learned, self.pieces) else None

    def _piece(self, i: int) -> bytes:
        if self.model.is_control(i) or self.model.is_unknown(i) or self.model.is_unused(i):
            return b""
        piece = self.model.id_to_piece(i)
        return bytes([int(piece[3:5], 16)]) if self.model.is_byte(i) else piece.replace(SPACE, " ").encode("utf-8")

    def fingerprint(self) -> str:
        return hashlib.sha256(self.learned).hexdigest()

    @property
    def bos(self) -> int:
        return self._bos

    def encode(self, text: str) -> np.ndarray:
        if not self.lossless or SPACE not in text:
            return self._encoded(text)
        first, *rest = (self._encoded(part) for part in text.split(SPACE))
        mark = np.asarray(self._mark, np.int32)
        return np.concatenate([first, *(ids for part in rest for ids in (mark, part))])

    def _encoded(self, text: str) -> np.ndarray:
        """(T,) int32 of a text without the library's own character for a space."""
        if self._words is None:
            return self.model.encode(text, return_type="numpy").astype(np.int32)
        ids = map(self._words.__getitem__, WORD.findall(text))
        return np.fromiter(itertools.chain.from_iterable(ids), np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        if self.lossless:
            return super().decode(ids)
        return self.model.decode([int(i) for i in ids if int(i) < self.model.vocab_size()])

    @property
    def unknown(self) -> int:
        return self.model.unk_id()

    def bytes_of(self, ids: np.ndarray) -> np.ndarray:
        """Bytes of the text that the pieces spell; a space that leads a piece is one, but not at the start of a document.

        Source: the byte count of the parameter-golf challenge, with every U+2581 of a piece taken for one byte.
        """
        if self.lossless or not len(ids):
            return super().bytes_of(ids)
        edge = np.array([not piece for piece in self.pieces])  # control, unknown and unused pieces
        spaced = np.array([piece.startswith(b" ") for piece in self.pieces])
        after = np.concatenate([[True], edge[ids[:-1]]])
        return self.byte_lengths()[ids] - (spaced[ids] & after)

    def spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        if self.lossless:
            return super().spans(text)
        found = self.model.encode(text, return_type="offset_mapping", return_bytes=True)
        ends = np.fromiter((end for _, end in found["offsets"]), np.int64, len(found["offsets"]))
        return np.asarray(found["ids"], np.int32), tile(ends, len(text.encode("utf-8")))


class Words(dict[str, list[int]]):
    """The ids of words met before. Few words make most of a text, and looking one up is much faster than merging it again."""

    MOST, LONGEST = 200_000, 40  # words, and characters of one: 83 MB when full of Python

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self.encode = encode

    def __missing__(self, word: str) -> list[int]:
        ids = self.encode(word)
        if len(word) <= self.LONGEST and len(self) < self.MOST:
            self[word] = ids
        return ids


def ends_at_spaces(model: bytes, pieces: list[bytes]) -> bool:
    """Whether a word and the spaces ahead of it have the same ids wherever they stand.

    BPE merges neighbours, so a word ends for good where no piece goes on from a character to a space. (Unigram sums the
    logarithms of a whole text, whose rounding may decide between equal ways to cut a word.)
    """
    trainer = dict(_fields(dict(_fields(model)).get(2, b"")))
    return trainer.get(3, 1) == 2 and not any(b" " in piece.lstrip(b" ") for piece in pieces)


def sample(documents: Iterable[Document], n_bytes: int) -> list[str]:
    """At most ``n_bytes`` of text, and at least half of that where there is so much, spread evenly, as sentences.

    Held in memory is only the sample: whenever it outgrows ``n_bytes``, every other sentence is dropped, and of those to
    come only every second, fourth, ... is taken.
    """
    kept: list[str] = []
    size, stride, seen = 0, 1, 0
    for sentence in (s for document in documents for s in _sentences(document.text)):
        seen += 1
        if seen % stride:
            continue
        kept.append(sentence)
        size += len(sentence.encode("utf-8"))
        while size > n_bytes and len(kept) > 1:
            kept, stride = kept[1::2], 2 * stride
            size = sum(len(s.encode("utf-8")) for s in kept)
    return kept


def _sentences(text: str) -> Iterator[str]:
    """Text in stretches of a few lines; line ends lead, since the library strips them from the end of a sentence."""
    lines = text.split("\n")
    for i in range(0, len(lines), LINES):
        stretch = ("\n" if i else "") + "\n".join(lines[i : i + LINES])
        for usable in UNUSABLE.split(stretch):
            yield from (usable[j : j + LONGEST] for j in range(0, len(usable), LONGEST))


def is_lossless(model: bytes) -> bool:
    """Whether a .model file keeps every text: identity rules, bytes to fall back on, spaces escaped.

    Field numbers are those of sentencepiece_model.proto: 2 trainer_spec (3 model_type, 35 byte_fallback), 3 normalizer_spec
    (1 name, 2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces, 6 rule table).
    """
    top = dict(_fields(model))
    trainer, rules = dict(_fields(top.get(2, b""))), dict(_fields(top.get(3, b"")))
    plain = not rules.get(2) and not rules.get(6) and (rules.get(3, 1), rules.get(4, 1), rules.get(5, 1)) == (0, 0, 1)
    return plain and trainer.get(35, 0) == 1


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a protobuf message's fields, without the protobuf library."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(wire) or varint()
        yield number, message[at : at + size]
        at += size

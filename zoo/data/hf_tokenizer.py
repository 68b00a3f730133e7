"""Tokenizer `hf`: any tokenizer of the Hugging Face ecosystem, by local folder or hub name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.core.part import ConfigError
from zoo.data.retries import hub_answers
from zoo.data.slots import Document
from zoo.data.table import Bytewise, byte_offsets, tile


class Backed(Bytewise):
    """A tokenizer of the tokenizers library, from what ``train`` returns: its JSON and the id of its bos."""

    def load(self, learned: bytes) -> None:
        from tokenizers import Tokenizer as Backend

        self.learned = learned
        told = json.loads(learned)
        self.backend = Backend.from_str(told["tokenizer"])
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True  # "<|endoftext|>" inside a text is text
        rules = json.loads(told["tokenizer"])
        self.lossless = is_lossless(rules)
        self.pieces = pieces_of(rules, self.backend.get_vocab(with_added_tokens=True))
        unknown = rules["model"].get("unk_token")
        self._unknown = None if unknown is None else self.backend.token_to_id(str(unknown))
        self._bos = told["bos"]
        if self._bos is None:
            self._bos = len(self.pieces)
            self.pieces.append(b"")

    def fingerprint(self) -> str:
        return hashlib.sha256(self.learned).hexdigest()

    @property
    def bos(self) -> int:
        return self._bos

    @property
    def unknown(self) -> int | None:
        return self._unknown

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self.backend.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        found = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)  # without offsets
        return [np.asarray(one.ids, np.int32) for one in found]

    def decode(self, ids: Iterable[int]) -> str:
        if self.lossless:
            return super().decode(ids)
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        if self.lossless:
            return super().spans(text)
        found, starts = self.backend.encode(text, add_special_tokens=False), byte_offsets(text)
        ends = np.fromiter((end for _, end in found.offsets), np.int64, len(found.offsets))
        return np.asarray(found.ids, np.int32), tile(starts[ends], int(starts[-1]))


class HubTokenizer(Backed, kind="hf"):
    """Somebody else's tokenizer, by hub name or local folder, with its bytes counted against the raw text.

    Byte-level BPE without normalisation is ``lossless``: each id has its bytes in the byte alphabet. For all others bytes are
    counted by the offsets of tokens in the text. Text that spells a special token is treated as plain text. What the hub
    returned is kept in the cache, so a second run needs no network.

    Source: byte-level BPE, GPT-2 (Radford et al. 2019); the tokenizers and transformers libraries.
    """

    class Config(Backed.Config):
        name: str  # a folder, relative to the recipe, or a name on the hub
        revision: str | None = None  # branch, tag or commit on the hub

    config: Config

    def origin(self) -> str:
        digest = hashlib.sha256(super().origin().encode())
        if (folder := self._folder()) is not None:
            for path in sorted(folder.glob("*token*")) + sorted(folder.glob("*.model")) + sorted(folder.glob("*.txt")):
                digest.update(path.name.encode() + path.read_bytes() if path.is_file() else b"")
        return digest.hexdigest()

    def _folder(self) -> Path | None:
        """The local folder that ``name`` means, or None for a name on the hub."""
        path = self.base / Path(self.config.name).expanduser()
        if path.is_dir():
            return path
        if self.config.name.startswith((".", "/", "~")) or self.config.name.count("/") > 1:
            raise ConfigError(f"no such folder ({path})", "name", self.config.name)
        return None

    def train(self, documents: Iterable[Document]) -> bytes:
        wrapped = _load(str(self._folder() or self.config.name), self.config)
        backend = getattr(wrapped, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError("has no fast tokenizer (tokenizer.json), so nobody can say which bytes a token covers")
        candidates = (wrapped.bos_token_id, wrapped.eos_token_id, wrapped.cls_token_id)
        bos = next((i for i in candidates if i is not None), None)
        return json.dumps({"tokenizer": backend.to_str(), "bos": bos}).encode()


def _load(name: str, config: HubTokenizer.Config) -> Any:
    """The transformers tokenizer: from disk or the hub's local cache if it is there, from the hub otherwise."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, revision=config.revision, local_files_only=True)
    except (OSError, ValueError) as fault:
        if Path(name).is_dir():
            raise ConfigError(
                f"holds no tokenizer that transformers can read: {_first_line(fault)}", "name", name
            ) from None
    if not hub_answers():
        reason = "is no local folder and not in the hub's local cache, and the hub cannot be reached"
        raise ConfigError(reason, "name", config.name)
    try:
        return AutoTokenizer.from_pretrained(name, revision=config.revision)
    except (OSError, ValueError) as fault:
        raise ConfigError(f"cannot be loaded from the hub: {_first_line(fault)}", "name", config.name) from None


def _first_line(fault: Exception) -> str:
    return str(fault).strip().split("\n")[0]


def byte_alphabet() -> dict[str, int]:
    """The character by which byte-level BPE writes each byte: printable ones themselves, the others from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def pieces_of(rules: dict[str, Any], vocabulary: dict[str, int]) -> list[bytes]:
    """The bytes of every id: by the byte alphabet for learned tokens, literally for added ones, none for special ones."""
    alphabet = byte_alphabet()
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for token, i in vocabulary.items():
        known = all(c in alphabet for c in token)
        pieces[i] = bytes(alphabet[c] for c in token) if known else token.encode("utf-8")
    for added in rules["added_tokens"]:
        pieces[added["id"]] = b"" if added["special"] else added["content"].encode("utf-8")
    return pieces


def is_lossless(rules: dict[str, Any]) -> bool:
    """Whether a tokenizer.json keeps every text: byte-level BPE over all bytes, nothing normalised, stripped or removed."""
    steps = list(_steps(rules["pre_tokenizer"]))
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    keeps = all(
        step["type"] == "Digits"
        or (step["type"] == "ByteLevel" and not step["add_prefix_space"])
        or (step["type"] == "Split" and step["behavior"] != "Removed")
        for step in steps
    )
    plain = all(t["special"] or not (t["lstrip"] or t["rstrip"] or t["single_word"]) for t in rules["added_tokens"])
    model = rules["model"]
    complete = model["type"] == "BPE" and all(c in model["vocab"] for c in byte_alphabet())
    return rules["normalizer"] is None and byte_level and keeps and plain and complete


def _steps(pre_tokenizer: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if pre_tokenizer is None:
        return
    if pre_tokenizer["type"] == "Sequence":
        for step in pre_tokenizer["pretokenizers"]:
            yield from _steps(step)
    else:
        yield pre_tokenizer

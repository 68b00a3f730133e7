"""Tokenizer `byte_bpe`: byte-level BPE trained here on the training text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib.metadata import version

from pydantic import Field, PositiveInt

from zoo.core.part import ConfigError
from zoo.data.hf_tokenizer import Backed
from zoo.data.pieces import sample
from zoo.data.slots import Document

BOS = "<|endoftext|>"
# GPT-4's way to cut text before merging, with runs of at most two digits: words keep the space ahead of them
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"


class ByteBPE(Backed, kind="byte_bpe"):
    """Byte-level BPE learned from the training text: every text comes back as it was, and nothing is unknown.

    Source: byte-level BPE, Radford et al. 2019; merges by Sennrich et al., arXiv:1508.07909; the tokenizers library.
    """

    class Config(Backed.Config):
        vocab_size: PositiveInt = Field(4096, description="256 bytes and the bos among them")
        sample_bytes: PositiveInt = Field(
            50_000_000, description="of training text to learn from at most, spread evenly over it"
        )

    config: Config

    def origin(self) -> str:
        return hashlib.sha256(f"{super().origin()} {version('tokenizers')} {PATTERN}".encode()).hexdigest()

    def train(self, documents: Iterable[Document]) -> bytes:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        size = self.config.vocab_size
        if size < 257:
            raise ConfigError("256 bytes and the bos need 257", "vocab_size", size)
        backend = Tokenizer(models.BPE())
        words = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[BOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(sample(documents, self.config.sample_bytes), trainer)
        if backend.get_vocab_size() < size:
            found = backend.get_vocab_size()
            raise ConfigError(
                f"cannot be learned from this text: it has pairs for {found:,} ids only", "vocab_size", size
            )
        return json.dumps({"tokenizer": backend.to_str(), "bos": backend.token_to_id(BOS)}).encode()

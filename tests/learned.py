"""Tokenizers of every sort, trained on a few sentences."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from zoo.data.slots import Document, Tokenizer

PROSE = [
    "It was a bright cold day in April, and the clocks were striking thirteen.\n",
    "def total(values):\n    return sum(values)  # naïve\n\n\tif x == 1:\r\n        pass\n",
    "Größe, 数学, ελληνικά, 😀 and e\u0301: <s> </s> <unk> <0x41> \u2581 underlined \u2581\u2581 twice.\n",
]
DOCUMENTS = [Document(str(i), PROSE[i % 3] * (1 + i % 5)) for i in range(30)]
TRAPS = [
    *(
        "\u2581",
        "\u2585",
        "\u2047",
        "\x00",
        "\t",
        "\n",
        "\r\n",
        "  ",
        " ",
        "\ufeff",
        "\ufffd",
        "\u200b",
        "\u00a0",
        "\u3000",
    ),
    *(
        "e\u0301",
        "ﬁ",
        "①",
        "😀",
        "👨\u200d👩\u200d👧",
        "\U0010ffff",
        "<s>",
        "</s>",
        "<unk>",
        "<0x41>",
        "<|endoftext|>",
        "[UNK]",
    ),
    *("##a", "the", " the", "return", "    ", "Ġ", "Ċ", "Ā"),
]
any_text = st.one_of(
    st.text(), st.lists(st.one_of(st.sampled_from(TRAPS), st.text(max_size=3)), max_size=12).map("".join)
)
often = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

LOSSLESS = ("byte", "bpe", "unigram", "byte_bpe", "hf")
CHANGING = ("nmt_nfkc", "dummy_prefix", "no_fallback", "wordpiece", "nfc", "metaspace")


def build(kind: str, base: Path = Path(), documents: list[Document] = DOCUMENTS, **knobs: object) -> Tokenizer:
    tokenizer = Tokenizer.parse({"kind": kind, **knobs}).build(base)
    tokenizer.load(tokenizer.train(iter(documents)))
    return tokenizer


def train_library(path: Path, **options: object) -> Path:
    """A .model file straight from the library, with the library's own defaults unless told otherwise."""
    written = io.BytesIO()
    defaults = {"vocab_size": 360, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    texts = [d.text.replace("\u2581", "") for d in DOCUMENTS]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=written, **{**defaults, **options}
    )
    path.write_bytes(written.getvalue())
    return path


def byte_level(folder: Path, normalizer: normalizers.Normalizer | None = None, added: tuple[str, ...] = ()) -> Path:
    """A tokenizer folder as GPT-2's: byte-level BPE with one special token."""
    backend = Backend(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(PROSE * 20, trainer)
    backend.add_tokens(list(added))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


def wordpiece(folder: Path) -> Path:
    """A tokenizer folder as BERT's: lower case, accents stripped, unknown words lost."""
    folder.mkdir()
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "day",
        "a",
        "##a",
        "gro",
        "##ße",
        "return",
        ".",
        "<",
        ">",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def metaspace(folder: Path) -> Path:
    """A tokenizer folder as Llama 2's: spaces written as U+2581, one put in front, bytes to fall back on."""
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    backend.train_from_iterator(["hello world the day"] * 20, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def zoo_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    identity = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    train_library(folder / "nmt_nfkc.model")
    train_library(folder / "dummy.model", **identity)
    train_library(folder / "bare.model", **identity, add_dummy_prefix=False, byte_fallback=False, vocab_size=110)
    return {
        "byte": build("byte"),
        "bpe": build("sentencepiece", vocab_size=420),
        "unigram": build("sentencepiece", vocab_size=320, model_type="unigram"),
        "byte_bpe": build("byte_bpe", vocab_size=400),
        "hf": build("hf", name=str(byte_level(folder / "byte_level", added=("    ", "ß")))),
        "nmt_nfkc": build("sentencepiece", folder, model="nmt_nfkc.model"),
        "dummy_prefix": build("sentencepiece", folder, model="dummy.model"),
        "no_fallback": build("sentencepiece", folder, model="bare.model"),
        "wordpiece": build("hf", folder, name=str(wordpiece(folder / "wordpiece"))),
        "nfc": build("hf", folder, name=str(byte_level(folder / "nfc", normalizers.NFC()))),
        "metaspace": build("hf", folder, name=str(metaspace(folder / "metaspace"))),
    }

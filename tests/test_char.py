"""Tokenizer `char`: the characters of the training text and nothing else; every byte counted; strangers refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from realdata import real

from zoo.core.part import ConfigError
from zoo.data.prepare import prepare
from zoo.data.slots import Document, Tokenizer
from zoo.recipe import DataConfig

TEXT = "a naïve 数学 😀 text, twice: a naïve text\n"


def build(*texts: str) -> Tokenizer:
    tokenizer = Tokenizer.parse("char").build(Path())
    tokenizer.load(tokenizer.train(Document(str(i), text) for i, text in enumerate(texts)))
    return tokenizer


@given(st.lists(st.sampled_from(sorted(set(TEXT)))).map("".join))
def test_a_text_comes_back_and_its_bytes_add_up(text: str):
    tokenizer = build(TEXT[:12], TEXT[12:])
    ids, lengths = tokenizer.spans(text)
    assert ids.dtype == np.int32 and len(ids) == len(text)
    assert tokenizer.decode([tokenizer.bos, *ids]) == text
    assert lengths.tolist() == [len(c.encode("utf-8")) for c in text]


def test_ids_are_places_in_the_order_of_unicode_with_the_bos_behind_them():
    tokenizer = build("cab", "b\n")
    assert tokenizer.encode("\nabc").tolist() == [0, 1, 2, 3]
    assert (tokenizer.bos, tokenizer.vocab_size, tokenizer.byte_lengths().tolist()) == (4, 5, [1, 1, 1, 1, 0])


def test_the_fingerprint_is_that_of_the_characters():
    assert build("abc", "c").fingerprint() == build("cba").fingerprint() != build("abcd").fingerprint()


@pytest.mark.parametrize("stranger", ["A", "z", "\U0010ffff"])
def test_a_character_that_was_never_seen_is_refused_by_name(stranger: str):
    with pytest.raises(
        ConfigError, match=r"knows no .* \(character 2 of a text\): the training text has none"
    ) as caught:
        build("abc").encode(f"ab{stranger}")
    assert repr(stranger) in str(caught.value)


def test_no_text_gives_no_tokenizer():
    with pytest.raises(ConfigError, match="the training text is empty"):
        build()


def test_a_stranger_in_the_validation_text_stops_the_preparation(tmp_path: Path):
    (tmp_path / "text.txt").write_text("abc" * 30 + "!", encoding="utf-8")
    config = DataConfig.model_validate({"source": {"kind": "text", "files": ["text.txt"]}, "tokenizer": "char"})
    with pytest.raises(ConfigError, match="knows no '!'"):
        prepare(config, tmp_path, tmp_path / "cache", workers=0)


def test_tiny_shakespeare_has_65_characters_and_nanogpts_split(tmp_path: Path):
    text = real("tinyshakespeare.txt")
    source = {"kind": "text", "files": [str(text)], "valid_share": 0.1}
    prepared = prepare(
        DataConfig.model_validate({"source": source, "tokenizer": "char"}), tmp_path, tmp_path, workers=0
    )
    assert prepared.tokenizer.vocab_size == 66 and prepared.tokenizer.lossless
    assert (prepared.train_bytes, prepared.valid_bytes) == (1_003_854, 111_540)
    whole = text.read_text(encoding="utf-8")
    assert prepared.tokenizer.decode(np.asarray(prepared.valid)) == whole[int(0.9 * len(whole)) :]
    assert prepared.valid_spans.sum() == prepared.valid_bytes

"""Tokenizers: text comes back exactly, and every byte of it is counted once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learned import (
    CHANGING,
    DOCUMENTS,
    LOSSLESS,
    PROSE,
    any_text,
    build,
    byte_level,
    often,
    train_library,
)
from learned import zoo_of as zoo_of
from realdata import real
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from zoo.core.part import ConfigError
from zoo.data import hf_tokenizer, pieces
from zoo.data.slots import Document, Tokenizer
from zoo.data.table import byte_offsets, tile


@pytest.mark.parametrize("name", LOSSLESS)
def test_text_comes_back_exactly_and_bytes_add_up(zoo_of: dict[str, Tokenizer], name: str) -> None:
    tokenizer = zoo_of[name]
    assert tokenizer.lossless
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.vocab_size,) and lengths.dtype == np.int32 and lengths[tokenizer.bos] == 0

    @often
    @given(any_text)
    def holds(text: str) -> None:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert tokenizer.decode(ids) == text
        assert lengths[ids].sum() == len(text.encode("utf-8"))
        assert tokenizer.bos not in ids
        again, spans = tokenizer.spans(text)
        assert np.array_equal(again, ids) and np.array_equal(spans, lengths[ids])

    holds()


@pytest.mark.parametrize("name", CHANGING)
def test_what_changes_text_says_so_and_still_covers_every_byte_once(zoo_of: dict[str, Tokenizer], name: str) -> None:
    tokenizer = zoo_of[name]
    assert not tokenizer.lossless

    @often
    @given(any_text)
    def holds(text: str) -> None:
        ids, spans = tokenizer.spans(text)
        assert np.array_equal(ids, tokenizer.encode(text)) and ids.dtype == np.int32
        assert len(spans) == len(ids) and (spans >= 0).all()
        assert not len(ids) or spans.sum() == len(text.encode("utf-8"))

    holds()


def test_spans_of_a_normalising_model_point_into_the_raw_text(zoo_of: dict[str, Tokenizer]) -> None:
    tokenizer = zoo_of["nmt_nfkc"]
    text = "  the   day ﬁ\n"
    ids, spans = tokenizer.spans(text)
    names = [tokenizer.pieces[i].decode() for i in ids]
    assert "".join(names) == " the day fi"  # what is left of the text after its rules
    assert tokenizer.byte_lengths()[ids].sum() == 11 and spans.sum() == len(text.encode()) == 16
    edges = np.cumsum(spans)
    assert text.encode()[: edges[next(i for i, _ in enumerate(names) if "".join(names[: i + 1]) == " the")]] == b"  the"


@pytest.mark.parametrize("name", LOSSLESS)
def test_any_ids_decode_and_special_ones_to_nothing(zoo_of: dict[str, Tokenizer], name: str) -> None:
    tokenizer = zoo_of[name]

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    def holds(ids: list[int]) -> None:
        raw = b"".join(tokenizer.pieces[i] for i in ids)
        assert tokenizer.decode(ids) == raw.decode("utf-8", errors="replace")
        assert tokenizer.decode([tokenizer.bos, *ids, tokenizer.bos]) == tokenizer.decode(ids)

    holds()


def test_half_a_character_comes_out_as_the_replacement_character(zoo_of: dict[str, Tokenizer]) -> None:
    ids = zoo_of["byte"].encode("é!")
    assert ids.tolist() == [0xC3, 0xA9, 0x21]
    assert zoo_of["byte"].decode(ids[1:]) == "\ufffd!"


@pytest.mark.parametrize("knobs", [{"vocab_size": 400}, {"vocab_size": 320, "model_type": "unigram"}])
def test_training_twice_gives_the_same_model_to_the_last_byte(knobs: dict[str, object]) -> None:
    first = Tokenizer.parse({"kind": "sentencepiece", **knobs}).build(Path()).train(iter(DOCUMENTS))
    second = Tokenizer.parse({"kind": "sentencepiece", **knobs}).build(Path()).train(iter(DOCUMENTS))
    assert first == second and len(first) > 1000


def test_a_trained_model_has_the_size_asked_for_and_learns_words(zoo_of: dict[str, Tokenizer]) -> None:
    tokenizer = zoo_of["bpe"]
    assert tokenizer.vocab_size == 420 and tokenizer.bos == 1
    assert b"\n   " in b"".join(tokenizer.pieces) or b"    " in tokenizer.pieces
    text = PROSE[0]
    assert len(tokenizer.encode(text)) < 0.5 * len(text)


def test_a_trained_model_kept_as_a_file_is_the_same_tokenizer(zoo_of: dict[str, Tokenizer], tmp_path: Path) -> None:
    (tmp_path / "own.model").write_bytes(zoo_of["bpe"].learned)
    again = build("sentencepiece", tmp_path, model="own.model")
    assert again.lossless and again.fingerprint() == zoo_of["bpe"].fingerprint()
    assert again.encode(PROSE[2]).tolist() == zoo_of["bpe"].encode(PROSE[2]).tolist()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("normalization_rule_name", "nfkc"),
        ("add_dummy_prefix", True),
        ("remove_extra_whitespaces", True),
        ("byte_fallback", False),
        (None, None),
    ],
)
def test_the_rules_inside_a_model_file_are_read_right(tmp_path: Path, option: str | None, value: object) -> None:
    keep = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
    changed = {} if option is None else {option: value}
    vocab = {"vocab_size": 110} if option == "byte_fallback" else {}
    model = train_library(tmp_path / "x.model", **{**keep, **changed, **vocab})
    assert pieces.is_lossless(model.read_bytes()) is (option is None)


def test_a_model_that_does_not_escape_spaces_is_not_taken_for_lossless(zoo_of: dict[str, Tokenizer]) -> None:
    model = zoo_of["bpe"].learned
    rules = dict(pieces._fields(model))[3]
    written, changed = (b"\x1a" + bytes([len(r)]) + r for r in (rules, rules + b"\x28\x00"))  # field 5 = 0
    assert pieces.is_lossless(model) and model.count(written) == 1
    assert not pieces.is_lossless(model.replace(written, changed))


def test_only_the_sample_is_learned_from_and_it_is_spread_evenly() -> None:
    documents = [Document("x", "\n".join(f"line {i} of document {d}" for i in range(160))) for d in range(50)]
    total = sum(len(d.text) for d in documents)
    for limit in (total // 3, total // 20):
        kept = pieces.sample(documents, limit)
        assert limit / 2 - 1000 <= sum(map(len, kept)) <= limit
        seen = {int(s.split("document ")[1].split("\n")[0]) for s in kept}
        assert min(seen) < 5 and max(seen) >= 45
    everything = pieces.sample(documents, 10 * total)
    assert "".join(everything) == "".join(d.text for d in documents)


def test_a_sample_leaves_out_what_the_library_cannot_learn_from() -> None:
    kept = pieces.sample([Document("x", "a\u2581b\u2585c" + "d" * 20_000)], 10**6)
    assert "".join(kept) == "abc" + "d" * 20_000
    assert max(map(len, kept)) <= pieces.LONGEST


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_vocabulary_that_the_text_cannot_fill_is_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"vocab_size = {size}.*(smaller|too high)"):
        build("sentencepiece", vocab_size=size)


def test_a_model_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model = 'absent\.model'.*No such file"):
        build("sentencepiece", tmp_path, model="absent.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"model = 'bad\.model': is not a SentencePiece model"):
        build("sentencepiece", tmp_path, model="bad.model")


def test_origin_changes_with_knobs_and_with_the_files_they_name(tmp_path: Path) -> None:
    def origin(**knobs: object) -> str:
        return Tokenizer.parse({"kind": "sentencepiece", **knobs}).build(tmp_path).origin()

    assert origin() == origin(vocab_size=1024) != origin(vocab_size=1025)
    (tmp_path / "x.model").write_bytes(b"1")
    first = origin(model="x.model")
    (tmp_path / "x.model").write_bytes(b"2")
    assert origin(model="x.model") != first


def test_the_byte_alphabet_is_that_of_gpt2() -> None:
    assert hf_tokenizer.byte_alphabet() == {c: b for b, c in bytes_to_unicode().items()}


def test_special_tokens_in_a_text_are_text(zoo_of: dict[str, Tokenizer]) -> None:
    tokenizer = zoo_of["hf"]
    text = "end<|endoftext|>start"
    ids = tokenizer.encode(text)
    assert tokenizer.bos not in ids and tokenizer.decode(ids) == text
    assert tokenizer.pieces[tokenizer.bos] == b""


def test_ids_are_those_of_the_library(zoo_of: dict[str, Tokenizer], tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "t", added=("    ", "ß"))
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in PROSE:
        assert zoo_of["hf"].encode(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]


def test_what_was_learned_from_the_hub_needs_neither_folder_nor_transformers(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "t")
    config = Tokenizer.parse({"kind": "hf", "name": "t"})
    learned = config.build(tmp_path).train(iter(()))
    for path in sorted(folder.iterdir()):
        path.unlink()
    later = config.build(tmp_path)
    later.load(learned)
    assert later.decode(later.encode(PROSE[2])) == PROSE[2]


def test_a_local_tokenizer_is_known_by_its_content(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "t")
    config = Tokenizer.parse({"kind": "hf", "name": "./t"})
    before = config.build(tmp_path).origin()
    state = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(state, indent=1))
    assert config.build(tmp_path).origin() != before


def test_missing_tokenizers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"name = '\./absent': no such folder"):
        build("hf", tmp_path, name="./absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty.*holds no tokenizer"):
        build("hf", tmp_path, name="empty")
    monkeypatch.setattr(hf_tokenizer, "hub_answers", lambda: False)
    with pytest.raises(ConfigError, match=r"name = 'nobody/nothing'.*cannot be reached"):
        build("hf", tmp_path, name="nobody/nothing")


@given(st.text())
def test_byte_offsets_are_the_lengths_of_prefixes(text: str) -> None:
    assert byte_offsets(text).tolist() == [len(text[:i].encode("utf-8")) for i in range(len(text) + 1)]


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(50, 60))
def test_tiles_cover_a_text_without_gap_or_overlap(ends: list[int], n_bytes: int) -> None:
    widths = tile(np.array(ends), n_bytes)
    assert widths.sum() == n_bytes and (widths >= 0).all() and len(widths) == len(ends)
    furthest = np.maximum.accumulate(ends)
    assert np.array_equal(np.cumsum(widths)[:-1], furthest[:-1])


@pytest.mark.parametrize("model", ["fineweb_1024_bpe.model", "fineweb_8192_bpe.model"])
@pytest.mark.parametrize("text", ["tinyshakespeare.txt", "wikitext2.valid.txt"])
def test_published_models_are_known_to_normalise_and_counted_against_raw_bytes(model: str, text: str) -> None:
    tokenizer = build("sentencepiece", model=str(real(model)))
    sample = real(text).read_bytes().decode("utf-8")[:200_000]
    ids, spans = tokenizer.spans(sample)
    assert not tokenizer.lossless and tokenizer.bos == 1
    assert spans.sum() == len(sample.encode("utf-8")) > tokenizer.byte_lengths()[ids].sum()
    assert np.array_equal(ids, tokenizer.encode(sample))


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_model_trained_on_shakespeare_gives_shakespeare_back(model_type: str) -> None:
    text = real("tinyshakespeare.txt").read_text(encoding="utf-8")
    knobs = {"vocab_size": 512, "model_type": model_type, "sample_bytes": 200_000}
    tokenizer = build("sentencepiece", documents=[Document("shakespeare", text)], **knobs)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and tokenizer.byte_lengths()[ids].sum() == 1_115_394
    assert 1_115_394 / len(ids) > 1.5
    assert np.array_equal(ids, tokenizer.model.encode(text))


WORDS = (
    "the",
    "day",
    " ",
    "  ",
    "\n",
    "return",
    "ing",
    "ß",
    "\U0001f600",
    "d",
    "da",
    "\u00a0",
    "\u3000",
    "\t",
    "x" * 50,
)


@pytest.mark.parametrize("name", ["bpe", "across"])
def test_words_met_before_have_the_ids_that_the_library_gives_the_whole_text(
    zoo_of: dict[str, Tokenizer], tmp_path: Path, name: str
) -> None:
    """A model whose pieces run over spaces has no words to look up."""
    rules = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False}
    train_library(tmp_path / "across.model", **rules, split_by_whitespace=False, vocab_size=420)
    tokenizer = zoo_of["bpe"] if name == "bpe" else build("sentencepiece", tmp_path, model="across.model")
    assert tokenizer.lossless
    assert any(b" " in piece.lstrip(b" ") for piece in tokenizer.pieces) == (name == "across")

    @often
    @given(st.lists(st.sampled_from(WORDS) | st.sampled_from(PROSE), max_size=12).map("".join) | any_text)
    def holds(text: str) -> None:
        text = text.replace(pieces.SPACE, "")
        assert tokenizer.encode(text).tolist() == tokenizer.model.encode(text)

    holds()

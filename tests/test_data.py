"""Preparation: every byte of the text accounted for, from one cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from realdata import real
from texts import data, texts, write
from texts import folder as folder

from zoo.core.part import ConfigError
from zoo.data.byte import Bytes
from zoo.data.prepare import prepare, token_dtype
from zoo.data.slots import Source, Tokenizer
from zoo.recipe import DataConfig


@pytest.mark.parametrize("tokenizer", ["byte", {"kind": "sentencepiece", "vocab_size": 330}])
def test_streams_are_documents_behind_a_bos_each(folder: Path, tokenizer: object) -> None:
    found = prepare(data(tokenizer), folder, folder / "cache")
    for part, stream, n_bytes in (("train", found.train, found.train_bytes), ("valid", found.valid, found.valid_bytes)):
        assert stream[0] == found.tokenizer.bos and isinstance(stream, np.memmap) and stream.dtype == np.uint16
        starts = np.flatnonzero(stream == found.tokenizer.bos)
        pieces = [found.tokenizer.decode(ids[1:]) for ids in np.split(stream, starts[1:])]
        assert pieces == (folder / f"{part}.txt").read_text(encoding="utf-8").split("@")
        assert pieces == texts(found.documents(part))
        assert n_bytes == sum(len(p.encode()) for p in pieces) == found.byte_lengths[stream].sum()
    assert np.array_equal(found.valid_spans, found.byte_lengths[found.valid])
    assert found.shared_bytes == len("Document 0 has größe 0 \u2581.\n".encode())
    assert found.facts["valid_documents"] == "21" and found.facts["bytes_counted"] == "by id"


def test_preparing_again_reads_the_cache_and_finds_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    config = data({"kind": "sentencepiece", "vocab_size": 330})
    first = prepare(config, folder, folder / "cache", lambda what, share, words: said.append(what))
    assert any("training" in s for s in said) and any("encoding" in s for s in said)
    said.clear()
    second = prepare(config, folder, folder / "cache", lambda what, share, words: said.append(what))
    assert not said and np.array_equal(first.train, second.train) and np.array_equal(first.valid, second.valid)
    monkeypatch.setenv("ZOO_CACHE", str(folder / "elsewhere"))
    third = prepare(config, folder)
    assert first.fingerprint == second.fingerprint == third.fingerprint and first.facts == third.facts
    assert (folder / "elsewhere").is_dir()


def test_the_fingerprint_moves_with_text_tokenizer_and_caps(folder: Path) -> None:
    cache = folder / "cache"
    found = [prepare(data(), folder, cache), prepare(data(valid_bytes=200), folder, cache)]
    found += [prepare(data({"kind": "sentencepiece", "vocab_size": n}), folder, cache) for n in (320, 330)]
    write(folder / "valid.txt", "another text\n")
    found.append(prepare(data(), folder, cache))
    assert len({p.fingerprint for p in found}) == 5


@pytest.mark.parametrize("limit", [120, 500, 10**9])
def test_caps_take_whole_documents_in_order(folder: Path, limit: int) -> None:
    found = prepare(data(train_bytes=limit, valid_bytes=limit), folder, folder / "cache")
    for part, n_bytes in (("train", found.train_bytes), ("valid", found.valid_bytes)):
        everything = (folder / f"{part}.txt").read_text(encoding="utf-8").split("@")
        taken = texts(found.documents(part))
        assert taken == everything[: len(taken)] and n_bytes == sum(len(t.encode()) for t in taken) <= limit
        assert len(taken) == len(everything) or n_bytes + len(everything[len(taken)].encode()) > limit


def test_the_tokenizer_learns_from_capped_training_text_only(folder: Path) -> None:
    config = {"kind": "sentencepiece", "vocab_size": 300}
    first = prepare(data(config, train_bytes=1000), folder, folder / "cache")
    write(folder / "train.txt", "@".join(texts(first.documents("train"))))
    write(folder / "valid.txt", "quite another validation text\n")
    second = prepare(data(config), folder, folder / "cache")
    assert first.tokenizer.fingerprint() == second.tokenizer.fingerprint()
    third = prepare(data(config, train_bytes=500), folder, folder / "cache")
    assert third.tokenizer.fingerprint() != second.tokenizer.fingerprint()


def test_text_that_leaves_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^train_bytes = 10: does not even hold the first document"):
        prepare(data(train_bytes=10), folder, folder / "cache")
    write(folder / "valid.txt", "@@@")
    with pytest.raises(ConfigError, match=r"^source: leaves no valid text"):
        prepare(data(), folder, folder / "cache")
    assert not list((folder / "cache").glob(".making-*"))


@pytest.mark.parametrize("tokenizer", ["byte", {"kind": "sentencepiece", "vocab_size": 330}])
def test_faults_carry_the_path_of_their_knob(folder: Path, tokenizer: object) -> None:
    (folder / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"^source\.files = .*train\.txt': is not UTF-8"):
        prepare(data(tokenizer), folder, folder / "cache")
    (folder / "train.txt").unlink()
    with pytest.raises(ConfigError, match=r"^source\.files\[0\] = 'train\.txt': no such file"):
        prepare(data(tokenizer), folder, folder / "cache")
    write(folder / "train.txt", "short")
    with pytest.raises(ConfigError, match=r"^tokenizer\.vocab_size = 5000: cannot be learned"):
        prepare(data({"kind": "sentencepiece", "vocab_size": 5000}), folder, folder / "cache")


@pytest.fixture
def faulty() -> Iterator[str]:
    """A tokenizer that says "q" is two bytes long and forgets "~" in decoding."""

    class Faulty(Bytes, kind="faulty_for_this_test"):
        def byte_lengths(self) -> np.ndarray:
            lengths = super().byte_lengths()
            lengths[ord("q")] = 2
            return lengths

        def decode(self, ids: Iterable[int]) -> str:
            return super().decode(ids).replace("~", "")

        def fingerprint(self) -> str:
            return "faulty"

    yield "faulty_for_this_test"
    del Tokenizer.kinds["faulty_for_this_test"]


def test_bytes_that_do_not_add_up_stop_everything(folder: Path, faulty: str) -> None:
    good, right = (prepare(data(name), folder, folder / "good") for name in (faulty, "byte"))
    assert np.array_equal(good.valid, right.valid) and good.fingerprint != right.fingerprint
    write(folder / "valid.txt", "quick")
    with pytest.raises(ConfigError, match=r"^tokenizer = .*cover 6 bytes of valid\.txt\[0\], which has 5"):
        prepare(data(faulty), folder, folder / "bad")
    write(folder / "valid.txt", "a~b")
    with pytest.raises(ConfigError, match=r"^tokenizer = .*does not give back valid\.txt\[0\]"):
        prepare(data(faulty), folder, folder / "bad")
    assert not list((folder / "bad").glob("tokens-*"))


def test_large_vocabularies_take_wider_tokens() -> None:
    assert token_dtype(2**16) is np.uint16 and token_dtype(2**16 + 1) is np.uint32


def test_a_model_that_normalises_is_counted_against_the_raw_text(tmp_path: Path) -> None:
    model, text = real("fineweb_1024_bpe.model"), real("tinyshakespeare.txt")
    source = Source.parse({"kind": "text", "files": [str(text)]})
    config = DataConfig(source=source, tokenizer=Tokenizer.parse({"kind": "sentencepiece", "model": str(model)}))
    found = prepare(config, tmp_path, tmp_path / "cache")
    assert found.valid_bytes == found.valid_spans.sum() == 111_540
    assert found.byte_lengths[found.valid].sum() < 111_540  # its rules fold line ends and spaces
    assert "changes text" in found.facts["bytes_counted"]

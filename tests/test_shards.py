"""Token shards as the speedruns share them: header and size, bytes by piece, several files seen as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realdata import real

from zoo.core.part import ConfigError
from zoo.data import shards
from zoo.data.batches import Batches
from zoo.data.pieces import SPACE, SentencePiece
from zoo.data.prepare import Prepared, prepare
from zoo.data.shards import HEADER, MAGIC, Joined, open_shard
from zoo.data.slots import Source, Tokenizer
from zoo.recipe import DataConfig

TEXTS = [
    f"The {i}th  story\nof {'größe 数学 😀' if i % 5 == 0 else 'stone'} {i * i} is  told twice. "
    + "It goes on. " * (i % 7)
    for i in range(90)
]


def write(path: Path, tokens: np.ndarray, *, magic: int = MAGIC, version: int = 1, n: int | None = None) -> Path:
    header = np.zeros(HEADER, "<i4")
    header[:3] = magic, version, len(tokens) if n is None else n
    path.write_bytes(header.tobytes() + tokens.astype("<u2").tobytes())
    return path


def tokenizer(model: str | Path) -> SentencePiece:
    made = Tokenizer.parse({"kind": "sentencepiece", "model": str(model)}).build(Path())
    made.load(made.train(()))
    return made


@pytest.fixture(scope="module", params=["fineweb_1024_bpe.model", "fineweb_8192_bpe.model"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, folder = tokenizer(real(request.param)), tmp_path_factory.mktemp("shards")
    (folder / "their.model").write_bytes(real(request.param).read_bytes())
    for name, texts in (("train_0", TEXTS[:40]), ("train_1", TEXTS[40:70]), ("valid_0", TEXTS[70:])):
        stream = np.concatenate([np.append(made.bos, made.encode(text)) for text in texts])
        write(folder / f"{name}.bin", stream)
    return folder


def config(model: str = "their.model", **knobs: object) -> DataConfig:
    source = Source.parse({"kind": "shards", "train": ["train_*.bin"], "valid": ["valid_*.bin"]})
    return DataConfig(source=source, tokenizer=Tokenizer.parse({"kind": "sentencepiece", "model": model}), **knobs)


def prepared(folder: Path, cache: Path, **knobs: object) -> Prepared:
    return prepare(config(**knobs), folder, cache)


def bytes_by_hand(model: SentencePiece, ids: np.ndarray) -> list[int]:
    """The rule of the challenge, one token at a time, from the library's own pieces."""
    found, after_edge = [], True
    for i in map(int, ids):
        edge = model.model.is_control(i) or model.model.is_unknown(i) or model.model.is_unused(i)
        piece = model.model.id_to_piece(i)
        if edge:
            found.append(0)
        elif model.model.is_byte(i):
            found.append(1)
        else:
            spaces = piece.count(SPACE)
            found.append(len(piece.encode()) - 2 * spaces - (piece.startswith(SPACE) and after_edge))
        after_edge = edge
    return found


def sizes_of(found: Prepared, stream: np.ndarray) -> list[int]:
    """The bytes of each document of a stream."""
    widths = np.array(bytes_by_hand(found.tokenizer, stream))
    return [int(w.sum()) for w in np.split(widths, np.flatnonzero(stream == found.tokenizer.bos))[1:]]


def test_shards_are_used_where_they_lie_and_measured_once(folder: Path, tmp_path: Path) -> None:
    found = prepared(folder, tmp_path)
    both = np.concatenate([open_shard(folder / f"train_{i}.bin", "train") for i in (0, 1)])
    assert np.array_equal(found.train[:], both) and not list(tmp_path.glob("*/train.tokens"))
    assert np.array_equal(found.valid, open_shard(folder / "valid_0.bin", "valid"))
    assert found.valid_spans.tolist() == bytes_by_hand(found.tokenizer, found.valid)
    assert found.train_bytes == sum(bytes_by_hand(found.tokenizer, both))
    assert found.facts["train_documents"] == "70" and found.facts["valid_documents"] == "20"
    assert "raw text, which is not there" in found.facts["bytes_counted"]
    again = prepared(folder, tmp_path)
    assert again.fingerprint == found.fingerprint


def test_bytes_are_those_of_the_text_that_comes_back(folder: Path, tmp_path: Path) -> None:
    found = prepared(folder, tmp_path)
    texts = [d.text for d in found.documents("valid")]
    assert len(texts) == 20 and texts != TEXTS[70:]  # these tokenizers fold line ends and doubled spaces
    assert found.valid_bytes == found.valid_spans.sum()
    for text, own in zip(texts, sizes_of(found, found.valid), strict=True):
        assert len(text.encode()) == own or "\u2047" in text  # what one of them has no piece for counts nothing
    assert [d.text for d in found.documents("train")][-1].startswith("The 69th story of stone 4761")


def test_batches_read_across_shards(folder: Path, tmp_path: Path) -> None:
    found = prepared(folder, tmp_path)
    joined, whole = (Batches(t, 32, 4, seed=3, bos=found.tokenizer.bos) for t in (found.train, found.train[:]))
    for step in range(1, 2 * whole.windows // 4):
        assert (joined.batch(step)[0] == whole.batch(step)[0]).all()


@pytest.mark.parametrize("block", [33, 64, 2**22])
def test_caps_cut_between_documents(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(shards, "BLOCK", block)
    whole = prepared(folder, tmp_path / "whole")
    sizes = sizes_of(whole, whole.train[:])
    for limit in (sum(sizes[:9]), sum(sizes[:9]) + 1, sum(sizes[:55]) - 1, sum(sizes)):
        n = next(n for n in range(len(sizes), -1, -1) if sum(sizes[:n]) <= limit)
        found = prepared(folder, tmp_path / str(limit), train_bytes=limit)
        assert sizes_of(found, found.train[:]) == sizes[:n] and len(list(found.documents("train"))) == n
        assert found.train_bytes == sum(sizes[:n]) and found.facts["train_documents"] == str(n)
    with pytest.raises(ConfigError, match=r"^train_bytes = 3: does not even hold the first document"):
        prepared(folder, tmp_path / "none", train_bytes=3)


def test_a_file_that_is_no_shard_is_named(tmp_path: Path) -> None:
    tokens = np.arange(10)
    for path, words in (
        (write(tmp_path / "magic.bin", tokens, magic=20240521), "is no token shard"),
        (write(tmp_path / "version.bin", tokens, version=2), "version 2; only 1 is known"),
        (write(tmp_path / "long.bin", tokens, n=9), r"has 1,044 bytes, but .* 9 tokens, which take 1,042"),
        (write(tmp_path / "short.bin", tokens, n=11), r"has 1,044 bytes, but .* 11 tokens, which take 1,046"),
        (write(tmp_path / "empty.bin", tokens[:0]), "speaks of 0 tokens"),
        (tmp_path / "absent.bin", "cannot be read: No such file"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            open_shard(path, "train")
        assert path.name in str(caught.value) and caught.value.path == "train"
    (tmp_path / "tiny.bin").write_bytes(b"tiny")
    with pytest.raises(ConfigError, match="is no token shard"):
        open_shard(tmp_path / "tiny.bin", "train")


def test_shards_that_do_not_fit_their_recipe_leave_nothing_behind(folder: Path, tmp_path: Path) -> None:
    cases: list[tuple[DataConfig, str]] = [
        (config().model_copy(update={"tokenizer": Tokenizer.parse("byte")}), r"tokenizer = 'byte': has 257 ids, but"),
        (config(model=""), r"^tokenizer: cannot learn from a source that holds tokens"),
    ]
    for wrong, words in cases:
        with pytest.raises(ConfigError, match=words):
            prepare(wrong, folder, tmp_path)
    write(folder / "other_0.bin", np.full(40, 65_535))
    twice = {"kind": "shards", "train": ["train_*.bin"], "valid": ["train_1.bin"]}
    absent = {"kind": "shards", "train": ["train_*.bin"], "valid": ["valid_*.bin", "gone_*.bin"]}
    for source, words in (
        (twice, "train_1.bin is training text too"),
        (absent, r"^source\.valid\[1\] = 'gone_\*.bin'"),
    ):
        with pytest.raises(ConfigError, match=words):
            prepare(config().model_copy(update={"source": Source.parse(source)}), folder, tmp_path)
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("tokens-*"))


parts = st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=9), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@given(parts, st.data())
def test_joined_arrays_are_one_array(lists: list[list[int]], data: st.DataObject) -> None:
    arrays = [np.array(values, np.uint16) for values in lists]
    whole = np.concatenate(arrays)
    n = data.draw(st.integers(1, len(whole)))
    joined, whole = Joined(arrays, n), whole[:n]
    assert len(joined) == n and joined.shape == (n,) and joined.dtype == np.uint16
    piece = data.draw(st.slices(n))
    assert np.array_equal(joined[piece], whole[piece]) and np.array_equal(np.asarray(joined), whole)
    index = np.array(data.draw(st.lists(st.integers(-n, n - 1), min_size=4, max_size=4))).reshape(2, 2)
    assert np.array_equal(joined[index], whole[index]) and joined[int(index[0, 0])] == whole[index[0, 0]]
    with pytest.raises(IndexError):
        joined[np.array([n])]

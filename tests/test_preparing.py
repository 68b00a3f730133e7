"""Preparation in processes, interrupted, raced for, short of room; text on both sides of the split."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.core.part import ConfigError
from zoo.data import encode as encoding
from zoo.data import pool
from zoo.data.encode import Encoding
from zoo.data.overlap import ENOUGH, EVERY, WIDTH, find_copies, marks
from zoo.data.prepare import Prepared, prepare
from zoo.data.slots import Document, Source, Tokenizer, Unfinished
from zoo.recipe import DataConfig

WORDS = [
    "the",
    "a",
    "of",
    "cause",
    "ocean",
    "größe",
    "light",
    "数学",
    "never",
    "into",
    "stone",
    "😀",
    "and",
    "which",
    "was",
]


def prose(seed: int, n_words: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) + str(rng.randrange(10_000)) for _ in range(n_words))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for i in range(4):
        (folder / f"{i}.txt").write_text("@".join(prose(100 * i + j, 40 + 7 * j) for j in range(60)), encoding="utf-8")
    return folder


def config(tokenizer: object = "byte", **knobs: object) -> DataConfig:
    source = {"kind": "text", "files": ["*.txt"], "split": "documents", "separator": "@"}
    return DataConfig(source=Source.parse(source), tokenizer=Tokenizer.parse(tokenizer), **knobs)


def content(cache: Path) -> dict[str, bytes]:
    """Every file of a finished cache."""
    return {str(p.relative_to(cache)): p.read_bytes() for p in sorted(cache.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("tokenizer", ["byte", {"kind": "sentencepiece", "vocab_size": 400}])
def test_the_number_of_processes_does_not_change_a_byte(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: object
) -> None:
    monkeypatch.setattr(encoding, "CHUNK", 3000)
    found = [prepare(config(tokenizer), texts, tmp_path / str(n), None, n) for n in (1, 2, 3)]
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "3")
    assert len({p.fingerprint for p in found}) == 1 and found[0].train_bytes > 20 * encoding.CHUNK


def test_much_text_calls_for_processes_and_little_does_not(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    class Counted(pool.Process):
        def __init__(self, order: pool.Order) -> None:
            started.append(1)
            super().__init__(order)

    monkeypatch.setattr(pool, "Process", Counted)
    monkeypatch.setattr(pool, "cores", lambda: 2)
    prepare(config(), texts, tmp_path / "little")
    assert not started
    monkeypatch.setattr(pool, "ALONE", 20_000)
    monkeypatch.setattr(encoding, "CHUNK", 3000)
    prepare(config(), texts, tmp_path / "much")
    assert len(started) == 1 and content(tmp_path / "little") == content(tmp_path / "much")


def run(texts: Path, cache: Path, workers: int, **options: object) -> subprocess.Popen[str]:
    script = Path(__file__).with_name("preparing.py")
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    words = [sys.executable, str(script), str(texts), str(cache), str(workers)]
    return subprocess.Popen(
        words, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def finished(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.split()[-1]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_preparation_that_is_killed_again_and_again_ends_in_the_same_bytes(
    texts: Path, tmp_path: Path, kills: int
) -> None:
    """Kill -9 at random moments of the work; every other time with tokenising processes. Kills that came late do not count."""
    rng, cache = random.Random(kills), tmp_path / "killed"
    whole = run(texts, tmp_path / "whole", 0)
    whole.stdout.readline()
    begins = time.monotonic()
    fingerprint = finished(whole)
    lasts, left, tries = time.monotonic() - begins, 0, 0
    while left < kills and tries < 4 * kills:
        tries += 1
        process = run(texts, cache, 2 * (tries % 2))
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.8 * lasts))
        process.kill()
        process.communicate(timeout=60)
        left += any(cache.glob(".making-tokens-*/journal.json"))
        if any(cache.glob("tokens-*")):  # it was done before the kill
            assert content(cache) == content(tmp_path / "whole")
            shutil.rmtree(cache)
    assert left == kills
    assert finished(run(texts, cache, 0)) == fingerprint
    assert content(cache) == content(tmp_path / "whole") and not list(cache.glob(".*"))


def test_what_was_prepared_is_not_prepared_again(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "CHUNK", 3000)
    monkeypatch.setattr(Encoding, "every", 0.0)
    whole = prepare(config(), texts, tmp_path / "whole")
    asked: list[int] = []
    breaks = [90, 30, 61]

    def stream(self: Source, start: int = 0, mark: object = None) -> Iterator[tuple[str, Document]]:
        asked.append(start)
        reach = breaks.pop(0) if breaks else 10**9
        for i, item in enumerate(Source.stream(self, start, mark)):
            if i == reach:
                raise Unfinished("does not answer", "name", "x")
            yield item

    monkeypatch.setattr(type(config().source.build(texts)), "stream", stream)
    for _ in range(3):
        with pytest.raises(Unfinished, match=r"^source\.name = 'x': does not answer"):
            prepare(config(), texts, tmp_path / "broken")
        for path in (tmp_path / "broken").glob(".making-tokens-*/[tv]*"):
            path.write_bytes(path.read_bytes() + b"written after the journal")  # as a kill may leave it
    again = prepare(config(), texts, tmp_path / "broken")
    assert asked[0] == 0 and 0 < asked[1] < asked[2] < asked[3] <= 90 + 30 + 61
    assert again.fingerprint == whole.fingerprint and content(tmp_path / "broken") == content(tmp_path / "whole")


def test_a_journal_ahead_of_its_streams_is_not_believed(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "CHUNK", 3000)
    whole, cache = prepare(config(), texts, tmp_path / "whole"), tmp_path / "lost"
    monkeypatch.setattr(Source, "stream", _breaking_after(80))
    with pytest.raises(Unfinished):
        prepare(config(), texts, cache)
    (draft,) = cache.glob(".making-*")
    os.truncate(draft / "train.tokens", 10)
    monkeypatch.undo()
    assert prepare(config(), texts, cache).fingerprint == whole.fingerprint


def _breaking_after(n: int) -> object:
    plain = Source.stream

    def stream(self: Source, start: int = 0, mark: object = None) -> Iterator[tuple[str, Document]]:
        for i, item in enumerate(plain(self, start, mark)):
            if i == n:
                raise Unfinished("does not answer")
            yield item

    return stream


def test_two_processes_that_want_the_same_text_get_it(texts: Path, tmp_path: Path) -> None:
    both = [run(texts, tmp_path / "cache", 1) for _ in range(2)]
    assert finished(both[0]) == finished(both[1])
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_disk_without_room_is_named_and_left_as_it_was(texts: Path, tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    process = run(texts, tmp_path / "cache", 0, preexec_fn=small)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0 and "has no room left" in err and "ZOO_CACHE" in err
    assert not list((tmp_path / "cache").glob(".*")) and not list((tmp_path / "cache").glob("tokens-*"))


def test_a_tokenising_process_that_dies_is_named(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mortal(pool.Process):
        def ask(self, chunk: object) -> object:
            self.process.kill()
            return super().ask(chunk)

    def slow(tokenizer: Tokenizer, chunk: pool.Chunk) -> pool.Encoded:
        time.sleep(0.05)  # else this process might have done it all before the other is asked
        return encode(tokenizer, chunk)

    encode = pool.encode
    monkeypatch.setattr(pool, "encode", slow)
    monkeypatch.setattr(pool, "Process", Mortal)
    monkeypatch.setattr(encoding, "CHUNK", 3000)
    with pytest.raises(ConfigError, match="a tokenising process ended by signal 9"):
        prepare(config(), texts, tmp_path / "cache", None, 2)


def test_faults_found_by_another_process_are_the_same(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "from zoo.data.byte import Bytes\n\n\nclass Odd(Bytes, kind='odd_for_this_test'):\n"
        "    def encode(self, text):\n        return super().encode(text) + 200\n"
    )
    from zoo import plugins

    plugins.load(tmp_path / "odd.py")
    try:
        for workers in (0, 2):
            with pytest.raises(ConfigError, match=r"^tokenizer = 'odd.*gives id \d+ for .*its vocabulary has 257 ids"):
                prepare(config("odd_for_this_test"), texts, tmp_path / "cache", None, workers)
    finally:
        del Tokenizer.kinds["odd_for_this_test"]
    assert not list((tmp_path / "cache").glob(".*"))


def test_half_a_surrogate_pair_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a@b")

    def split(self: Source) -> tuple[Iterator[Document], Iterator[Document]]:
        return iter([Document("row 7", "fine \ud800 not")]), iter([])

    monkeypatch.setattr(type(config().source.build(tmp_path)), "split", split)
    with pytest.raises(ConfigError, match=r"^source: row 7 is no UTF-8: .*U\+D800 at character 5"):
        prepare(config(), tmp_path, tmp_path / "cache")


# --- both sides of the split ------------------------------------------------------------------------------------------


def prepared(folder: Path, train: list[str], valid: list[str], **knobs: object) -> Prepared:
    (folder / "train.txt").write_text("@".join(train), encoding="utf-8")
    (folder / "valid.txt").write_text("@".join(valid), encoding="utf-8")
    source = {"kind": "text", "files": ["train.txt"], "valid_files": ["valid.txt"], "separator": "@"}
    found = DataConfig(source=Source.parse(source), tokenizer=Tokenizer.parse("byte"), **knobs)
    return prepare(found, folder, folder / "cache")


def test_copies_and_near_copies_leave_the_validation_text_and_are_counted(tmp_path: Path) -> None:
    train = [prose(i, 120) for i in range(20)]
    near = train[3][:500] + " other words here " + train[3][500:]
    far = train[4][:300] + prose(77, 200)
    valid = [prose(50, 100), train[2], near, far, "short", prose(51, 30)]
    found = prepared(tmp_path, train, valid)
    kept = [d.text for d in found.documents("valid")]
    assert kept == [valid[0], far, "short", valid[5]]
    assert found.valid_bytes == sum(len(t.encode()) for t in kept)
    assert found.shared_bytes == len(train[2].encode()) + len(near.encode())
    assert found.facts["shared"].startswith("1 copies and 1 near copies") and "removed from" in found.facts["shared"]
    left = prepared(tmp_path, train, valid, duplicates="kept")
    assert [d.text for d in left.documents("valid")] == valid and "left in" in left.facts["shared"]
    assert left.shared_bytes == found.shared_bytes
    with pytest.raises(ConfigError, match="leaves no valid text: all of it stands in the training text"):
        prepared(tmp_path, train, [train[0], near])


def slow_marks(text: bytes) -> set[bytes]:
    """Stretches behind anchors, one place at a time."""
    found = set()
    for i in range(len(text) - WIDTH + 1):
        if int.from_bytes(text[i : i + 4], "little") * 2_654_435_761 % 2**32 < 2**32 // EVERY:
            found.add(text[i : i + WIDTH])
    return found


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 1500), min_size=1, max_size=4), st.integers(0, 10**6))
def test_marks_are_those_of_a_plain_search(sizes: list[int], seed: int) -> None:
    rng = random.Random(seed)
    texts = [*(rng.randbytes(n) for n in sizes), bytes(rng.choices(b"abc", k=2000))]
    found, owners = marks(texts)
    for i, text in enumerate(texts):
        assert (owners == i).sum() >= 1
        assert len(set(found[len(texts) :][owners[len(texts) :] == i].tolist())) == len(slow_marks(text))


def test_a_long_text_has_the_marks_of_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = prose(1, 5000).encode()
    whole = marks([text])[0]
    monkeypatch.setattr("zoo.data.overlap.BLOCK", 1000)
    assert np.array_equal(marks([text])[0], whole) and len(whole) > 100


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 0.9))
def test_near_copies_are_those_with_the_share_of_stretches(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cut: float
) -> None:
    old, new = prose(seed, 300), prose(seed + 5000, 300)
    mixed = (old[: int(cut * len(old))] + new[int(cut * len(new)) :]).encode()
    seen = tmp_path_factory.mktemp("marks") / "seen"
    seen.write_bytes(marks([old.encode()])[0].tobytes())
    own, known = marks([mixed])[0][1:], slow_marks(old.encode())
    share = np.mean([stretch in known for stretch in _in_order(mixed)]) if len(own) else 0.0
    copies = find_copies([mixed], seen, 0.6)
    assert copies.exact == () and bool(copies.near) == (len(own) >= ENOUGH and share > 0.6)


def _in_order(text: bytes) -> list[bytes]:
    n = len(text) - WIDTH + 1
    keys = ((int.from_bytes(text[i : i + 4], "little") * 2_654_435_761 % 2**32, i) for i in range(n))
    return [text[i : i + WIDTH] for key, i in keys if key < 2**32 // EVERY]

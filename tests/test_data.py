"""Sources, preparation and its cache, batches, count models."""

from __future__ import annotations

import hashlib
import math
import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from realdata import real

from zoo.core.part import ConfigError
from zoo.data import stdlib
from zoo.data.batches import Batches, segments
from zoo.data.byte import BOS, Bytes
from zoo.data.cache import damage, entry
from zoo.data.counts import Baselines, baselines, byte_stream, count_model_nats, unigram_entropy, xz_bits_per_byte
from zoo.data.prepare import prepare, token_dtype
from zoo.data.slots import Document, Source, Tokenizer
from zoo.recipe import DataConfig

TOOLS = "".join(f"def tool_{i}(x):\n    y = x + {i}\n    print(y, 'tool {i}')\n    return y * {i}\n" for i in range(40))


def texts(documents: Iterator[Document]) -> list[str]:
    return [d.text for d in documents]


# --- the standard library ---------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library: 40 modules of their own, and one of everything that must be left out."""
    root = tmp_path / "lib"
    for i in range(40):
        write(root / f"module_{i}.py", "".join(f"value_{i}_{j} = {i * j}\n" for j in range(30)))
    for path in ("test/test_x.py", "json/tests/deep/t.py", "site-packages/guest.py", "dist-packages/guest.py"):
        write(root / path, f"# guest in {path}\n")
    write(root / "_sysconfigdata__linux.py", "build = 1\n")
    write(root / "config-3.99/python-config.py", "build = 2\n")
    write(root / "notes.txt", "no Python\n")
    write(root / "empty.py", "")
    (root / "latin.py").write_bytes("# größe\n".encode("latin-1"))
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(root))
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))


def library_source(**knobs: object) -> Source:
    return Source.parse({"kind": "stdlib", **knobs}).build(Path())


def test_only_python_files_of_the_library_itself_are_taken(library: Path) -> None:
    train, valid = map(list, library_source(valid_share=0.2).split())
    assert {d.name for d in train + valid} == {f"module_{i}.py" for i in range(40)}
    assert train and valid
    for document in train + valid:
        assert document.text == (library / document.name).read_text()


def test_the_split_is_decided_by_content_alone(library: Path) -> None:
    before = [texts(part) for part in library_source(valid_share=0.3).split()]
    for path in sorted(library.glob("module_*.py")):
        path.rename(library / f"renamed_{path.name}")
    after = [texts(part) for part in library_source(valid_share=0.3).split()]
    assert before == after
    digests = [hashlib.sha256(t.encode()).digest() for t in before[0]]
    assert digests == sorted(digests)
    for text in before[1]:
        assert int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64 < 0.3


def test_line_ends_of_windows_make_no_other_corpus(library: Path) -> None:
    before = library_source().fingerprint()
    path = library / "module_3.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert library_source().fingerprint() == before


def test_copies_and_near_copies_are_dropped(library: Path) -> None:
    write(library / "tools.py", TOOLS)
    write(library / "copy.py", TOOLS)
    write(library / "near.py", TOOLS.replace("tool_7", "other_7").replace("tool_20", "other_20"))
    write(library / "indented.py", "class A:\n" + "".join(f"    {line}\n" for line in TOOLS.splitlines()))
    write(library / "far.py", TOOLS.replace("(", "( ").replace("*", "//").replace("y", "z"))
    train, valid = map(list, library_source().split())
    names = {d.name for d in train + valid}
    assert len(names & {"tools.py", "copy.py", "near.py", "indented.py"}) == 1
    assert "far.py" in names
    names = {d.name for part in library_source(near_duplicate=1.0).split() for d in part}
    assert len(names & {"tools.py", "copy.py"}) == 1 and {"near.py", "indented.py"} <= names


lines = st.lists(st.sampled_from(["a", "b", " c", "d ", "", "e"]), max_size=12).map("\n".join)


@given(st.lists(lines, max_size=8), st.sampled_from([0.1, 0.5, 0.9]))
def test_near_duplicates_are_found_as_a_plain_count_finds_them(documents: list[str], share: float) -> None:
    seen: set[str] = set()
    kept: list[str] = []
    for text in documents:
        new = set(triples(text))
        old = {t for other in kept for t in triples(other)}
        fresh = len(new & old) <= share * len(new)
        assert stdlib.is_new(text, seen, share) is fresh
        if fresh:
            kept.append(text)


def triples(text: str) -> list[tuple[str, ...]]:
    """Every three neighbouring lines without their margins; a shorter text is one stretch."""
    rows = [line.strip() for line in text.split("\n") if line.strip()]
    return [tuple(rows[i : i + 3]) for i in range(len(rows) - 2)] or [tuple(rows)]


def test_the_fingerprint_moves_with_content_and_rules(library: Path) -> None:
    found = {library_source().fingerprint(), library_source(valid_share=0.2).fingerprint()}
    found.add(library_source(near_duplicate=0.9).fingerprint())
    found.add(library_source(exclude=("test", "tests", "module_1.py")).fingerprint())
    write(library / "module_0.py", "changed = 1\n")
    found.add(library_source().fingerprint())
    assert len(found) == 5


def test_excluding_everything_is_refused(library: Path) -> None:
    with pytest.raises(ConfigError, match=r"exclude.*leaves no Python files"):
        library_source(exclude=("*",)).fingerprint()


def test_the_running_library_is_real_text_with_a_clean_split() -> None:
    source = library_source()
    train, valid = map(list, source.split())
    sizes = [sum(len(d.text.encode()) for d in part) for part in (train, valid)]
    assert sizes[0] > 4_000_000 and 0.02 < sizes[1] / sum(sizes) < 0.25
    assert not {d.text for d in train} & {d.text for d in valid}
    assert not any("test" in Path(d.name).parts or "site-packages" in d.name for d in train + valid)
    known = {t for d in train for t in triples(d.text)}
    for document in valid:
        own = set(triples(document.text))
        assert len(own & known) <= 0.5 * len(own), document.name
    assert source.facts().keys() == {"python", "corpus"} and source.facts()["corpus"] == source.fingerprint()[:12]
    assert library_source().fingerprint() == source.fingerprint()


# --- files of your own ------------------------------------------------------------------------------------------------


def text_source(base: Path, **knobs: object) -> Source:
    return Source.parse({"kind": "text", **knobs}).build(base)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=200), st.sampled_from([0.1, 0.05, 0.5]))
def test_a_split_by_position_keeps_every_character(
    tmp_path_factory: pytest.TempPathFactory, text: str, s: float
) -> None:
    base = tmp_path_factory.mktemp("text")
    write(base / "a.txt", text)
    train, valid = (texts(part) for part in text_source(base, files=["a.txt"], valid_share=s).split())
    cut = int(len(text) * (1 - s))
    assert ("".join(train), "".join(valid)) == (text[:cut], text[cut:])


def test_a_split_by_position_runs_over_all_files_in_order(tmp_path: Path) -> None:
    for name, n in (("b.txt", 30), ("a.txt", 50), ("c.txt", 20)):
        write(tmp_path / name, name[0] * n)
    train, valid = text_source(tmp_path, files=["b.txt", "*.txt"], valid_share=0.3).split()
    assert [(d.name, d.text) for d in train] == [("b.txt", "b" * 30), ("a.txt", "a" * 40)]
    assert [(d.name, d.text) for d in valid] == [("a.txt", "a" * 10), ("c.txt", "c" * 20)]


def test_shakespeare_is_cut_where_nanogpt_cuts_it() -> None:
    path = real("tinyshakespeare.txt")
    train, valid = (texts(part) for part in text_source(path.parent, files=[path.name]).split())
    assert [len(t) for t in train + valid] == [1_003_854, 111_540]


def test_a_separator_drops_what_it_matches_and_a_lookahead_keeps_it(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "= A =\none\n= B =\ntwo\n\n= C =\nthree\n")
    kept = text_source(tmp_path, files=["a.txt"], separator="(?=^= .* =$)", valid_files=["b.txt"])
    write(tmp_path / "b.txt", "valid")
    assert texts(kept.split()[0]) == ["= A =\none\n", "= B =\ntwo\n\n", "= C =\nthree\n"]
    dropped = text_source(tmp_path, files=["a.txt"], separator="\n\n", valid_files=["b.txt"])
    assert texts(dropped.split()[0]) == ["= A =\none\n= B =\ntwo", "= C =\nthree\n"]
    assert texts(dropped.split()[1]) == ["valid"]


def test_a_split_by_documents_goes_by_content(tmp_path: Path) -> None:
    poems = [f"poem {i}" for i in range(200)]
    write(tmp_path / "a.txt", "|".join(poems))
    random.Random(0).shuffle(poems)
    write(tmp_path / "b.txt", "|".join(poems))
    knobs = {"separator": r"\|", "split": "documents", "valid_share": 0.3}
    first, second = (
        [set(texts(part)) for part in text_source(tmp_path, files=[name], **knobs).split()]
        for name in ("a.txt", "b.txt")
    )
    assert first == second and not first[0] & first[1] and first[0] | first[1] == set(poems)
    assert 30 < len(first[1]) < 90


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "good.txt", "good")
    (tmp_path / "latin.txt").write_bytes(b"gr\xf6sse")
    for name, words in (
        ("empty.txt", r"files = '.*empty\.txt': is empty"),
        ("latin.txt", r"files = '.*latin\.txt': is not UTF-8: byte 0xf6 at offset 2"),
    ):
        with pytest.raises(ConfigError, match=words):
            list(text_source(tmp_path, files=[name]).split()[0])
        with pytest.raises(ConfigError, match="valid_" + words):
            list(text_source(tmp_path, files=["good.txt"], valid_files=[name]).split()[1])
    with pytest.raises(ConfigError, match=r"files\[1\] = 'absent\*\.txt': no such file"):
        text_source(tmp_path, files=["empty.txt", "absent*.txt"]).fingerprint()
    with pytest.raises(ConfigError, match=r"valid_files.*good\.txt is training text too"):
        text_source(tmp_path, files=["*.txt"], valid_files=["good.txt"]).split()
    with pytest.raises(ValueError, match="is no regular expression"):
        Source.parse({"kind": "text", "files": ["a"], "separator": "("})
    with pytest.raises(ValueError, match="files"):
        Source.parse({"kind": "text", "files": []})


# --- preparation ------------------------------------------------------------------------------------------------------


def data(tokenizer: object = "byte", **knobs: object) -> DataConfig:
    source = {"kind": "text", "files": ["train.txt"], "valid_files": ["valid.txt"], "separator": "@"}
    more = {"duplicates": "kept", **knobs}
    return DataConfig(source=Source.parse(source), tokenizer=Tokenizer.parse(tokenizer), **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(
        tmp_path / "train.txt", "@".join(f"Document {i} has größe {i * i} \u2581.\n" * (1 + i % 4) for i in range(60))
    )
    write(
        tmp_path / "valid.txt",
        "@".join(f"Other text {i} of größe {i}.\n" for i in range(20)) + "@Document 0 has größe 0 \u2581.\n",
    )
    return tmp_path


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


def test_damage_to_the_cache_is_found_and_repaired(folder: Path) -> None:
    cache = folder / "cache"
    first = prepare(data(), folder, cache)
    fingerprint, tokens = first.fingerprint, np.array(first.train)
    for path in sorted(p for p in cache.glob("*/*") if p.is_file()):
        raw = path.read_bytes()
        flipped = bytes([raw[0] ^ 1]) + raw[1:] if raw else b"more"
        for broken in (raw + b"x", raw[: len(raw) // 2] or b"y", flipped, None):
            path.unlink()
            if broken is not None:
                path.write_bytes(broken)
            with pytest.warns(UserWarning, match="is damaged"):
                again = prepare(data(), folder, cache)
            assert again.fingerprint == fingerprint and np.array_equal(again.train, tokens)
    assert not list(cache.glob(".*"))


def test_an_entry_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        entry(tmp_path, "key", fail)
    assert list(tmp_path.iterdir()) == []


def test_of_two_makers_the_second_waits_and_takes_what_the_first_made(tmp_path: Path) -> None:
    inside, waits, made = threading.Event(), threading.Event(), []

    def slow(folder: Path) -> None:
        inside.set()
        assert waits.wait(20)
        (folder / "a").write_text("first")
        made.append("first")

    def second() -> None:
        inside.wait(20)
        entry(tmp_path, "key", lambda folder: made.append("second"), waiting=waits.set)

    thread = threading.Thread(target=second)
    thread.start()
    folder = entry(tmp_path, "key", slow)
    thread.join()
    assert made == ["first"] and (folder / "a").read_text() == "first" and damage(folder) is None
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


@pytest.mark.filterwarnings("error")
def test_many_makers_at_once_agree(tmp_path: Path) -> None:
    barrier, found = threading.Barrier(8), []

    def make(folder: Path, n: int) -> None:
        for i in range(20):
            (folder / str(i)).write_text(str(n))

    def work(n: int) -> None:
        barrier.wait()
        folder = entry(tmp_path, "key", lambda f: make(f, n))
        found.append({(folder / str(i)).read_text() for i in range(20)})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(f == found[0] and len(f) == 1 for f in found)
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_a_cache_that_cannot_be_written_is_named(folder: Path) -> None:
    write(folder / "file", "not a folder")
    with pytest.raises(ConfigError, match=r"cannot write to the cache .*file.*ZOO_CACHE"):
        prepare(data(), folder, folder / "file" / "cache")


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


# --- batches ----------------------------------------------------------------------------------------------------------

streams = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**40), st.integers(0, 60))


@settings(deadline=None)
@given(streams)
def test_every_window_is_seen_once_per_epoch(shape: tuple[int, int, int, int, int]) -> None:
    context, rows, accumulate, seed, extra = shape
    tokens = np.arange(context + 1 + extra, dtype=np.uint16)
    batches = Batches(tokens, context, rows, seed, bos=0, accumulate=accumulate)
    n = (len(tokens) - 1) // context
    assert batches.windows == n
    seen: list[int] = []
    step = 0
    while len(seen) < 3 * n:
        step += 1
        for micro in range(accumulate):
            inputs, targets, none = batches.batch(step, micro)
            assert inputs.shape == targets.shape == (rows, context) and inputs.dtype == targets.dtype == torch.int64
            assert none is None and torch.equal(targets, inputs + 1)  # since token i is i
            assert (inputs[:, 0] % context == 0).all() and torch.equal(inputs, inputs[:, :1] + torch.arange(context))
            seen += (inputs[:, 0] // context).tolist()
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    tokens = np.random.default_rng(0).integers(0, 500, 5000).astype(np.uint16)

    def make(seed: int) -> Batches:
        return Batches(tokens, 16, 4, seed, bos=0, accumulate=2)

    ahead, fresh = make(1), make(1)
    for step in range(1, 300):
        ahead.batch(step)
    for step in (250, 3, 78, 79, 1):
        assert torch.equal(ahead.batch(step, 1)[0], fresh.batch(step, 1)[0])
    assert not torch.equal(make(1).batch(1)[0], make(2).batch(1)[0])
    assert not torch.equal(make(1).batch(1, 0)[0], make(1).batch(1, 1)[0])


def test_the_order_is_the_same_for_ever() -> None:
    batches = Batches(np.arange(1001, dtype=np.uint16), 10, 5, seed=7, bos=0)
    assert [batches.window(n) for n in range(5)] == [57, 61, 19, 41, 47]


def test_rows_number_their_documents() -> None:
    tokens = np.array([9, 1, 2, 9, 3, 9, 9, 4, 5, 6, 7, 8, 9], np.uint16)
    batches = Batches(tokens, 4, 3, seed=0, bos=9, document_mask="segments")
    inputs, _, numbers = batches.batch(1)
    for row, number in zip(inputs.tolist(), numbers.tolist(), strict=True):
        count = 0
        for token, n in zip(row, number, strict=True):
            count += token == 9
            assert n == count
    assert torch.equal(segments(torch.tensor([[1, 9, 9, 2]]), 9), torch.tensor([[0, 1, 2, 2]]))


def test_too_little_text_and_impossible_steps_are_refused() -> None:
    tokens = np.zeros(16, np.uint16)
    assert Batches(tokens, 15, 1, 0, bos=0).windows == 1
    with pytest.raises(ConfigError, match=r"context = 16: a window takes 17 tokens, the text has 16"):
        Batches(tokens, 16, 1, 0, bos=0)
    batches = Batches(tokens, 4, 1, 0, bos=0, accumulate=2)
    for step, micro in ((0, 0), (1, 2), (1, -1)):
        with pytest.raises(ValueError, match="no micro-batch"):
            batches.batch(step, micro)


# --- yardsticks -------------------------------------------------------------------------------------------------------


def naive_nats(train: list[int], valid: list[int], vocab_size: int, order: int) -> float:
    """Interpolated Witten-Bell with dictionaries, one token at a time."""
    tables: list[dict[tuple[int, ...], Counter[int]]] = [{} for _ in range(order + 1)]
    for width, table in enumerate(tables):
        for i in range(width, len(train)):
            table.setdefault(tuple(train[i - width : i]), Counter())[train[i]] += 1
    total = 0.0
    for i in range(1, len(valid)):
        p = 1 / vocab_size
        for width in range(min(order, i) + 1):
            seen = tables[width].get(tuple(valid[i - width : i]))
            if seen:
                p = (seen[valid[i]] + len(seen) * p) / (sum(seen.values()) + len(seen))
        total -= math.log(p)
    return total


token_lists = st.lists(st.integers(0, 4), min_size=2, max_size=40)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=60), token_lists, st.integers(0, 3))
def test_count_models_equal_counting_by_hand(train: list[int], valid: list[int], order: int) -> None:
    found = count_model_nats(np.array(train, np.uint16), np.array(valid, np.uint16), 5, order)
    assert found == pytest.approx([naive_nats(train, valid, 5, o) for o in range(order + 1)], rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=3, max_size=50), st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_a_count_model_is_a_distribution(train: list[int], context: list[int]) -> None:
    def nats(tokens: list[int]) -> float:
        return count_model_nats(np.array(train), np.array(tokens), 4, 2)[-1]

    before = nats(context) if len(context) > 1 else 0.0
    assert sum(math.exp(before - nats([*context, v])) for v in range(4)) == pytest.approx(1, abs=1e-12)


def test_nothing_is_gained_on_noise_and_much_on_repetition() -> None:
    noise = np.random.default_rng(0).integers(0, 64, 40_000)
    assert count_model_nats(noise[:20_000], noise[20_000:], 64, 2)[2] > 19_999 * math.log(64)
    cycle = np.arange(20_000) % 64
    assert count_model_nats(cycle, cycle[:1000], 64, 2)[2] < 0.05 * 999 * math.log(64)
    with pytest.raises(ValueError, match="do not fit"):
        count_model_nats(noise, noise, 2**32, 1)


@given(token_lists)
def test_unigram_entropy_is_that_of_the_scored_tokens(tokens: list[int]) -> None:
    scored = tokens[1:]
    expected = -sum(c / len(scored) * math.log(c / len(scored)) for c in Counter(scored).values())
    assert unigram_entropy(np.array(tokens)) == pytest.approx(expected, abs=1e-12)


def test_bytes_of_documents_stand_behind_a_bos_each() -> None:
    stream = byte_stream([Document("a", "é"), Document("b", "z")])
    assert stream.tolist() == [BOS, 0xC3, 0xA9, BOS, ord("z")]
    assert byte_stream([]).tolist() == []


def test_yardsticks_of_a_text_agree_with_their_parts(folder: Path) -> None:
    found = prepare(data({"kind": "sentencepiece", "vocab_size": 330}), folder, folder / "cache")
    got = baselines(found, folder / "cache")
    raw = [byte_stream(found.documents(part)) for part in ("train", "valid")]
    text = b"".join(t.encode() for t in texts(found.documents("valid")))
    expected = Baselines(
        unigram_entropy(found.valid),
        unigram_entropy(found.valid) * (len(found.valid) - 1) / math.log(2) / found.valid_bytes,
        naive_nats(found.train.tolist(), found.valid.tolist(), 330, 1) / math.log(2) / found.valid_bytes,
        naive_nats(found.train.tolist(), found.valid.tolist(), 330, 2) / math.log(2) / found.valid_bytes,
        naive_nats(raw[0].tolist(), raw[1].tolist(), 257, 1) / math.log(2) / len(text),
        naive_nats(raw[0].tolist(), raw[1].tolist(), 257, 2) / math.log(2) / len(text),
        xz_bits_per_byte(text),
    )
    assert got == pytest.approx(expected, rel=1e-9)
    (counted,) = (folder / "cache").glob("counts-*/counts.json")
    before = counted.stat().st_mtime_ns
    assert baselines(found, folder / "cache") == got and counted.stat().st_mtime_ns == before

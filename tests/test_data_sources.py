"""Where text comes from: the standard library, and files of one's own."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realdata import real
from texts import TOOLS, texts, write

from zoo.core.part import ConfigError
from zoo.data import stdlib
from zoo.data.slots import Source

# -- the standard library --------------------------------------------------------------------------------------------


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


# -- files of your own -----------------------------------------------------------------------------------------------


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

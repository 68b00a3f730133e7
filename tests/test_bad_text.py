"""Text, tokenizers and caches that cannot be, met on the command line: one message, exit code 2, nothing left behind."""

from __future__ import annotations

import gzip
import io
import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import Result as Ended
from test_cli import ablate, files
from test_shards import write as write_shard
from typer.testing import CliRunner

from recipes import SMALL, write


def rows(n: int) -> bytes:
    return b"".join(json.dumps({"text": f"row {i} of a text that is long enough"}).encode() + b"\n" for i in range(n))


ROWS = rows(200)
BYTES = np.tile(np.concatenate([[256], np.frombuffer(b"some text in bytes", np.uint8)]), 40)


def hf(name: str, *files_: str, **knobs: object) -> str:
    more = "".join(f", {knob} = {json.dumps(value)}" for knob, value in knobs.items())
    return f'{{ kind = "hf", name = "{name}", files = {json.dumps(list(files_))}{more} }}'


SHARDS = '{ kind = "shards", train = ["train.bin"], valid = ["valid.bin"] }'


def parquet(column: list[object], kind: pyarrow.DataType) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(column, kind)}), file)
    return file.getvalue()


def shards(folder: Path, **wrong: int) -> None:
    write_shard(folder / "train.bin", BYTES, **wrong)
    write_shard(folder / "valid.bin", BYTES)


def one(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


CASES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no such column": (
        one("a.jsonl", ROWS.replace(b'"text"', b'"body"')),
        hf("json", "a.jsonl"),
        "data.source.column = 'text': no such column; there are: body",
    ),
    "no such column in parquet": (
        one("a.parquet", parquet(["x"], pyarrow.string())),
        hf("parquet", "a.parquet", column="txet"),
        "data.source.column = 'txet': no such column; there are: text",
    ),
    "a column of numbers": (
        one("a.parquet", parquet([5], pyarrow.int64())),
        hf("parquet", "a.parquet"),
        "data.source.column = 'text': holds int and not text in row 0",
    ),
    "no rows": (one("a.jsonl", b""), hf("json", "a.jsonl"), "is empty: it has not one row"),
    "no rows in parquet": (
        one("a.parquet", parquet([], pyarrow.string())),
        hf("parquet", "a.parquet"),
        "is empty: it has not one row",
    ),
    "rows without a word": (one("a.jsonl", b'{"text": ""}\n' * 9), hf("json", "a.jsonl"), "leaves no train text"),
    "no such file": (one("b.jsonl", ROWS), hf("json", "a.jsonl"), "data.source.files[0] = 'a.jsonl': no such file"),
    "no such builder": (
        one("a.jsonl", ROWS),
        hf("jsonn", "a.jsonl"),
        "data.source.name = 'jsonn': is no builder for files; did you mean 'json'?",
    ),
    "no UTF-8": (one("a.jsonl", ROWS + b'{"text": "caf\xe9"}\n'), hf("json", "a.jsonl"), "UTF-8"),
    "no UTF-8 in lines": (one("a.txt", b"caf\xe9\n" * 9), hf("text", "a.txt"), "is not UTF-8: byte 0xe9"),
    "no UTF-8 packed": (one("a.txt.gz", gzip.compress(b"caf\xe9\n" * 9)), hf("text", "a.txt.gz"), "UTF-8"),
    "half a character": (one("a.jsonl", b'{"text": "a\\ud800b"}\n' * 9), hf("json", "a.jsonl"), ""),
    "cut off": (one("a.jsonl.gz", gzip.compress(ROWS)[:300]), hf("json", "a.jsonl.gz"), "cannot be read: "),
    "no parquet": (one("a.parquet", ROWS), hf("parquet", "a.parquet"), "cannot be read: "),
    "no shard": (lambda f: shards(f, magic=20240521), SHARDS, "is no token shard: it does not begin with 20240520"),
    "another version": (lambda f: shards(f, version=2), SHARDS, "of version 2; only 1 is known"),
    "a shard too long": (lambda f: shards(f, n=9), SHARDS, "but its header speaks of 9 tokens"),
    "a shard too short": (lambda f: shards(f, n=99_999), SHARDS, "but its header speaks of 99,999 tokens"),
    "other ids": (
        lambda f: (shards(f), write_shard(f / "train.bin", np.append(BYTES, 300))),
        SHARDS,
        "data.tokenizer = 'byte': has 257 ids, but the train shards hold id 300",
    ),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ZOO_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    return cache


def call(*words: object) -> Ended:
    """One command in this process; an exception that gets out is a failure of the test."""
    ended = CliRunner().invoke(ablate.app, [str(word) for word in words])
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended


def recipe(folder: Path, source: str) -> Path:
    old = 'source = { kind = "text", files = ["text.txt"] }'
    assert old in SMALL
    return write(folder, start=SMALL.replace(old, f"source = {source}"))


@pytest.mark.parametrize("case", CASES)
def test_bad_text_is_one_message_and_leaves_nothing(tmp_path: Path, own_cache: Path, case: str) -> None:
    make, source, words = CASES[case]
    make(tmp_path)
    path = recipe(tmp_path, source)
    before = files(tmp_path)
    for command in ((path, "--workers", 0), ("tokens", path)):
        ended = call(*command)
        assert ended.exit_code == 2, ended.output
        assert "Traceback" not in ended.stderr and words in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
    assert files(tmp_path) == before
    left = [p for p in own_cache.rglob("*") if "datasets" not in p.parts and not p.name.startswith("tokenizer-")]
    assert not [p for p in left if "tokenizer-" not in str(p)]


@contextmanager
def full_disk(n_bytes: int) -> Iterator[None]:
    """No file may grow beyond ``n_bytes``, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("n_bytes", [0, 500, 20_000])  # the tokenizer's file, the journal's, the tokens'
@pytest.mark.parametrize("streaming", [True, False])
def test_a_full_disk_is_one_message_and_leaves_nothing(
    tmp_path: Path, own_cache: Path, n_bytes: int, streaming: bool
) -> None:
    (tmp_path / "a.jsonl").write_bytes(rows(2000))
    path = recipe(tmp_path, hf("json", "a.jsonl", streaming=streaming))
    with full_disk(n_bytes):
        ended = call("tokens", path)
    assert ended.exit_code == 2 and "Traceback" not in ended.stderr, ended.output
    assert f"the cache {own_cache} has no room left" in ended.stderr and "ZOO_CACHE" in ended.stderr
    assert not list(own_cache.glob(".*")) and not list(own_cache.glob("tokens-*"))
    assert call("tokens", path).exit_code == 0


@pytest.mark.parametrize("place", ["file/cache", "file"])
def test_a_cache_that_takes_nothing_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / place))
    ended = call(write(tmp_path), "--workers", 0)
    assert ended.exit_code == 2 and f"cannot write to the cache {tmp_path / place}" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1 and not (tmp_path / "results").exists()


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="/proc takes no folders, not even from root; only Linux has it"
)
def test_a_cache_where_no_folder_can_be_made_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", "/proc/cache")
    ended = call(write(tmp_path), "--workers", 0)
    assert ended.exit_code == 2 and "cannot write to the cache /proc/cache" in ended.stderr
    assert "Traceback" not in ended.stderr

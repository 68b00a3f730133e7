"""Datasets by the hub's protocol from a server that fails, and local files through the same code."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import FAULTS, Hub, serving

from zoo.core.part import ConfigError
from zoo.data import hub, retries
from zoo.data.hub import HubSource
from zoo.data.slots import Document, Source, Unfinished

KNOBS = {"shuffle_buffer": 50}
CARD = (
    b"---\nconfigs:\n- config_name: cosmo\n  data_files:\n  - split: train\n    path: cosmo/train-*\n"
    b"- config_name: other\n  data_files:\n  - split: train\n    path: other/*\n---\n"
)


def parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    table = pyarrow.table({"prompt": [t[:3] for t in texts], "text": texts})
    pyarrow.parquet.write_table(table, file, row_group_size=100)
    return file.getvalue()


def rows(shard: int) -> list[str]:
    rng = random.Random(shard)
    return [f"Row {i} of shard {shard}: " + "".join(rng.choices("abc déf\n", k=150)) for i in range(300)]


@pytest.fixture(scope="module")
def dataset() -> dict[str, bytes]:
    shards = {f"cosmo/train-{i:05d}-of-00010.parquet": parquet(rows(i)) for i in range(10)}
    return {"README.md": CARD, **shards, "other/a.parquet": parquet(["no"])}


def read(server: Hub, cache: Path, **knobs: object) -> dict[str, object]:
    """Prepare the server's dataset in another process."""
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]),
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(cache / "hub"),
        "ZOO_CACHE": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    words = [sys.executable, str(here / "hub_reading.py"), str(cache), json.dumps(knobs)]
    done = subprocess.run(words, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def plan(n: int, seed: int) -> list[str | None]:
    """``n`` faults of all kinds, in bursts of one to nine, since six in a row are what the hub's library bears by itself."""
    rng = random.Random(seed)
    kinds = [FAULTS[i % len(FAULTS)] for i in range(n)]
    rng.shuffle(kinds)
    faults: list[str | None] = []
    while kinds:
        burst = rng.choice([1, 2, 7, 9])
        faults += [*kinds[:burst], None]
        kinds = kinds[burst:]
    return faults


@pytest.fixture(scope="module")
def quiet(dataset: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What comes of an undisturbed reading."""
    cache = tmp_path_factory.mktemp("quiet")
    with serving(dataset) as server:
        found = read(server, cache, **KNOBS)
    assert found["waits"] == [] and found["lines"] == [] and int(found["documents"]) > 2900
    return {**found, "tokens": next(cache.glob("tokens-*/train.tokens")).read_bytes()}


@pytest.mark.parametrize("n", [12, pytest.param(50, marks=pytest.mark.slow)])
def test_faults_do_not_change_the_stream(
    dataset: dict[str, bytes], quiet: dict[str, object], tmp_path: Path, n: int
) -> None:
    with serving(dataset, plan(n, n)) as server:
        stormy = read(server, tmp_path, **KNOBS)
    assert sorted(server.failed) == sorted(FAULTS[i % len(FAULTS)] for i in range(n)) and not server.plan
    assert stormy["fingerprint"] == quiet["fingerprint"]
    assert next(tmp_path.glob("tokens-*/train.tokens")).read_bytes() == quiet["tokens"]
    assert stormy["waits"] and len(stormy["lines"]) <= n + len(stormy["waits"])
    assert all("\n" not in line for line in stormy["lines"])
    again = [line for line in stormy["lines"] if "again from document" in line]
    assert len(again) == len(stormy["waits"])


def test_a_server_that_stays_away_stops_the_run_with_everything_saved(
    dataset: dict[str, bytes], quiet: dict[str, object], tmp_path: Path
) -> None:
    with serving(dataset, [None] * 7 + ["503"] * 200) as server:
        lost = read(server, tmp_path, retries=2, **KNOBS)
        assert lost["type"] == "Unfinished"
        assert "cannot be read on at document" in lost["error"] and "after 3 tries" in lost["error"]
        assert "give the same command again" in lost["error"] and "503" in lost["error"]
        (journal,) = tmp_path.glob(".making-*/journal.json")
        kept = json.loads(journal.read_text())
        assert kept["documents"] > 500 and kept["mark"][0] > 0
        assert len(lost["waits"]) == 2 and 0.5 <= lost["waits"][0] <= 1 <= lost["waits"][1] <= 2
    with serving(dataset) as server:
        found = read(server, tmp_path, **KNOBS)
        assert found["fingerprint"] == quiet["fingerprint"]
        assert server.answered < 10  # shards that had been read are not read again


def test_a_pause_doubles_up_to_a_minute_and_is_cut_by_chance() -> None:
    for failed, most in ((1, 1), (2, 2), (5, 16), (9, 60), (60, 60)):
        drawn = [retries.pause(failed) for _ in range(200)]
        assert most / 2 <= min(drawn) < max(drawn) <= most and len(set(drawn)) > 100


class Refusal(Exception):
    def __init__(self, code: int) -> None:
        self.response = type("Response", (), {"status_code": code})()


@pytest.mark.parametrize(
    ("fault", "passes"),
    [
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (EOFError(), True),
        (Refusal(429), True),
        (Refusal(503), True),
        (Refusal(404), False),
        (Refusal(401), False),
        (FileNotFoundError(), False),
        (ValueError(), False),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), False),
        (pyarrow.ArrowInvalid("cut"), True),
    ],
)
def test_faults_that_may_pass(fault: Exception, passes: bool) -> None:
    assert retries.may_pass(fault) is passes
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = fault
    assert retries.may_pass(wrapped) is (passes or isinstance(fault, FileNotFoundError))


# --- local files through the same code --------------------------------------------------------------------------------

TEXTS = [f"row {i} größe\nsecond line of {i}" for i in range(700)]


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a.parquet": ("parquet", lambda: parquet(TEXTS)),
    "a.jsonl": ("json", lambda: lines(TEXTS)),
    "a.jsonl.gz": ("json", lambda: gzip.compress(lines(TEXTS))),
    "a.txt": ("text", lambda: "\n".join(t.replace("\n", " ") for t in TEXTS).encode()),
}


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., HubSource]:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "EVERY", 100)

    def make(file: str, content: bytes | None = None, **knobs: object) -> HubSource:
        builder, write = FILES.get(file, ("json", lambda: b""))
        (tmp_path / file).write_bytes(write() if content is None else content)
        return Source.parse({"kind": "hf", "name": builder, "files": [file], **knobs}).build(tmp_path)

    return make


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("shuffle_buffer", [0, 64])
def test_a_stream_can_be_taken_up_anywhere(
    local: Callable[..., HubSource], file: str, streaming: bool, shuffle_buffer: int
) -> None:
    knobs = {"streaming": streaming, "shuffle_buffer": shuffle_buffer, "valid_share": 0.2}
    whole = list(local(file, **knobs).stream())
    expected = [t.replace("\n", " ") for t in TEXTS] if file == "a.txt" else TEXTS
    assert sorted(d.text for _, d in whole) == sorted(expected)
    assert ([d.text for _, d in whole] == expected) is (shuffle_buffer == 0)
    for start, then in ((0, 5), (1, 370), (333, 640), (640, 699), (699, 700)):
        first = local(file, **knobs)
        ahead = list(islice(first.stream(start), then - start + 90))  # reading is ahead of what has been prepared
        assert ahead == whole[start : then + 90]
        mark = json.loads(json.dumps(first.mark(then)))
        assert list(local(file, **knobs).stream(then, mark)) == whole[then:]
    train, valid = local(file, **knobs).split()
    assert {d for p, d in whole if p == "train"} == set(train) and 90 < len(list(valid)) < 190


def test_the_seed_decides_the_order_of_a_shuffle(local: Callable[..., HubSource]) -> None:
    def order(**knobs: object) -> list[Document]:
        return [d for _, d in local("a.jsonl", shuffle_buffer=100, **knobs).stream()]

    assert order(seed=1) == order(seed=1) != order(seed=2)
    assert {d.text for d in order()[:100]} == set(TEXTS[:100])


def test_a_local_corpus_is_known_by_its_content(local: Callable[..., HubSource], tmp_path: Path) -> None:
    first = local("a.jsonl").fingerprint()
    assert local("a.jsonl", retries=2).fingerprint() == first
    assert local("a.jsonl", lines(TEXTS[:-1])).fingerprint() != first
    assert local("a.jsonl", column="body").fingerprint() != first


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("col.jsonl", lines(TEXTS).replace(b'"text"', b'"body"'), r"^column = 'text': no such column; there are: body"),
        ("num.jsonl", b'{"text": 5}\n', r"^column = 'text': holds int and not text in row 0"),
        ("bad.jsonl", lines(TEXTS) + b'{"text": ', r"^files = .*: cannot be read: JSON parse error"),
        ("cut.jsonl.gz", gzip.compress(lines(TEXTS))[:900], r"^files = .*: cannot be read: Compressed file ended"),
        ("empty.jsonl", b"", r"^files = .*: is empty"),
        ("latin.jsonl", b'{"text": "gr\xf6sse"}\n', r"^files = .*: (is not UTF-8|cannot be read: .*UTF-?8)"),
    ],
)
def test_local_files_that_cannot_be_read_are_named_at_once(
    local: Callable[..., HubSource], monkeypatch: pytest.MonkeyPatch, file: str, content: bytes, words: str
) -> None:
    monkeypatch.setattr(retries, "wait", lambda seconds: pytest.fail("waited for a local file"))
    with pytest.raises(ConfigError, match=words) as caught:
        list(local(file, content).stream())
    assert not isinstance(caught.value, Unfinished)


def test_missing_values_are_empty_documents(local: Callable[..., HubSource]) -> None:
    source = local("n.jsonl", b'{"text": "a"}\n{"text": null}\n{"text": "c"}\n')
    assert [d.text for _, d in source.stream()] == ["a", "", "c"]

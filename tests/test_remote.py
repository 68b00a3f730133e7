"""Data files behind addresses: fetched whole however the server fails, and local files from then on."""

from __future__ import annotations

import json
import logging
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import FAULTS, Hub, serving

from zoo.core.part import ConfigError
from zoo.data import remote, retries
from zoo.data.hub import HubSource
from zoo.data.prepare import prepare
from zoo.data.slots import Source, Tokenizer, Unfinished
from zoo.recipe import DataConfig

TEXTS = [f"row {i} größe " + random.Random(i).randbytes(40).hex() for i in range(900)]
LINES = "".join(json.dumps({"text": t}) + "\n" for t in TEXTS).encode()


@pytest.fixture(autouse=True)
def waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses that were asked for; nobody waits."""
    found: list[float] = []
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(retries, "wait", found.append)
    monkeypatch.setattr(remote, "TIMEOUT", 0.2)
    monkeypatch.setattr(remote, "PIECE", 5000)
    return found


def source(server: Hub, file: str = "a.jsonl", **knobs: object) -> HubSource:
    address = f"{server.url}/files/{file}"
    return Source.parse({"kind": "hf", "name": "json", "files": [address], **knobs}).build(Path())


def local(folder: Path) -> HubSource:
    (folder / "a.jsonl").write_bytes(LINES)
    return Source.parse({"kind": "hf", "name": "json", "files": ["a.jsonl"]}).build(folder)


def storm(n: int) -> Iterator[str | None]:
    rng = random.Random(n)
    kinds = [FAULTS[i % len(FAULTS)] for i in range(n)]
    rng.shuffle(kinds)
    return iter(kinds)


@pytest.mark.parametrize("n", [0, 8])
def test_a_file_behind_an_address_is_the_file_itself(
    tmp_path: Path, waits: list[float], caplog: pytest.LogCaptureFixture, n: int
) -> None:
    with serving({"a.jsonl": LINES}, list(storm(n))) as server, caplog.at_level(logging.WARNING, "zoo"):
        found = source(server)
        assert found.fingerprint() == local(tmp_path).fingerprint()
        whole = [(part, d.text) for part, d in found.stream()]
        assert server.answered == 1 and len(server.failed) == n
    assert whole == [(part, d.text) for part, d in local(tmp_path).stream()] and len(whole) == 900
    assert len(waits) == n == len(caplog.messages)
    assert all("again from byte" in line and "\n" not in line for line in caplog.messages)


def test_what_has_been_fetched_is_not_asked_for_again(tmp_path: Path) -> None:
    """Half of the rest arrives each time; nothing twice."""
    sent: list[int] = []

    with serving({"a.jsonl": LINES}, ["truncate"] * 3) as server:
        send = server.RequestHandlerClass.send

        def counted(self: object, code: int, body: bytes = b"", headers: object = None, cut: int | None = None) -> None:
            sent.append(len(body[:cut]))
            send(self, code, body, headers, cut)

        server.RequestHandlerClass = type("Counted", (server.RequestHandlerClass,), {"send": counted})
        path = remote.fetched(f"{server.url}/files/a.jsonl", 8)
    assert path.read_bytes() == LINES and path.name == "a.jsonl"
    assert len(sent) == 4 and sum(sent) == len(LINES)
    assert remote.fetched(f"{server.url}/files/a.jsonl", 8) == path  # the server is gone


def test_a_file_that_changes_meanwhile_is_fetched_from_its_beginning() -> None:
    for other in (LINES[::-1], LINES[: len(LINES) // 4]):
        with serving({"a.jsonl": LINES}, ["truncate"] + ["503"] * 3) as server:
            address = f"{server.url}/files/a.jsonl"
            with pytest.raises(Unfinished):
                remote.fetched(address, 2)
            server.files["a.jsonl"], server.plan = other, []
            assert remote.fetched(address, 2).read_bytes() == other


def test_a_server_that_stays_away_stops_the_run_with_everything_kept(tmp_path: Path, waits: list[float]) -> None:
    with serving({"a.jsonl": LINES}, ["truncate"] + ["503"] * 3) as server:
        with pytest.raises(Unfinished, match=r"^files = .*a\.jsonl': cannot be read on at byte [1-9].* after 3 tries"):
            source(server, retries=2).fingerprint()
        (part,) = (tmp_path / "cache").glob(".making-*/part")
        assert part.read_bytes() == LINES[: len(LINES) // 2]
        server.plan = []
        assert source(server).fingerprint() == local(tmp_path).fingerprint()
        assert not list((tmp_path / "cache").glob(".*"))
    assert len(waits) == 2


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("gone.jsonl", None, r"^files = .*gone\.jsonl': cannot be read: HTTP Error 404"),
        ("empty.jsonl", b"", r"^files = .*: is empty"),
        ("page.jsonl", b"<html>log in</html>", r"^files = .*: cannot be read: JSON parse error"),
    ],
)
def test_what_no_waiting_will_mend_is_named_at_once(
    tmp_path: Path, waits: list[float], file: str, content: bytes | None, words: str
) -> None:
    with (
        serving({} if content is None else {file: content}) as server,
        pytest.raises(ConfigError, match=words) as caught,
    ):
        found = source(server, file)
        found.fingerprint()
        list(found.stream())
    assert not isinstance(caught.value, Unfinished) and not waits
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_disk_without_room_is_named_and_nothing_stays(tmp_path: Path, waits: list[float]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving({"a.jsonl": LINES}) as server:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (20_000, hard)
        )  # no file may grow beyond that, as if the disk were full
        try:
            with pytest.raises(ConfigError, match=r"the cache .* has no room left .* ZOO_CACHE"):
                source(server).fingerprint()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not waits and not list((tmp_path / "cache").iterdir())


def test_a_preparation_reads_it_like_any_other_text(tmp_path: Path) -> None:
    def data(made: HubSource) -> DataConfig:
        return DataConfig(source=made.config, tokenizer=Tokenizer.parse("byte"))

    with serving({"a.jsonl": LINES}) as server:
        found = prepare(data(source(server)), tmp_path, tmp_path / "one")
    again = prepare(data(source(server)), tmp_path, tmp_path / "one")  # the server is gone
    assert prepare(data(local(tmp_path)), tmp_path, tmp_path / "two").fingerprint == found.fingerprint
    assert again.fingerprint == found.fingerprint and int(found.facts["train_documents"]) > 850

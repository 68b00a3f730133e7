"""The cache of prepared text: entries whole or not at all, damage repaired, one maker at a time."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from texts import data, write
from texts import folder as folder

from zoo.core.part import ConfigError
from zoo.data.cache import damage, entry
from zoo.data.prepare import prepare


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


def test_an_entry_that_is_finished_while_its_folder_is_looked_for_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir, refused = os.mkdir, []

    def gone_by_now(path: Path, *mode: int) -> None:
        if not refused and path != tmp_path:
            refused.append(path)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        mkdir(path, *mode)

    monkeypatch.setattr(os, "mkdir", gone_by_now)
    folder = entry(tmp_path, "key", lambda f: (f / "text").write_text("whole"))
    assert refused and (folder / "text").read_text() == "whole"


def test_a_cache_that_cannot_be_written_is_named(folder: Path) -> None:
    write(folder / "file", "not a folder")
    with pytest.raises(ConfigError, match=r"cannot write to the cache .*file.*ZOO_CACHE"):
        prepare(data(), folder, folder / "file" / "cache")

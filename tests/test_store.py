"""The store: whole results or none, whoever is killed when."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from stored import fake_result
from stored import no_training as no_training
from stored import own_cache as own_cache

from zoo.core.part import ConfigError
from zoo.recipe import dumps
from zoo.resolve import loads
from zoo.trials.address import address
from zoo.trials.store import Store, slug, write_whole

ADDRESS = "0123456789abcdef"


def test_a_draft_that_is_not_committed_vanishes(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), loads("")
    with pytest.raises(RuntimeError), store.opened(recipe, ADDRESS, tmp_path) as draft:
        (draft.folder / "log.jsonl").write_text("{}")
        assert store.find(ADDRESS) is None
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_commit_replaces_an_older_result(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), loads("")
    for status in ("failed", "done"):
        with store.opened(recipe, ADDRESS, tmp_path) as draft:
            (draft.folder / status).write_text("")
            draft.commit(fake_result(recipe, status))
    (folder,) = tmp_path.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["done", "recipe.toml", "result.json"]
    assert store.find(ADDRESS).status == "done"


def test_a_damaged_result_counts_as_none(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), loads("")
    with store.opened(recipe, ADDRESS, tmp_path) as draft:
        draft.commit(fake_result(recipe))
    (store.folder(recipe, ADDRESS) / "result.json").write_text('{"status": "done"')
    assert store.find(ADDRESS) is None


def hidden(root: Path, name: str, checkpoint: bool = False) -> Path:
    folder = root / f".{name}-seed0-{ADDRESS}.draft"
    (folder / "resume").mkdir(parents=True)
    (folder / "resume" / ("step_00000003.safetensors" if checkpoint else "step_00000003.safetensors.partial")).touch()
    return folder


def test_what_nobody_can_go_on_with_is_swept_and_what_a_living_process_has_is_not(tmp_path: Path) -> None:
    held, kept, swept = hidden(tmp_path, "held"), hidden(tmp_path, "kept", checkpoint=True), hidden(tmp_path, "swept")
    code = "import sys, time; from pathlib import Path; from zoo.trials.lock import Lock; lock = Lock.of(Path(sys.argv[1]));"
    code += "print(lock is not None, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(held)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        Store(tmp_path).sweep()
        assert {p.name for p in tmp_path.iterdir()} == {held.name, kept.name} and not swept.exists()
        holder.kill()
    Store(tmp_path).sweep()  # a lock ends with its process, however that ends
    assert {p.name for p in tmp_path.iterdir()} == {kept.name}


def test_a_half_done_trial_is_taken_up_under_any_name_but_not_with_other_source(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), loads("")
    renamed = recipe.model_copy(update={"variant": "renamed"})
    for opened, code, goes_on in ((recipe, "a", False), (renamed, "a", True), (renamed, "b", False)):
        with store.opened(opened, ADDRESS, tmp_path, code) as draft:
            assert (draft.folder / "resume").exists() == goes_on
            (draft.folder / "resume").mkdir(exist_ok=True)
            (draft.folder / "resume" / "step_00000003.safetensors").touch()
        assert [p.name for p in tmp_path.iterdir()] == [f".{store.folder(opened, ADDRESS).name}.{code}"]


def test_two_that_open_one_trial_at_once_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.trials.store.PATIENCE", 0.2)
    store, recipe = Store(tmp_path), loads("")
    with store.opened(recipe, ADDRESS, tmp_path) as one, store.opened(recipe, ADDRESS, tmp_path) as other:
        assert one.folder != other.folder
        for draft in (one, other):
            draft.commit(fake_result(recipe))
    assert [p.name for p in tmp_path.iterdir()] == [store.folder(recipe, ADDRESS).name]


def test_a_failed_trial_keeps_its_checkpoints_and_a_finished_one_does_not(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), loads("")
    for status, found in (("failed", False), ("failed", True), ("done", True), ("done", False)):
        with store.opened(recipe, ADDRESS, tmp_path) as draft:
            assert (draft.folder / "resume").exists() == found and not (draft.folder / "result.json").exists()
            (draft.folder / "resume").mkdir(exist_ok=True)
            (draft.folder / "resume" / "step_00000003.safetensors").touch()
            draft.commit(fake_result(recipe, status))
        assert [p.name for p in tmp_path.iterdir()] == [store.folder(recipe, ADDRESS).name]
        assert (store.folder(recipe, ADDRESS) / "resume").exists() == (status == "failed")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with (
        pytest.raises(ConfigError, match="out: cannot be written"),
        Store(tmp_path / "out").opened(loads(""), ADDRESS, tmp_path),
    ):
        pass


def dies_before_change(root: Path, n: int) -> bool:
    """Commit a result in a forked process that kills itself before its n-th change on the disk; whether it survived."""
    child = os.fork()
    if child == 0:
        left = [n]

        def watched(event: str, args: tuple[object, ...]) -> None:
            if event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1  # whatever happens in here, no second run of the tests may come out of it
        try:
            sys.addaudithook(watched)
            with Store(root).opened(loads(""), ADDRESS, Path(".")) as draft:
                (draft.folder / "log.jsonl").write_text("{}")
                draft.commit(fake_result(loads(""), reason=str(n)))
            status = 0
        finally:
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGKILL)
    return ended == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork")
@pytest.mark.parametrize("earlier", [False, True])
def test_a_kill_at_any_moment_leaves_the_whole_result_or_none(tmp_path: Path, earlier: bool) -> None:
    store, survived, n = Store(tmp_path / "out"), False, 0
    while not survived:
        shutil.rmtree(store.root, ignore_errors=True)
        if earlier:
            assert dies_before_change(store.root, 1000)
        survived = dies_before_change(store.root, n)
        folders = list(store.root.glob("[!.]*"))  # hidden ones are nobody's result
        for folder in folders:
            assert {path.name for path in folder.iterdir()} == {"recipe.toml", "log.jsonl", "result.json"}
        found = store.find(ADDRESS)
        assert (found is not None) == bool(folders)
        assert not survived or found.reason == str(n)
        n += 1
    assert n > 8  # that many changes there were at which it died
    store.sweep()
    assert [path.name for path in store.root.iterdir()] == [store.folder(loads(""), ADDRESS).name]


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.md"
    write_whole(path, "one")
    write_whole(path, "two")
    assert path.read_text() == "two" and [p.name for p in path.parent.iterdir()] == ["table.md"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mla", "mla"),
        ("gqa moe, sane rate", "gqa-moe-sane-rate"),
        ("../../etc", "etc"),
        ("  ", "arm"),
        ("größe", "größe"),
    ],
)
def test_names_become_folders_that_stay_inside(name: str, folder: str) -> None:
    assert slug(name) == folder


def test_a_stored_recipe_says_everything(tmp_path: Path) -> None:
    recipe = loads("name = 'x'\n[model]\ndim = 8\n")
    with Store(tmp_path).opened(recipe, ADDRESS, tmp_path) as draft:
        text = (draft.folder / "recipe.toml").read_text()
    assert text == dumps(recipe.model_copy(update={"base": ".."}))
    assert SimpleNamespace(**tomllib.loads(text)["model"]).dim == 8


def test_when_checkpoints_are_written_is_no_part_of_the_address(tmp_path: Path) -> None:
    text = "[train]\nsteps = 3\n{}"
    one, other, longer = (
        address(loads(text.format(more)), "data", tmp_path)
        for more in ("", "checkpoint_every = 1\ncheckpoint_minutes = 'none'\n", "batch = 9\n")
    )
    assert one == other != longer

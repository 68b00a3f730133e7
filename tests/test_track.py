"""Trackers: each library's own files, offline, say what the log says; what fails is said once and stops nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ablate import app
from recipes import write
from zoo.core.part import Part
from zoo.track.slots import Tracker

GRID = '[grid]\n"model.layer.ffn.hidden_dim" = [32, 40]\n'


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def guests() -> Iterator[None]:
    """Kinds made in a test are gone after it."""
    kinds = Part.slots["tracker"].kinds
    before = dict(kinds)
    yield
    kinds.clear()
    kinds.update(before)


def run(folder: Path, track: str) -> tuple[Path, str]:
    recipe = write(folder, f"{track}\n{GRID}")
    done = CliRunner().invoke(app, [str(recipe), "--out", str(folder / "out"), "--workers", "0"])
    assert done.exit_code == 0, done.output
    return folder / "out", done.output


def logged(out: Path, name: str = "hidden_dim=32-seed0") -> dict[int, dict]:
    (folder,) = out.glob(f"{name}-*")
    return {row["step"]: row for row in map(json.loads, (folder / "log.jsonl").read_text().splitlines())}


def final(out: Path, name: str = "hidden_dim=32-seed0") -> dict:
    (folder,) = out.glob(f"{name}-*")
    return json.loads((folder / "result.json").read_text())


def test_tensorboard_files_are_the_default_and_hold_the_log(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, _ = run(tmp_path, "")
    assert {p.name for p in (out / "tensorboard").iterdir()} == {"hidden_dim=32-seed0", "hidden_dim=40-seed0"}
    events = EventAccumulator(str(out / "tensorboard" / "hidden_dim=32-seed0"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == pytest.approx({step: row["loss"] for step, row in logged(out).items()})
    assert events.Scalars("final/bits_per_byte")[0].value == pytest.approx(final(out)["bits_per_byte"])


def test_no_tracker_writes_nothing(tmp_path: Path):
    out, _ = run(tmp_path, "track = []")
    assert not (out / "tensorboard").exists()


def test_mlflow_keeps_each_trial_as_a_run(tmp_path: Path):
    out, said = run(tmp_path, 'track = ["mlflow"]')
    assert "tracker" not in said
    base = sqlite3.connect(out / "mlflow.db")
    runs = dict(base.execute("select name, run_uuid from runs where status = 'FINISHED'"))
    assert set(runs) == {"hidden_dim=32-seed0", "hidden_dim=40-seed0"}
    of = runs["hidden_dim=32-seed0"]
    losses = dict(base.execute("select step, value from metrics where run_uuid = ? and key = 'loss'", (of,)))
    assert losses == pytest.approx({step: row["loss"] for step, row in logged(out).items()})
    params = dict(base.execute("select key, value from params where run_uuid = ?", (of,)))
    assert params["model.layer.ffn.hidden_dim"] == "32" and params["train.steps"] == "6"


def test_wandb_writes_offline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    out, said = run(tmp_path, 'track = [{ kind = "wandb", mode = "offline" }]')
    assert "tracker" not in said
    files = sorted(out.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert b"hidden_dim=32-seed0" in b"".join(path.read_bytes() for path in files)


def test_trackio_keeps_each_trial_as_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import trackio.sqlite_storage
    import trackio.utils

    for module in (trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    out, said = run(tmp_path, 'track = ["trackio"]')
    assert "tracker" not in said
    (base,) = (tmp_path / "trackio").glob("*.db")
    rows = sqlite3.connect(base).execute("select run_name, step, metrics from metrics").fetchall()
    own = {step: json.loads(m) for name, step, m in rows if name == "hidden_dim=32-seed0" and b'"final/' not in m}
    assert {step: figures["loss"] for step, figures in own.items()} == pytest.approx(
        {step: row["loss"] for step, row in logged(out).items()}
    )
    assert any(b'"final/bits_per_byte"' in m for _, _, m in rows)


def test_a_tracker_that_fails_is_said_once_and_stops_nothing(tmp_path: Path, guests: None):
    class Broken(Tracker, kind="broken"):
        """Takes the first step and no more. Source: none."""

        def start(self, project: str, name: str, knobs: dict) -> None:
            self.taken = 0

        def log(self, step: int, figures: dict) -> None:
            self.taken += 1
            if self.taken > 1:
                raise ConnectionError("no route\nto the host")

        def finish(self, figures: dict, status: str) -> None:
            raise AssertionError("told after it had failed")

    out, said = run(tmp_path, 'track = ["broken", "tensorboard"]')
    assert said.count("tracker broken: ConnectionError: no route; this trial goes on without it") == 1
    assert final(out)["status"] == "done" and len(list((out / "tensorboard").iterdir())) == 2


def test_a_tracker_that_cannot_begin_stops_nothing(tmp_path: Path, guests: None):
    class Unmade(Tracker, kind="unmade"):
        """Cannot even be made. Source: none."""

        def __init__(self, config: Tracker.Config, folder: Path) -> None:
            raise ImportError("no module of that name")

    class Leaving(Tracker, kind="leaving"):
        """Ends the process. Source: none."""

        def start(self, project: str, name: str, knobs: dict) -> None:
            raise SystemExit("log in first")

    out, said = run(tmp_path, 'track = ["unmade", "leaving", "tensorboard"]')
    assert said.count("tracker unmade: ImportError: no module of that name; this trial goes on without it") == 1
    assert said.count("tracker leaving: SystemExit: log in first; this trial goes on without it") == 1
    assert final(out)["status"] == "done" and len(list((out / "tensorboard").iterdir())) == 2


def test_trackers_do_not_change_what_a_trial_is(tmp_path: Path):
    out, _ = run(tmp_path, "track = []")
    before = {path.name for path in out.glob("*-seed0-*")}
    run(tmp_path, 'track = ["tensorboard"]')
    assert {path.name for path in out.glob("*-seed0-*")} == before and not (out / "tensorboard").exists()

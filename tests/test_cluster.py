"""Trials on a Ray cluster: two machines, one of which is lost, and results that cannot be told from those of one process."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kills import command, environment, finished
from rich.console import Console

from recipes import write
from zoo.core.part import ConfigError
from zoo.recipe import dumps
from zoo.report.live import view_for
from zoo.report.session import run_grid
from zoo.trials.cluster import ClusterCrew, Need, keep
from zoo.trials.grid import plan
from zoo.trials.joining import check_executor
from zoo.trials.messages import Job, Sent, Stepped
from zoo.trials.places import Execution, Limits
from zoo.trials.post import Post
from zoo.trials.run import make_ready
from zoo.trials.store import Store

NEEDED = "Ray is not installed (pip install 'ablation-zoo[cluster]')"
with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None and not os.environ.get("CI"), reason=NEEDED
)  # where it must be there (CI), its absence is a failure

PLUGIN = '''
"""A stem that ends badly while it trains."""

import torch

from zoo.core.slots import Stem


class Bad(Stem, kind="bad"):
    """Raises at the first training step. Source: none."""

    def __init__(self, cfg, site):
        super().__init__()

    def forward(self, x, bus):
        if self.training and torch.is_grad_enabled() and not x.is_meta:
            raise ArithmeticError("as it was told to")
        return x
'''
GRID = """
plugins = ["bad.py"]
[grid]
"model.dim" = [16, 24, 32]
[[grid.variant]]
name = "raises"
set = { "model.stem" = [{ kind = "bad" }] }
"""


@contextmanager
def two_machines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two machines with a processor each, as Ray's own tests make them."""
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    small = {
        "num_cpus": 1,
        "object_store_memory": 80 * 2**20,
        "include_dashboard": False,
    }
    soon = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    made = Cluster(initialize_head=True, head_node_args={**small, "_system_config": soon})
    try:
        made.add_node(**small)
        yield made
    finally:
        made.shutdown()


@with_ray
def test_a_lost_machine_costs_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three trials and one that raises, on two machines of which one is lost while both train."""
    (tmp_path / "bad.py").write_text(PLUGIN)
    recipe, plain, out = write(tmp_path, GRID), tmp_path / "plain", tmp_path / "cluster"
    long = ["--set=train.steps=400", "--set=train.log_every=20"]  # so long that two are trained at once
    longer = ["--no-guards", *long]
    env = environment(tmp_path)
    assert subprocess.run(command(recipe, plain, *longer, "--workers=0"), env=env, capture_output=True).returncode == 1
    told, words = tmp_path / "told.jsonl", tmp_path / "words.txt"
    with two_machines(tmp_path, monkeypatch) as cluster, told.open("w") as to, words.open("w") as beside:
        how = [*longer, "--json", "--executor=ray", "--address", cluster.address]
        ran = subprocess.Popen(command(recipe, out, *how), env=env, stdout=to, stderr=beside)
        try:
            wait_for_two(out, ran)
            cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
            ran.wait(60)
        finally:
            ran.kill()
    assert ran.returncode == 1, words.read_text()  # one trial raises
    assert told.read_text().count("its machine was lost") == 1
    events = [json.loads(line) for line in told.read_text().splitlines()]  # nothing else stands there
    assert {e["variant"] for e in events if e["event"] == "step"} == {"dim=16", "dim=24", "dim=32"}
    assert finished(out) == finished(plain)
    statuses = {name.partition("-seed")[0]: t["status"] for name, t in finished(out).items() if "result" in name}
    assert statuses == {"dim=16": "done", "dim=24": "done", "dim=32": "done", "raises": "failed"}


def wait_for_two(out: Path, ran: subprocess.Popen[bytes]) -> None:
    """Until two trials train at once."""
    deadline = time.monotonic() + 45
    while len([log for log in out.glob(".*/log.jsonl") if log.stat().st_size]) < 2:
        assert ran.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (Execution(executor="rai"), "did you mean 'ray'"),
        (Execution(address="auto"), "only --executor ray"),
        (Execution(2, executor="ray"), "--workers 2"),
        (Execution(None, "0", executor="ray"), "--devices 0"),
    ],
)
def test_options_that_do_not_go_together_are_named(how: Execution, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_executor(how)


def test_without_ray_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'ablation-zoo\[cluster\]'"), ClusterCrew(tmp_path, []):
        pass


def test_what_a_trial_declares() -> None:
    assert Need(2, 0.0).fits({"CPU": 5.0}) == 2
    assert Need(1, 0.25).fits({"CPU": 64.0, "GPU": 2.0}) == 8
    assert Need(1, 0.25).fits({"CPU": 3.0, "GPU": 2.0}) == 3
    assert Need(1, 1.0).fits({"CPU": 64.0}) == 0


def test_a_machine_that_does_not_see_the_results_sends_the_files(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    grid = plan(write(tmp_path))
    with (tmp_path / "plain.txt").open("w") as said:
        assert run_grid(grid, "*", tmp_path / "plain", False, Execution(workers=0), Console(file=said))
        ready = make_ready(grid, grid.arms, view_for(Console(file=said), manner="quiet"))
    [trial], store = ready.trials, Store(tmp_path / "here")
    post = Post(grid.folder, Limits())
    try:
        job = Job(dumps(trial.recipe), trial.address, trial.forecast, True, tmp_path / "unseen")
        *told, last = post.train(job, tmp_path / "unseen" / "mark")
    finally:
        post.crew.stop()
    assert isinstance(last, Sent) and any(isinstance(message, Stepped) for message in told)
    assert not (tmp_path / "unseen").exists()
    keep(trial, last.result, last.files, store, grid.folder)
    name = store.folder(trial.recipe, trial.address).name
    plain = {file: value for file, value in finished(tmp_path / "plain").items() if file.startswith(name)}
    assert len(plain) >= 4 and finished(store.root) == plain

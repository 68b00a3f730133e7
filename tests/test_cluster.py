"""Trials on a Ray cluster: two machines, one of which is lost, and results that cannot be told from those of one process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kills import command, environment, finished

from recipes import write

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
seeds = 2
[[grid.variant]]
name = "raises"
set = { "model.stem" = [{ kind = "bad" }] }
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two machines with a processor each, as Ray's own tests make them."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    soon = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    made = Cluster(initialize_head=True, head_node_args={**small, "_system_config": soon})
    try:
        made.add_node(**small)
        yield made
    finally:
        made.shutdown()


@with_ray
def test_a_lost_machine_costs_no_trial(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(PLUGIN)
    recipe = write(tmp_path, GRID)
    longer = ["--set", "train.steps=400"]
    plain = subprocess.run(
        command(recipe, tmp_path / "plain", *longer, "--workers", "0"), env=environment(tmp_path), timeout=100
    )
    out = tmp_path / "cluster"
    how = ["--executor", "ray", "--address", cluster.address]
    with subprocess.Popen(
        command(recipe, out, *longer, *how), env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    ) as ran:
        wait_for_two(out, ran)
        cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)
        said, _ = ran.communicate(timeout=100)
    assert (plain.returncode, ran.returncode) == (1, 1)  # one trial raises, with either seed
    assert said.count("its machine was lost") == 1
    assert finished(out) == finished(tmp_path / "plain")


def wait_for_two(out: Path, ran: subprocess.Popen[str]) -> None:
    """Until two trials train at once."""
    deadline = time.monotonic() + 60
    while len([log for log in out.glob(".*/log.jsonl") if log.stat().st_size]) < 2:
        assert ran.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)

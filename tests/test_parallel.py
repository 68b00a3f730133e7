"""Two processes that train together come to what one comes to, decide everything together, and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch

from zoo.core.part import ConfigError
from zoo.core.wires import NOISE, Bus, noise_key, stage_key
from zoo.data.batches import Batches
from zoo.parallel import ALONE
from zoo.train import train
from zoo.trials.grid import plan
from zoo.trials.places import Execution, Limits
from zoo.trials.ranks import check_size, only_together


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ranks.prepared_folder(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(autouse=True, scope="module")
def cache(folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        yield


@pytest.fixture(scope="module")
def both(folder: Path, cache: None) -> list[dict[Any, Any]]:
    """What each of two processes came to."""
    started = ranks.start(2, ["tests/ranks.py", str(folder)], PYTHONPATH=f"{ranks.ROOT}:{ranks.ROOT / 'tests'}")
    for process, code in zip(started, (0, -signal.SIGKILL), strict=True):
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, out + err
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


# -- the same as one process ------------------------------------------------------------------------------------------


def alone(folder: Path, name: str, dtype: str) -> dict[str, Any]:
    """One process on the same global batch; auxiliary losses are taken over the rows of one process at a time."""
    split = ["train.batch=2", "train.accumulate=2"] if name == "aux_loss" else []
    return ranks.ran(ranks.loop_of(folder, [*ranks.AGREE[name], *split], dtype=dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
@pytest.mark.parametrize("name", ranks.AGREE)
def test_two_processes_come_to_what_one_comes_to(
    both: list[dict], folder: Path, name: str, dtype: str, tolerance: float
) -> None:
    one = alone(folder, name, dtype)
    for part in both:
        two = part[name, dtype]
        assert two["steps"] == one["steps"] == 6
        for kind in ("state", "average"):
            assert two[kind].keys() == one[kind].keys()
            for key, t in one[kind].items():
                torch.testing.assert_close(two[kind][key], t, rtol=0.0, atol=tolerance, msg=f"{name}: {key}")
        torch.testing.assert_close(two["losses"], one["losses"], rtol=1e-6, atol=0.0)


def test_both_processes_hold_the_same_bits(both: list[dict]) -> None:
    for name in ranks.AGREE:
        one, other = (part[name, "float32"] for part in both)
        assert all(torch.equal(t, other["state"][key]) for key, t in one["state"].items())
        assert torch.equal(one["losses"], other["losses"])


@pytest.mark.parametrize("name", ["loss_free", "aux_loss"])
def test_counts_of_experts_are_summed_as_integers(both: list[dict], folder: Path, name: str) -> None:
    one = alone(folder, name, "float64")["stats"]
    for part in both:
        two = part[name, "float64"]["stats"]
        assert one.keys() == two.keys() and len(one) >= 2
        assert all(not t.is_floating_point() and torch.equal(t, two[key]) for key, t in one.items())


def test_a_loss_that_is_no_mean_over_tokens_is_named(both: list[dict]) -> None:
    said = "auxiliary losses (balance, router_z) of 2 of the 4 rows of a micro-batch at a time, in each process"
    assert [part["aux_loss", "float64"]["remarks"] for part in both] == [[said], [said]]
    assert both[0]["loss_free", "float64"]["remarks"] == []


def test_shares_of_a_batch_draw_what_the_whole_draws() -> None:
    def draw(share: int, shape: tuple[int, ...], key: int = 0) -> torch.Tensor:
        key = stage_key(noise_key(3, 5, 1, share), 7)
        return Bus({NOISE: key}).at("ffn").noise("n", shape)

    whole = draw(0, (12, 5))
    assert torch.equal(torch.cat([draw(share, (4, 5)) for share in range(3)]), whole)


def test_shares_of_a_batch_are_its_rows_in_order() -> None:
    tokens = torch.arange(400).numpy()
    whole = Batches(tokens, 8, 6, seed=1, bos=0, accumulate=2)
    parts = [Batches(tokens, 8, 6, seed=1, bos=0, accumulate=2, share=(k, 3)) for k in range(3)]
    for micro in (0, 1):
        rows = torch.cat([part.batch(2, micro)[0] for part in parts])
        assert torch.equal(rows, whole.batch(2, micro)[0])


# -- what they say to each other --------------------------------------------------------------------------------------


def test_every_process_hears_the_same(both: list[dict]) -> None:
    for part in both:
        said = part["collectives"]
        assert [None if g is None else g.tolist() for g in said["grads"]] == [[3.0] * 3, [5.0] * 3, None]
        assert int(said["sum"][0]) == 2**54 + 3  # no float holds that
        assert said["sum"][1].tolist() == [1.0, 3.0]
        for n, stack in said["stacks"].items():
            whole = torch.arange(n * 6, dtype=torch.float32).view(n, 2, 3).bfloat16() * 2 + 1
            assert torch.equal(stack, whole)
        assert (said["most"], said["of_first"], said["words"]) == ((2.0, -1.0), 1.0, "from 1")
        assert said["gather"].tolist() == [[1], [2]]
        facts, tensors = said["table"]
        assert facts == {"a": (1, "b")} and tensors["x"].tolist() == [0, 1, 2, 3] and tensors["none"].shape == (0, 2)


def test_what_befalls_one_process_is_decided_by_all(both: list[dict]) -> None:
    for part in both:
        seen = part["faults"]
        assert seen["together"] == "Failed: ZeroDivisionError: by me (in process 1 of 2)"
        assert seen["broken"] == "Failed: ZeroDivisionError: by me (in process 1 of 2)"
        assert seen["tight"]["rows"] == 2 and seen["tight"]["steps"] == 6
        assert seen["tight"]["remarks"] == [
            "out of memory: micro-batches of 2 instead of 8 rows, 4 instead of 1 a step"
        ]
        assert seen["diverging"] == "Diverged: diverged at step 3: last good step 2"
        assert seen["drifting"].startswith("Broken: the processes of this trial hold different weights")
    assert [part["faults"]["by_itself"] for part in both] == [
        "nothing",
        "Broken: failed by itself: ZeroDivisionError: by me",
    ]


def test_a_budget_in_seconds_goes_by_the_first_clock(both: list[dict]) -> None:
    one, other = (part["faults"]["clock"] for part in both)
    assert one["steps"] == other["steps"] > 3
    assert all(torch.equal(t, other["state"][key]) for key, t in one["state"].items())


def test_a_run_that_was_stopped_goes_on_in_the_same_bits(both: list[dict]) -> None:
    for part in both:
        assert part["resumed"]["said"] == ["ran to 7", "stopped at 4", "ran to 7"]
        whole, parts = part["resumed"]["whole"], part["resumed"]["parts"]
        for kind in ("state", "average"):
            assert all(torch.equal(t, parts[kind][key]) for key, t in whole[kind].items())
        assert torch.equal(whole["losses"], parts["losses"])


def test_a_process_that_is_killed_is_missed_at_once(both: list[dict], folder: Path) -> None:
    said = (folder / "killed.txt").read_text()
    assert said.startswith("Broken: another process of this run was lost, or does not answer: ")
    assert said.endswith(" after 2")


# -- what cannot be ---------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_shared_are_refused_by_name(folder: Path) -> None:
    recipe, text = ranks.trial(folder, ["train.batch=3"], 1)
    shared = recipe.model_copy(update={"machine": recipe.machine.model_copy(update={"ranks": 2})})
    with pytest.raises(ConfigError, match=r"train\.batch = 3: must be a multiple of 2"):
        from zoo.trials.check import forecast

        forecast(shared)
    with pytest.raises(ConfigError, match=r"machine\.ranks = 2: .*torchrun --nproc_per_node 2"):
        train(shared, text, folder, lambda progress: None)
    with pytest.raises(ConfigError, match=r"this run has one process; start it with torchrun --nproc_per_node 2"):
        check_size([shared], ALONE.size)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"workers": 2}, "--workers 2: the processes that torchrun has started train one trial at a time"),
        ({"per_device": 2}, "--per-device 2"),
        ({"limits": Limits(time=5.0)}, "--time-limit 5.0"),
        ({"executor": "ray"}, "--executor ray: torchrun has started"),
    ],
)
def test_options_of_trials_side_by_side_are_refused(how: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        only_together(Execution(**how))


def test_one_process_is_left_as_it_was(folder: Path) -> None:
    """``ranks = 1`` is no part of an address, so that what was trained before there was such a knob is found again."""
    from zoo.trials.address import address

    recipe = plan(folder / "small.toml", device="cpu").recipe
    two = recipe.model_copy(update={"machine": recipe.machine.model_copy(update={"ranks": 2})})
    assert recipe.machine.ranks == 1
    assert address(recipe, "", folder) != address(two, "", folder)


# -- from the command line --------------------------------------------------------------------------------------------


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit codes, what was printed, and what was complained of."""
    told = [process.communicate(timeout=120) for process in processes]
    return [(p.returncode, out, err) for p, (out, err) in zip(processes, told, strict=True)]


def test_torchrun_trains_a_grid_and_one_process_speaks(folder: Path) -> None:
    out = folder / "out"
    sets = ["--set", "machine.dtype=float64", "--set", "train.steps=3", "--out", str(out), "--device", "cpu"]
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "ablate.py"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command, str(folder / "small.toml"), *sets, "--no-guards"],
        capture_output=True,
        text=True,
        cwd=ranks.ROOT,
        env=env,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to") == 1
    (trial,) = out.glob("baseline-seed0-*")
    result = json.loads((trial / "result.json").read_text())
    assert (result["status"], result["facts"]["ranks"]) == ("done", "2")
    assert "ranks = 2" in (trial / "recipe.toml").read_text()
    assert len((trial / "log.jsonl").read_text().splitlines()) == 3
    recipe, text = ranks.trial(folder, ["train.steps=3"], 1)
    one = train(recipe, text, folder, lambda progress: None)
    assert result["bits_per_byte"] == pytest.approx(one.bits_per_byte, rel=1e-12)
    assert result["tokens"] == one.tokens


@pytest.mark.slow
def test_rows_that_cannot_be_shared_end_the_run_with_code_2(folder: Path) -> None:
    command = ["ablate.py", str(folder / "small.toml"), "--set", "train.batch=3", "--out", str(folder / "none")]
    (code, _, said), (other, _, echo) = ended(ranks.start(2, [*command, "--device", "cpu"]))
    assert (code, other) == (2, 2)
    assert "train.batch = 3: must be a multiple of 2, the processes that share the rows" in said
    assert "Traceback" not in said + echo and "train.batch" not in echo


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_and_one_that_is_asked_stops_all(folder: Path) -> None:
    out = folder / "killed"
    more = [
        "--set",
        "train.steps=1000000",
        "--set",
        "train.checkpoint_every=5",
        "--out",
        str(out),
        "--no-guards",
        "--quiet",
    ]
    command = ["ablate.py", str(folder / "small.toml"), "--device", "cpu", *more]

    def newest() -> int:
        return max((int(p.stem[5:]) for p in out.glob(".*/resume/step_*.safetensors")), default=0)

    def started(beyond: int) -> list[subprocess.Popen]:
        processes = ranks.start(2, command)
        deadline = time.monotonic() + 90.0
        while newest() <= beyond and time.monotonic() < deadline and all(p.poll() is None for p in processes):
            time.sleep(0.05)
        return processes

    processes = started(0)
    processes[1].send_signal(signal.SIGKILL)
    (code, _, said), (other, _, _) = ended(processes)
    assert (code, other) == (1, -signal.SIGKILL), said
    assert "error: process 0 of 2: another process of this run was lost" in said
    kept = newest()
    assert kept >= 5
    processes = started(kept)  # goes on, else its first checkpoint would be an earlier one
    processes[1].send_signal(signal.SIGTERM)
    (code, _, said), (other, _, echo) = ended(processes)
    assert (code, other) == (130, 130), said + echo
    assert "Stopped." in said and "Stopped." not in echo

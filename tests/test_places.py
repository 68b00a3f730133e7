"""Which workers a grid gets, which trials they begin with, and when one is given up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from zoo import machine
from zoo.core.part import ConfigError
from zoo.recipe import Recipe
from zoo.resolve import loads
from zoo.trials import workers
from zoo.trials.places import Limits, Place, longest_first, places_for
from zoo.trials.workers import Worker


def recipe(device: str, threads: int = 1) -> Recipe:
    return loads(f"[machine]\ndevice = '{device}'\nthreads = {threads}\n")


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("cores", "threads", "trials", "places"), [(8, 1, 99, 8), (8, 3, 99, 2), (2, 4, 9, 1), (8, 1, 3, 3)]
)
def test_on_a_cpu_as_many_trials_as_find_their_threads(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int, trials: int, places: int
) -> None:
    monkeypatch.setattr(machine, "settle_threads", lambda asked: asked or cores)
    assert places_for([recipe("cpu"), recipe("cpu", threads)], trials) == (Place(),) * places


def test_gpus_are_shared_evenly(four_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = [recipe("cuda")]
    assert places_for(on_gpu, 99) == (Place(),)  # the one that the recipe asks for
    assert places_for(on_gpu, 99, per_device=3) == (Place(),) * 3
    assert [p.gpu for p in places_for(on_gpu, 99, devices="0,2", per_device=2)] == ["0", "2", "0", "2"]
    assert [p.gpu for p in places_for(on_gpu, 3, devices="0,2", per_device=2)] == ["0", "2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")  # counted among those that may be used
    assert [p.gpu for p in places_for(on_gpu, 99, devices="1")] == ["GPU-b"]


@pytest.mark.parametrize(
    ("device", "how", "message"),
    [
        ("cpu", {"devices": "0"}, "--devices 0: chooses among GPUs, but this grid trains on cpu"),
        ("cpu", {"per_device": 2}, "--per-device 2: chooses among GPUs"),
        ("cuda", {"devices": "0,4"}, "--devices 0,4: there is no GPU 4, this machine shows 4"),
        ("cuda", {"devices": "first"}, "--devices first: must be numbers"),
        ("cuda", {"devices": "1,1"}, "names a GPU twice"),
        ("cuda", {"devices": "1", "workers": 3}, "one or the other"),
    ],
)
def test_places_that_cannot_be_are_refused(four_gpus: None, device: str, how: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        places_for([recipe(device)], 9, **how)


def test_the_longest_trial_begins_first() -> None:
    def trial(name: str, flops: float, steps: int | None, seconds: float | None = None) -> tuple:
        return (
            name,
            SimpleNamespace(cost=SimpleNamespace(flops_per_token=flops), steps=steps, tokens_per_step=8),
            seconds,
        )

    trials = [trial("a", 1.0, 10), trial("b", 5.0, 3), trial("c", 3.0, 5), trial("d", 0.1, None, 60.0)]
    assert longest_first(trials) == ["d", "b", "c", "a"]  # equal ones stay in the grid's order


@pytest.mark.parametrize(
    ("beats", "why"),
    [
        ([(99.0, 0)], ""),
        ([(101.0, 0)], "its process did not start within 100.5 s"),
        ([(99.0, 1), (107.0, 1)], ""),
        ([(99.0, 1), (110.0, 1)], "hung: not a single batch in 10.5 s (--silence-limit)"),
        ([(99.0, 1), (105.0, 2), (114.0, 3), (119.0, 4)], ""),
        ([(99.0, 1), (105.0, 2), (114.0, 3), (120.0, 4)], "took longer than --time-limit 20.5 s"),
    ],
)
def test_a_trial_is_given_up_when_it_is_overdue(monkeypatch: pytest.MonkeyPatch, beats: list, why: str) -> None:
    now = [0.0]
    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now[0]))
    worker = Worker.__new__(Worker)  # its process is not needed
    worker.beats, worker.began, worker.heard, worker.seen = SimpleNamespace(value=0), None, 0.0, 0
    limits = Limits(time=20.5, silence=10.5, start=100.5)
    for now[0], worker.beats.value in beats[:-1]:
        assert worker.overdue(limits) == ""
    now[0], worker.beats.value = beats[-1]
    assert worker.overdue(limits) == why

"""How many trials share a device: decided by memory and by what more of them get done."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes import write
from zoo import machine
from zoo.core.part import ConfigError
from zoo.resolve import loads
from zoo.trials import sharing
from zoo.trials.grid import plan
from zoo.trials.places import AUTO, Execution, Place, per_device, places_for, to_choose
from zoo.trials.run import Ready, Trial, make_ready
from zoo.trials.sharing import Choice, Seen, Sharing, choose, rehearse

GB = 10**9


def measured(rates: dict[int, float], memory: int = GB, free: int = 80 * GB, spent: float = 5.0) -> tuple:
    """Figures as they would be measured, and which were asked for."""
    asked: list[int] = []

    def look(n: int) -> Seen | str:
        asked.append(n)
        return Seen(rates[n], memory, free, spent) if n in rates else "CUDA out of memory"

    return look, asked


@pytest.mark.parametrize(
    ("rates", "most", "at_once", "asked"),
    [
        ({1: 100, 2: 190, 4: 340, 8: 400, 16: 410}, 16, 8, [1, 2, 4, 8, 16]),
        ({1: 100, 2: 190, 4: 340, 8: 400, 16: 410}, 8, 8, [1, 2, 4, 8]),
        ({1: 100, 2: 109, 4: 400}, 16, 1, [1, 2]),  # a tenth is asked of every doubling
        ({1: 100, 2: 111, 4: 120}, 16, 2, [1, 2, 4]),
        ({1: 100, 2: 190, 3: 280}, 3, 3, [1, 2, 3]),
        ({1: 100, 2: 190}, 16, 2, [1, 2, 4]),  # four failed
        ({}, 16, 1, [1]),
    ],
)
def test_more_at_once_while_they_get_more_done(rates: dict, most: int, at_once: int, asked: list[int]) -> None:
    look, seen = measured(rates)
    assert (choose(look, most).at_once, seen) == (at_once, asked)


@pytest.mark.parametrize(
    ("memory", "free", "at_once", "asked"),
    [(10, 80, 7, [1, 2, 4, 7]), (30, 80, 2, [1, 2]), (41, 80, 1, [1]), (100, 80, 1, [1])],
)
def test_no_more_than_memory_holds(memory: int, free: int, at_once: int, asked: list[int]) -> None:
    """A tenth of what is free stays so."""
    look, seen = measured({n: 100.0 * n for n in range(1, 17)}, memory * GB, free * GB)
    choice = choose(look, 16)
    assert (choice.at_once, seen) == (at_once, asked)
    assert f"one takes {memory}.00 of {free}.00 GB" in choice.why


def test_memory_that_grows_with_company_counts() -> None:
    def look(n: int) -> Seen:
        return Seen(100.0 * n, 10 * GB * n, 80 * GB)

    assert choose(look, 16).at_once == 2  # at four, each would take more than a quarter


def test_a_short_grid_is_not_measured_twice_and_says_why() -> None:
    look, seen = measured({1: 100, 2: 200}, spent=5.0)
    short, long = choose(look, 4, left=4_000), choose(look, 2, left=6_000)
    assert (short.at_once, long.at_once, seen) == (1, 2, [1, 1, 2])
    assert short.why == "one at a time: all of it takes 40 s, less than finding out is worth" and not short.measured
    assert long.why == "2 at once (1: 100 tokens/s, 2: 200; more than 2 are of no use)" and long.measured
    failed = choose(measured({})[0], 4)
    assert failed == Choice(1, "one at a time, since it could not be rehearsed: CUDA out of memory")


# -- trials -----------------------------------------------------------------------------------------------------------


class Listening:
    """A view that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def preparing(self, what: str, share: float, words: str = "") -> None:
        pass


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ready:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    axis = '[grid]\n"model.layer.ffn.hidden_dim" = [32, 96, 64]\nseeds = 2\n'
    grid = plan(write(tmp_path, axis), device="cpu", sets=["train.steps=100000"])
    return make_ready(grid, grid.arms, Listening())


def spread(trials: tuple[Trial, ...], folder: Path, places: list[Place], most: int = 8) -> tuple[list[Place], str]:
    view = Listening()
    return Sharing(folder, most, folder / "kept").spread(trials, places, view), view.lines[0]


def test_the_choice_is_made_with_the_largest_trial_and_kept(
    ready: Ready, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed: list[tuple[str, int, Place]] = []

    def look(trial: Trial, folder: Path, place: Place, n: int) -> Seen:
        rehearsed.append((trial.arm.name, n, place))
        return Seen({1: 100.0, 2: 180.0, 3: 185.0}[n], GB, 80 * GB, 1.0)

    monkeypatch.setattr(sharing, "rehearse", look)
    two = [Place("0"), Place("1")]
    places, said = spread(ready.trials, tmp_path, two)
    assert places == two * 2 and said.startswith("Trials on each device: 2 at once (1: 100 tokens/s, 2: 180, 3: 185;")
    assert rehearsed == [("hidden_dim=96", n, Place("0")) for n in (1, 2, 3)]  # three trials for each of the two
    assert spread(ready.trials, tmp_path, two)[0] == places and len(rehearsed) == 3
    assert spread(ready.trials, tmp_path, two, most=1) == (
        two,
        "Trials on each device: one at a time: there is no second trial for it",
    )


def test_trials_by_the_clock_share_nothing(ready: Ready, tmp_path: Path) -> None:
    timed = ready.trials[0].recipe.train.model_copy(update={"steps": None, "seconds": 5.0})
    trials = tuple(t._replace(recipe=t.recipe.model_copy(update={"train": timed})) for t in ready.trials)
    places, said = spread(trials, tmp_path, [Place()])
    assert places == [Place()] and "a budget in seconds buys less" in said


@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_copies_of_a_trial_take_steps_at_the_same_time(ready: Ready, tmp_path: Path, n: int) -> None:
    seen = rehearse(ready.trials[0], tmp_path, Place(), n, window=0.2)
    assert isinstance(seen, Seen), seen
    assert seen.rate > 0 and 50e6 < seen.memory < seen.free and seen.spent > 0.2


def test_a_trial_that_cannot_be_rehearsed_says_why(ready: Ready, tmp_path: Path) -> None:
    lost = ready.trials[0].recipe.data.source.model_copy(update={"files": ("gone.txt",)})
    recipe = ready.trials[0].recipe
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": lost})})
    said = rehearse(ready.trials[0]._replace(recipe=recipe), tmp_path, Place(), 1)
    assert isinstance(said, str) and "gone.txt" in said


# -- what is asked for ------------------------------------------------------------------------------------------------


def test_it_is_chosen_on_gpus_and_where_it_is_asked_for() -> None:
    gpu, cpu = loads("[machine]\ndevice = 'cuda'\n"), loads("[machine]\ndevice = 'cpu'\nthreads = 1\n")
    assert to_choose([gpu], Execution()) and to_choose([cpu], Execution(per_device=AUTO))
    assert not to_choose([cpu], Execution()) and not to_choose([gpu], Execution(per_device=3))
    assert not to_choose([gpu], Execution(workers=2)) and not to_choose([gpu, cpu], Execution())
    assert places_for([cpu], 9, per_device=AUTO) == places_for([gpu], 9) == (Place(),)


def test_what_per_device_takes() -> None:
    assert (per_device(None), per_device("auto"), per_device("3")) == (None, AUTO, 3)
    for word in ("0", "-1", "many", "1.5"):
        with pytest.raises(ConfigError, match=f"--per-device {word}: must be a number of trials, 1 at least, or auto"):
            per_device(word)


def test_a_memory_limit_of_the_group_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, read = machine.free_memory("cpu"), Path.read_text
    assert 0 < whole < 2**50
    group = {"memory.max": "3000000000\n", "memory.current": "1000000000\n"}
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: group.get(path.name) or read(path, *a, **k))
    assert machine.free_memory("cpu") == min(whole, 2 * GB)


def test_a_gpu_counts_what_a_process_takes_by_being_there(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(mem_get_info=lambda device: (70 * GB, 80 * GB), max_memory_reserved=lambda device: 2 * GB)
    monkeypatch.setattr(machine.torch, "cuda", fake)
    assert machine.free_memory("cuda") == 70 * GB + machine.CONTEXT
    assert machine.taken_memory("cuda") == 2 * GB + machine.CONTEXT

"""Grids whose trials take no time, for tests of the store and the executor."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes import write
from zoo.recipe import Recipe
from zoo.result import Progress, Result
from zoo.trials import run as executor
from zoo.trials.grid import plan
from zoo.trials.run import Outcome, Ready, make_ready, run
from zoo.trials.store import Store


class Silent:
    """A view that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.begun: list[str] = []
        self.ended: list[Outcome] = []
        self.steps = 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def preparing(self, what: str, share: float, words: str = "") -> None:
        assert 0 <= share <= 1

    def begin(self, trial: executor.Trial, number: int, total: int) -> None:
        self.begun.append(f"{number}/{total} {trial.recipe.variant} {trial.recipe.train.seed}")

    def step(self, trial: executor.Trial, progress: Progress) -> None:
        self.steps += progress.scoring is None

    def end(self, outcome: Outcome) -> None:
        self.ended.append(outcome)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def fake_result(recipe: Recipe, status: str = "done", **more: object) -> Result:
    named = {"name": recipe.name, "variant": recipe.variant, "seed": recipe.train.seed}
    return Result.model_validate({"status": status, **named, "bits_per_byte": 2.0, **more})


def make(folder: Path, more: str = "") -> tuple[Ready, Store]:
    grid = plan(write(folder, more), device="cpu")
    return make_ready(grid, grid.arms, Silent()), Store(folder / "out")


def go(folder: Path, ready: Ready, store: Store, refresh: bool = False) -> tuple[list[Outcome], Silent]:
    view = Silent()
    return list(run(ready, store, folder, view, refresh)), view


GRID = "[grid]\n'model.layer.ffn' = ['swiglu', 'relu2']\nseeds = 2\n"


def train_nothing(recipe: Recipe, *_: object) -> Result:
    """A stand-in for training."""
    return fake_result(recipe)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "train", train_nothing)

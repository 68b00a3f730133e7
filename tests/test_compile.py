"""What ``train.compile = "auto"`` comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes import write
from zoo.budget import settle_compile
from zoo.trials.grid import plan


@pytest.mark.parametrize(
    ("budget", "device", "way"),
    [
        ({"steps": 10_000, "accumulate": 4}, "cpu", "none"),
        ({"steps": 250, "accumulate": 4}, "cuda", "layers"),
        ({"steps": 249, "accumulate": 4}, "cuda", "none"),
        ({"tokens": 64_000}, "cuda:1", "layers"),  # of 4 x 16 a step
        ({"tokens": 63_900}, "cuda:1", "none"),
        ({"seconds": 600}, "cuda", "layers"),
        ({"seconds": 90}, "cuda", "none"),
        ({"steps": 10, "compile": "layers"}, "cuda", "layers"),
        ({"steps": 10_000, "compile": "none"}, "cuda", "none"),
    ],
)
def test_layers_are_compiled_on_a_gpu_where_that_pays(
    tmp_path: Path, budget: dict[str, Any], device: str, way: str
) -> None:
    recipe = plan(write(tmp_path), device="cpu").recipe
    train = recipe.train.model_copy(update={"steps": None, "compile": "auto", "batch": 4, **budget})
    assert settle_compile(recipe.model_copy(update={"train": train}), device) == way


def test_arms_with_other_budgets_are_compiled_as_their_grid_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the short rung of a race and its long one would differ in more than they say."""
    monkeypatch.setattr("zoo.machine.settle_device", lambda asked: "cuda")
    monkeypatch.setattr("zoo.machine.settle_dtype", lambda asked, device: "float32")
    budgets = "[grid]\n'train.steps' = [10, 5000]\n"
    assert [arm.recipe.train.compile for arm in plan(write(tmp_path, budgets)).arms] == ["none", "none"]
    long = plan(write(tmp_path, "[grid]\n'train.steps' = [5000, 10]\n"))
    assert [arm.recipe.train.compile for arm in long.arms] == ["layers", "layers"]

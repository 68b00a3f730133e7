"""Arms of different evaluation plans are never ranked together: not in sections, not on the page, not by a design."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored import Silent
from test_table import outcome, rows
from test_table import plan as scored_by
from test_verdicts import SEEDS

from recipes import write
from zoo.core.part import ConfigError
from zoo.report.page import _comparable
from zoo.report.rows import of_one_plan, rows_of
from zoo.report.sections import sections
from zoo.trials.grid import plan
from zoo.trials.run import make_ready
from zoo.trials.stages import staged, stopped

AXES = "seeds = 2\nlr = [1e-3, 2e-3]\n'model.layer.ffn' = ['swiglu', 'relu2']\n"
LONG = "[[grid.variant]]\nname = 'long'\nset = { 'model.context' = 32 }\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_sections_are_made_of_the_baselines_plan_and_name_the_rest(tmp_path: Path) -> None:
    grid = plan(write(tmp_path, "[grid]\n" + AXES + LONG), device="cpu")
    seen = [
        outcome(arm.name, 2.0 + seed / 10 - arm.rate.value - (arm.recipe.model.context == 32), seed)
        for arm in grid.arms
        for seed in grid.seeds
    ]
    trials = [o.trial._replace(arm=a) for o, a in zip(seen, [a for a in grid.arms for _ in grid.seeds], strict=True)]
    seen = [o._replace(trial=t) for o, t in zip(seen, trials, strict=True)]
    other = scored_by(toml="model.context = 32")
    seen = [
        o._replace(result=o.result.model_copy(update={"plan": other})) if "long" in o.trial.arm.name else o
        for o in seen
    ]
    (envelope,) = sections(grid, seen)
    shown = str(envelope.tables)
    assert "relu2" in shown and "long" not in shown
    assert envelope.remarks[-1] == "left out, since another evaluation plan scored them: long lr=0.001, long lr=0.002"
    without = sections(grid, [o for o in seen if "long" not in o.trial.arm.name])
    assert without[0].tables == envelope.tables and "left out" not in str(without[0].remarks)


def test_without_the_baseline_the_first_plan_is_taken() -> None:
    one, other = outcome("a", 2.0), outcome("b", 1.0, plan=scored_by("xyz"))
    assert of_one_plan([one, other], "b") == ([other], ["a"])
    assert of_one_plan([one, other], "gone") == ([one], ["b"]) and of_one_plan([], "a") == ([], [])


def test_the_page_keeps_plans_apart_and_nats_of_other_tokens_out() -> None:
    found = rows(
        outcome("a", 2.0), outcome("far", 9.0, plan=scored_by("xyz")), outcome("b", 1.5, plan=scored_by(tokens="u"))
    )
    a, b, far = _comparable(found)
    assert [row.variant for row in (a, b, far)] == ["a", "b", "far"]
    assert (a.valid_loss, b.valid_loss, far.valid_loss) == (2.0, None, 9.0) and b.bits_per_byte == 1.5
    assert all(row.group for row in (a, b, far)) and not any(row.group for row in _comparable(rows(*SEEDS)))


@pytest.mark.parametrize(
    "words",
    ["race = { rungs = [2] }\n'model.context' = [16, 32]\n", "design = 'path'\norder = 'greedy'\n'model.context' = [16, 32]\n"],
    ids=["race", "greedy"],
)  # fmt: skip
def test_nothing_is_decided_between_plans(tmp_path: Path, words: str) -> None:
    grid = plan(write(tmp_path, "[grid]\nseeds = 2\n" + words), device="cpu")
    ready = make_ready(grid, grid.arms, Silent())

    def train(_):
        raise AssertionError("nothing is trained")
        yield

    with pytest.raises(ConfigError, match="so nothing can be decided between them"):
        list(staged(grid, grid.arms, ready, train, Silent()))


def test_what_a_race_stopped_stands_among_those_it_was_compared_with(tmp_path: Path) -> None:
    words = "[grid]\nseeds = 3\nrace = { rungs = [2] }\n'model.layer.ffn' = ['swiglu', 'relu2']\n"
    grid = plan(write(tmp_path, words), device="cpu")
    ready = make_ready(grid, grid.arms, Silent())
    own = {(t.arm.name, t.recipe.train.seed): t for t in ready.trials}
    seen = []
    for name in ("swiglu", "relu2"):
        for seed in range(3):
            trial = own[name, seed]
            short = trial._replace(arm=trial.arm._replace(name=f"{name} @2"))
            made = outcome(f"{name} @2", 2.0 + (name == "relu2") + seed / 100 * (1 + (name == "relu2")), seed)
            seen.append(made._replace(trial=short))
    (lost, *_) = found = stopped(grid, seen, ready)
    assert {o.trial.arm.name for o in found} == {"relu2"} and len(found) == 3
    assert lost.result.status == "stopped" and lost.result.plan is not None
    assert rows_of([lost], grid.arms[0])[0].plan == lost.result.plan.hash

"""Plans: what seeds can show, times that are kept, and widths solved for equal time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from recipes import write
from zoo.core.part import ConfigError
from zoo.report.planning import power_lines, show_plan
from zoo.result import Result
from zoo.trials import timing
from zoo.trials.forecast import ASSUMED, Spread, bill, detectable, spread_of, stored_results
from zoo.trials.grid import plan, trial_recipe
from zoo.trials.run import make_ready
from zoo.trials.timing import Timing, Timings, shape_of


def result(variant: str, seed: int, bits: float | None, steps: int = 10) -> Result:
    status = "done" if bits is not None else "failed"
    return Result(status=status, name="r", variant=variant, seed=seed, bits_per_byte=bits, steps=steps)


# -- power ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_what_is_called_detectable_is_found_four_times_of_five(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    effect = detectable(0.3, seeds)
    d = rng.normal(effect, 0.3, (20_000, seeds))
    found = (stats.ttest_1samp(d, 0.0, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.80, abs=0.01)


def test_one_seed_detects_nothing_and_no_noise_hides_nothing() -> None:
    assert detectable(0.1, 1) is None and detectable(0.0, 2) == 0.0
    said = power_lines(Spread(0.01, "so"), 1)
    assert said[1] == "One seed: no difference can be told from noise." and "0.0100 bits/byte (so)" in said[0]


@given(st.lists(st.lists(st.floats(0.5, 4), min_size=3, max_size=3), min_size=2, max_size=4))
def test_noise_is_pooled_over_the_arms_that_have_repeats(table: list[list[float]]) -> None:
    names = [f"arm{i}" for i in range(len(table))]
    results = [result(n, s, y) for n, row in zip(names, table, strict=True) for s, y in enumerate(row)]
    spreads = [np.std(np.subtract(row, table[0]), ddof=1) for row in table[1:]]
    found = spread_of([*results, result("other", 0, 1.0), result(names[0], 9, None)], names)
    assert found.sd == pytest.approx(float(np.sqrt(np.mean(np.square(spreads)))), abs=1e-9)


def test_noise_without_pairs_is_bounded_or_assumed_and_says_so() -> None:
    alone = spread_of([result("a", 0, 1.0), result("a", 1, 1.2), result("b", 0, 1.0)], ["a", "b"])
    assert alone.sd == pytest.approx(np.std([1.0, 1.2], ddof=1) * 2**0.5) and "as if they were not paired" in alone.said
    assert spread_of([], ["a", "b"]) == Spread(ASSUMED, "assumed: nothing is stored yet; --noise states another")
    mixed = [result("a", 0, 1.0), result("a", 1, 1.2), result("b", 0, 5.0, steps=99), result("b", 1, 9.0, steps=99)]
    assert spread_of(mixed, ["a", "b"]).sd == alone.sd, "runs of another length are not paired with these"


def test_results_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    for name, text in (("good", result("a", 0, 1.0).model_dump_json()), ("bad", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    assert [r.variant for r in stored_results(tmp_path)] == ["a"]


# -- times ------------------------------------------------------------------------------------------------------------


class Quiet:
    def say(self, line: str) -> None: ...
    def preparing(self, what: str, share: float, words: str = "") -> None: ...


def test_shapes_are_timed_once_and_the_whole_is_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = "[grid]\nseeds = 2\nlr = [1e-3, 2e-3]\n'model.layer.ffn' = ['swiglu', 'relu2']\n"
    grid = plan(write(tmp_path, more), device="cpu")
    ready = make_ready(grid, grid.arms, Quiet())
    timings, told = Timings(tmp_path / "cache"), []
    monkeypatch.setattr(timing, "measure", lambda recipe, prepared: Timing(2.0, 1.0, 5.0, 100.0, 7.0))
    found = bill(ready, timings, 2, 3.6, told.append)
    scoring = len(next(iter(ready.prepared.values())).valid) / 100.0
    own = 5.0 + 5 * 2.0 + scoring
    assert told == ["swiglu lr=0.001", "relu2 lr=0.001"] and found.measured == 14.0
    assert found.seconds == pytest.approx(8 * own) and found.wall == pytest.approx(4 * own)
    assert found.longest == pytest.approx(own) and found.cost == pytest.approx(3.6 * 4 * own / 3600)
    again = bill(ready, Timings(tmp_path / "cache"), 100, None, told.append)
    assert again.measured == 0.0 and len(told) == 2 and again.cost is None and again.wall == pytest.approx(own)


def test_a_shape_is_what_takes_time_and_not_what_it_is_called(tmp_path: Path) -> None:
    def shape(*sets: str) -> str:
        return shape_of(plan(write(tmp_path), device="cpu", sets=sets).recipe)

    here = shape()
    assert shape("train.steps=99") == shape("optim.matrix.lr=1.0") == shape("name='other'") == here
    others = {
        shape("model.dim=32"),
        shape("train.batch=8"),
        shape("model.layer.ffn='gelu'"),
        shape("optim.matrix='muon'"),
    }
    assert len({here, *others}) == 5
    grid = plan(write(tmp_path), device="cpu")
    assert shape_of(trial_recipe(grid.arms[0], 7)) == here


def test_how_far_weights_move_is_no_part_of_a_shape_and_how_they_are_moved_is(tmp_path: Path) -> None:
    def shape(*sets: str) -> str:
        beginning = ["optim.matrix={kind='muon',weight_decay=0.1}", "average='ema'"]
        return shape_of(plan(write(tmp_path), device="cpu", sets=[*beginning, *sets]).recipe)

    here = shape()
    rates = ("matrix.momentum=0.9", "matrix.lr=0.7", "matrix.weight_decay=0.2", "embedding.betas=[0.5, 0.6]")
    moved = [shape(f"optim.{knob}") for knob in rates] + [shape("average.decay=0.5"), shape("schedule='cosine'")]
    assert set(moved) == {here}
    changed = ("optim.matrix.ns_steps=3", "optim.matrix.ns_dtype='bfloat16'", "optim.matrix.form='plain'")
    changed += ("average='none'", "average.every=2", "optim.matrix.weight_decay=0.0", "machine.dtype='bfloat16'")
    changed += ("model.context=8", "train.clip='none'")
    assert len({here, *map(shape, changed)}) == 1 + len(changed)


def test_a_screening_of_rates_is_of_one_shape() -> None:
    grid = plan(Path(__file__).parents[1] / "recipes/screen.toml", "cpu", device="cpu")
    assert len(grid.arms) == 75 and len({shape_of(arm.recipe) for arm in grid.arms}) == 1


def test_a_real_measurement_times_steps_and_scoring(tmp_path: Path) -> None:
    grid = plan(write(tmp_path, "[schedule]\nkind = 'linear'\nwarmup = 5\n"), device="cpu")
    ready = make_ready(grid, grid.arms, Quiet())
    found = timing.measure(ready.trials[0].recipe, next(iter(ready.prepared.values())))
    assert 0 < found.fastest <= found.step < found.spent and found.scored > 0 and found.first > 0


def shown(path: Path, **options: Any) -> str:
    console = Console(record=True, width=200)
    show_plan(path, None, [], None, "cpu", console, **options)
    return console.export_text()


def test_a_plan_tells_arms_power_and_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path, "[grid]\nseeds = 3\nmatch = 'params'\n'model.layer.ffn' = ['swiglu', 'relu2']\n")
    text = shown(path, out=tmp_path / "none")
    assert "small: 6 trials" in text and "relu2: matched in parameters by model.layer.ffn.hidden_dim 32 -> 48" in text
    assert "3 seeds find a true difference of" in text and "Timed" not in text
    monkeypatch.setattr(timing, "measure", lambda recipe, prepared: Timing(2.0, 1.0, 5.0, 1e9, 7.0))
    text = shown(path, out=tmp_path / "none", measured=True, price=2.0, workers=1)
    assert "Timed: 2 distinct shapes, 14.0 s spent on timing." in text
    assert "The whole: 1:30 of training and scoring, 1:30 with 1 at once, 0.05 at 2 an hour." in text
    with pytest.raises(ConfigError, match="--price needs --measure"):
        shown(path, price=1.0)


def test_a_plan_of_a_race_or_a_ladder_says_what_it_does_not_count(tmp_path: Path) -> None:
    race = write(tmp_path, "[grid]\nrace = { rungs = [2, 3] }\n'model.layer.ffn' = ['swiglu', 'relu2']\n")
    assert "A race over 2, 3, 6 updates; counted is every arm at full length" in shown(race)
    ladder = write(tmp_path, "[grid]\nlr = [1e-3, 2e-3]\nlr_extend = true\n")
    assert "Later trials follow from the results of these" in shown(ladder)


def test_equal_time_is_solved_by_measuring_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    more = "[grid]\nmatch = 'time'\n'model.layer.ffn' = ['swiglu', 'relu2']\n"
    path = write(tmp_path, more)
    with pytest.raises(ConfigError, match=r"plan RECIPE --measure first"):
        plan(path, device="cpu")

    def fake(recipe: Any, prepared: Any) -> Timing:  # relu2 is faster per unit, by a rule that only this test knows
        ffn = recipe.model.layer.ffn
        seconds = 1.0 + ffn.hidden_dim * (0.01 if ffn.part.kind == "swiglu" else 0.004)
        return Timing(seconds, seconds, 1.0, 1e9, 0.0)

    monkeypatch.setattr(timing, "measure", fake)
    text = shown(path, measured=True)
    assert "relu2: matched in seconds per step by model.layer.ffn.hidden_dim 32 -> 80" in text
    grid = plan(path, device="cpu")
    assert grid.arms[1].recipe.model.layer.ffn.hidden_dim == 80 and abs(grid.arms[1].matched.residual) < 0.01


def test_bytes_of_the_artifact_are_matched_where_there_is_a_codec(tmp_path: Path) -> None:
    more = "[grid]\nmatch = 'artifact_bytes'\nmatch_multiple_of = 1\n'model.layer.ffn' = ['swiglu', 'relu2']\n"
    with pytest.raises(ConfigError, match="state a codec"):
        plan(write(tmp_path, more), device="cpu")
    grid = plan(write(tmp_path, 'codec = "int6"\n' + more), device="cpu", sets=["model.dim=128"])
    found = grid.arms[1].matched
    assert found is not None and abs(found.residual) <= 0.01 and found.changes[0][0] == "model.layer.ffn.hidden_dim"
    assert found.what == "bytes of the artifact"

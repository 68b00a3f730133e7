"""Designs that decide from results: races, envelopes, greedy paths, and the effects of a factorial."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from played import outcome, planned, played

from zoo.core.part import ConfigError
from zoo.report.section import markdown
from zoo.report.sections import sections
from zoo.resolve import loads
from zoo.trials.effects import effects
from zoo.trials.envelope import Curve, beyond, warnings
from zoo.trials.grid import Arm
from zoo.trials.racing import Race, Standing, at_steps, standing
from zoo.trials.stages import further, ladder_of

RECIPE = loads("[train]\nsteps = 100\n")

# -- races ------------------------------------------------------------------------------------------------------------

ARMS = [Arm(name, RECIPE.model_copy(update={"variant": name})) for name in "abcde"]


def raced(
    race: Race, arms: list[Arm], seeds: int, score: Callable[[str, int, int], float | None]
) -> tuple[Standing, int]:
    """A race run to its end: how it stands, and the updates of everything it asked for."""
    found: dict[str, dict[int, float | None]] = {}
    spent = 0
    while (state := standing(race, arms, range(seeds), found)).wanted:
        assert state.spent == spent
        for arm, seed in state.wanted:
            steps = arm.recipe.train.steps
            found.setdefault(arm.name, {})[seed] = score(arm.name.split(" @")[0], steps, seed)
            spent += steps
    return state, spent


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5), st.integers(2, 4), st.integers(0, 10**6))
def test_a_race_stops_only_what_is_wholly_worse_and_counts_what_it_spends(means, seeds, noise_seed) -> None:
    rng = random.Random(noise_seed)
    noise = {(a, n, s): rng.gauss(0, 0.05) for a in "abcde" for n in (10, 30, 100) for s in range(seeds)}
    level = dict(zip("abcde", means, strict=False))
    arms = ARMS[: len(means)]
    state, spent = raced(Race((10, 30, 100), None), arms, seeds, lambda a, n, s: level[a] + noise[a, n, s])
    assert state.spent == spent and state.whole == len(arms) * seeds * 100
    for steps, after in ((10, 30), (30, 100)):
        heats = [heat for heat in state.heats if heat.steps == steps]
        best = [heat for heat in heats if heat.comparison is None]
        assert len(best) == 1 and not best[0].stopped
        for heat in heats:
            if heat.comparison is not None:
                assert bool(heat.stopped) == (heat.comparison.interval[0] > 0)
        assert {h.arm for h in heats if not h.stopped} == {h.arm for h in state.heats if h.steps == after}


def test_one_seed_stops_nothing() -> None:
    state, spent = raced(Race((10, 100), None), ARMS, 1, lambda a, n, s: float(ord(a)))
    assert not any(heat.stopped for heat in state.heats) and spent == 5 * 110


def test_what_never_scores_goes_no_further_and_keeps_its_reason() -> None:
    score = {"a": 1.0, "b": None, "c": 1.0}
    state, spent = raced(Race((10, 100), None), ARMS[:3], 2, lambda a, n, s: score[a])
    assert [h.arm for h in state.heats if h.stopped] == ["b"] and spent == 2 * (3 * 10 + 2 * 100)
    assert "no run came to a score" in next(h.stopped for h in state.heats if h.stopped)


@given(st.integers(0, 4000))
def test_seeds_are_added_to_what_is_undecided_until_the_budget_is_spent(budget: int) -> None:
    wave = {"a": lambda s: 0.1 * (-1) ** s, "b": lambda s: 0.1 * (-1) ** (s + 1) + 0.01, "c": lambda s: 5.0 + 0.01 * s}
    state, spent = raced(Race((10, 100), budget), ARMS[:3], 3, lambda a, n, s: wave[a](s))
    plain = 3 * (3 * 10 + 2 * 100)  # c is stopped at the first rung, a and b are never told apart
    assert spent == state.spent <= max(plain, budget)
    assert budget < plain or budget - spent < 2 * 100
    assert len(state.seeds) == 3 + max(0, budget - plain) // 200


def test_added_seeds_end_when_all_is_decided() -> None:
    score = {"a": 1.0, "b": 2.0}
    state, _ = raced(
        Race((10, 100), 10**6), ARMS[:2], 2, lambda a, n, s: score[a] + (0.9 if (a, s) == ("b", 1) else 0.0)
    )
    assert len(state.seeds) < 20 and not state.wanted


def test_a_rung_runs_its_schedule_to_its_own_end() -> None:
    short = at_steps(ARMS[0], 10)
    assert short.name == "a @10" and short.recipe.train.steps == 10 and short.recipe.variant == "a @10"
    tokens = Arm("t", loads("[train]\ntokens = 10000\n"))
    assert at_steps(tokens, 5).recipe.train.tokens is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("race = [2]\n", "write race = { rungs"),
        ("race = { rungs = [2, 6] }\n", "rising numbers of updates below the recipe's own 6"),
        ("race = { rungs = [3, 2] }\n", "rising"),
        ("race = { rung = [3] }\n", "write race"),
        ("race = { rungs = [3], bugdet = 3 }\n", "did you mean 'budget'?"),
        ("race = { rungs = [3], budget = 0.5 }\n", "must be a number of updates"),
        ("race = { rungs = [3] }\n'train.steps' = [6, 7]\n", "need one budget"),
        ("race = { rungs = [3] }\nlr = [1e-3]\nlr_extend = 1\n", "goes with no greedy path"),
    ],
)
def test_races_that_cannot_be_are_refused(tmp_path: Path, words: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        further(planned(tmp_path, "[grid]\n" + words), [])
    assert message in str(caught.value)


# -- envelopes --------------------------------------------------------------------------------------------------------

LADDER = "[grid]\nseeds = 2\nlr = [1e-3, 2e-3]\nlr_extend = {}\n'model.layer.ffn' = ['gelu', 'relu2']\n"


def parabola(optimum: dict[str, float]) -> Callable[[Arm, int], float]:
    return lambda arm, seed: math.log2(arm.rate.value / optimum[arm.rate.arm]) ** 2 + 0.01 * seed


@pytest.mark.parametrize(("limit", "added"), [("true", 3), ("1", 1), ("false", 0)])
def test_a_range_is_extended_on_the_side_of_the_optimum_until_it_is_inside(
    tmp_path: Path, limit: str, added: int
) -> None:
    grid = planned(tmp_path, LADDER.format(limit))
    seen, _ = played(grid, parabola({"gelu": 1e-3 / 4, "relu2": 1e-3 * 64}))
    rates = {
        name: sorted({o.trial.arm.rate.value for o in seen if o.trial.arm.rate.arm == name})
        for name in ("gelu", "relu2")
    }
    assert rates["gelu"] == sorted([1e-3, 2e-3, 5e-4, 2.5e-4, 1.25e-4][: 2 + added])
    assert rates["relu2"] == [1e-3, 2e-3, 4e-3, 8e-3, 16e-3][: 2 + added]
    for o in seen:
        assert o.trial.recipe.optim["matrix"].lr == pytest.approx(o.trial.arm.rate.value, rel=1e-9)
    text = markdown(sections(grid, seen)[0])
    assert ("the best rate of gelu" in text) == (added < 3) and "the best rate of relu2" in text


def test_one_seed_has_no_verdict(tmp_path: Path) -> None:
    grid = planned(tmp_path, LADDER.format("false").replace("seeds = 2", "seeds = 1"))
    seen, _ = played(grid, parabola({"gelu": 1e-3, "relu2": 2e-3}))
    text = markdown(sections(grid, seen)[0])
    assert "| one seed |" in text and "not resolved" not in text


def test_rankings_that_hang_on_the_rate_are_said() -> None:
    base = Curve("gelu", {1e-3: {0: 2.8, 1: 2.81, 2: 2.805}, 3e-3: {0: 2.5, 1: 2.52, 2: 2.51}})
    other = Curve("relu2", {1e-3: {0: 2.7, 1: 2.712, 2: 2.704}, 3e-3: {0: 2.504, 1: 2.517, 2: 2.516}})
    said = warnings([base, other], str)
    assert "flips with the rate: -0.0997 at 0.001, +0.0023 at 0.003" in said[0]
    assert said[1].startswith("relu2 is better than gelu at 0.001 (-0.0997) and not resolved best against best")
    same = Curve("swiglu", {rate: {s: v - 0.1 for s, v in scores.items()} for rate, scores in base.scores.items()})
    assert [line for line in warnings([base, same], str) if "swiglu and" in line or "swiglu is" in line] == []


def test_a_rate_at_which_all_diverged_is_no_optimum_and_none_is_asked_for_beyond() -> None:
    curve = Curve("a", {1e-3: {0: 2.0}, 2e-3: {0: 1.0}, 4e-3: {}})
    assert curve.best == 2e-3 and curve.edge is None and beyond(curve, (1e-3, 2e-3, 4e-3), 3) is None


# -- paths and effects ------------------------------------------------------------------------------------------------

GREEDY = """[grid]
design = 'path'
order = 'greedy'
seeds = 2
'model.layer.ffn' = ['swiglu', 'relu2']
'model.dim' = [16, 32]
[[grid.variant]]
name = 'deep'
set = { 'model.n_layers' = 3 }
[[grid.variant]]
name = 'nothing'
"""


def test_a_greedy_path_takes_the_best_of_what_is_left(tmp_path: Path) -> None:
    grid = planned(tmp_path, GREEDY)
    gain = {"relu2": 1.0, "dim=32": 3.0, "deep": 2.0}

    def score(arm: Arm, seed: int) -> float:
        names = set(arm.name.split(" + "))
        spoilt = 2.5 if {"dim=32", "deep"} <= names else 0.0  # so that deep comes after relu2
        return 9.0 - sum(gain.get(name, 0.0) for name in names) + spoilt + 0.1 * seed

    seen, stages = played(grid, score)
    assert ladder_of(grid, seen)[0] == [
        "dim=32",
        "dim=32 + relu2",
        "dim=32 + relu2 + nothing",
        "dim=32 + relu2 + nothing + deep",
    ]
    assert stages[0] == {"baseline", "relu2", "dim=32", "deep"}  # nothing is the baseline
    assert stages[1] == {"dim=32 + relu2", "dim=32 + deep", "dim=32 + nothing"}
    assert "lowest: dim=32 + relu2" in markdown(sections(grid, seen)[0])


NUMBERS = st.floats(-2, 2)


@given(st.lists(NUMBERS, min_size=18, max_size=18), st.lists(NUMBERS, min_size=3, max_size=3))
def test_effects_are_those_of_the_model_that_made_the_scores(table: list[float], shift: list[float]) -> None:
    axes = {"p": ("p0", "p1", "p2"), "q": ("q0", "q1"), "r": ("r0", "r1", "r2")}
    cells = list(itertools.product(*axes.values()))
    scores = {c: {s: y + shift[s] for s in range(3)} for c, y in zip(cells, table, strict=True)}
    y = dict(zip(cells, table, strict=True))
    found = {effect.values: effect for effect in effects(axes, scores)}
    assert len(found) == 5 + 2 + 4 + 2
    for value in ("p1", "p2"):  # by the definition, over the marginal means
        main = sum(y[value, q, r] - y["p0", q, r] for q in axes["q"] for r in axes["r"]) / 6
        assert found[value,].comparison.difference == pytest.approx(main, abs=1e-9)
    both = sum(y["p1", "q1", r] - y["p1", "q0", r] - y["p0", "q1", r] + y["p0", "q0", r] for r in axes["r"]) / 3
    assert found["p1", "q1"].comparison.difference == pytest.approx(both, abs=1e-9)
    assert found["p1", "q1"].comparison.seeds == 3 and found["p1", "q1"].comparison.sd == pytest.approx(0, abs=1e-9)


def test_additive_scores_have_no_interaction_and_a_lost_cell_is_named(tmp_path: Path) -> None:
    grid = planned(tmp_path, "[grid]\nseeds = 3\n'model.layer.ffn' = ['swiglu', 'relu2']\n'model.dim' = [16, 32]\n")
    seen, _ = played(grid, lambda arm, seed: 5.0 - 0.3 * ("relu2" in arm.name) - 1.0 * ("32" in arm.name) + seed)
    text = markdown(sections(grid, seen)[0])
    assert "| relu2 | ffn | -0.3000" in text and "| relu2 x dim=32 | ffn x dim | +0.0000" in text.replace(
        "-0.0000", "+0.0000"
    )
    lost = [o if o.trial.arm.name != "relu2 dim=32" else outcome(o.trial.arm, o.result.seed, None) for o in seen]
    assert sections(grid, lost) == []  # every contrast of a 2 x 2 needs every cell

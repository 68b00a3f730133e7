"""The statistics keep their word on recorded noise, and two arms of an A/A grid differ by luck alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes import write
from zoo.core.part import ConfigError
from zoo.model import Model
from zoo.report.join import join
from zoo.resolve import loads
from zoo.trials.calibration import calibrate, main, recorded, sources
from zoo.trials.grid import plan
from zoo.trials.statistics import compare, with_verdicts

RECORD = Path(__file__).parents[1] / "results" / "claims" / "2026-11-22-aa"
ROOT = Path(__file__).parents[1]


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("noise", ["resampled", "normal"])
@pytest.mark.parametrize("seeds", [3, 5, 8, 12])
def test_recorded_noise_is_called_different_one_time_in_twenty_and_stated_effects_are_found(
    noise: str, seeds: int
) -> None:
    differences = recorded(RECORD)
    seen = calibrate(sources(differences, generator())[noise], seeds, 100_000, differences)
    assert 0.04 <= seen.called <= 0.06
    assert seen.found == pytest.approx(0.80, abs=0.05) and seen.found_known == pytest.approx(0.80, abs=0.05)


def test_two_thousand_tables_of_a_against_a() -> None:
    """The same by the very words that a table would print."""
    differences = recorded(RECORD)
    draws = sources(differences, generator())["resampled"]((2_000, 5))
    verdicts = [with_verdicts([compare(list(row))])[0].verdict for row in draws]
    called = sum(verdict in ("better", "worse") for verdict in verdicts) / 2_000
    assert 0.04 <= called <= 0.06


def test_of_three_arms_equal_to_the_baseline_one_is_called_in_at_most_one_table_of_twenty() -> None:
    draw = sources(recorded(RECORD), generator())["normal"]
    arms = draw((6_000, 5)).reshape(2_000, 3, 5)
    wrong = [
        any(c.verdict != "not resolved" for c in with_verdicts([compare(list(d)) for d in table])) for table in arms
    ]
    assert 0.03 <= np.mean(wrong) <= 0.06


def test_the_record_is_what_the_trials_say() -> None:
    differences = recorded(RECORD)
    assert len(differences) == 24 and len({round(d, 6) for d in differences}) == 24
    scores: dict[int, dict[str, float]] = {}
    for path in RECORD.glob("*/result.json"):
        result = json.loads(path.read_text())
        scores.setdefault(result["seed"], {})[result["variant"]] = result["bits_per_byte"]
    assert [s["A again"] - s["A"] for _, s in sorted(scores.items())] == pytest.approx(differences, abs=1e-12)


def test_the_record_can_still_be_joined() -> None:
    first, again = join([RECORD], baseline="A", sort="-variant").rows[::-1]
    assert (first.variant, again.variant, again.pairs) == ("A", "A again", 24) and again.verdict == "not resolved"
    assert again.difference == pytest.approx(np.mean(recorded(RECORD)))


def test_what_is_no_record_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "variant,seed,status,bits_per_byte\n"
    for text, words in (
        (None, "no results.csv"),
        (head + "a,0,done,1\n", "wants two arms"),
        (head + "a,0,done,1\nb,1,done,1\n", "two seeds that both arms have"),
        (head + "a,0,done,1\nb,0,done,1\nb,1,done,1\na,1,failed,\n", "two seeds that both arms have"),
        (head + "a,zero,done,1\n", "no results.csv that can be read"),
    ):
        if text is not None:
            (tmp_path / "results.csv").write_text(text)
        with pytest.raises(ConfigError, match=words):
            recorded(tmp_path)
    with pytest.raises(SystemExit, match=r"error: .*no results\.csv"):
        main([str(tmp_path)])
    (tmp_path / "results.csv").write_text(
        head + "".join(f"{v},{s},done,{s + len(v) * s}\n" for v in "ab" for s in (1, 2, 3))
    )
    assert recorded(tmp_path) == [0.0, 0.0, 0.0]


# -- the arms of the A/A recipe ---------------------------------------------------------------------------------------


def test_the_arms_of_the_recipe_differ_in_the_draw_and_in_nothing_else() -> None:
    one, other = (arm.recipe for arm in plan(ROOT / "recipes" / "aa.toml", device="cpu").arms)
    same = {"variant": "", "model": one.model.model_copy(update={"init": other.model.init})}
    assert one.model.init.draw == 0 and other.model.init.draw == 1
    assert one.model_copy(update=same) == other.model_copy(update={"variant": ""})


@pytest.mark.parametrize("kind", ["normal", "fan_in", "orthogonal"])
def test_another_draw_is_another_set_of_weights_of_the_same_distribution(kind: str) -> None:
    def weights(draw: int, seed: int = 0) -> dict[str, torch.Tensor]:
        recipe = loads(
            f"model = {{ vocab_size = 256, dim = 64, n_layers = 1, init = {{ kind = '{kind}', draw = {draw} }} }}"
        )
        return dict(Model(recipe.model, seed=seed).named_parameters())

    plain, again, other = weights(0), weights(0), weights(1)
    pairs = [(name, plain[name], other[name]) for name in plain if plain[name].std() > 0]
    assert all(torch.equal(plain[name], again[name]) for name in plain) and len(pairs) > 3
    for name, a, b in pairs:
        assert not torch.equal(a, b) and not torch.equal(b, weights(0, seed=1)[name])
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 5 / a.numel() ** 0.5
        assert a.std().item() == pytest.approx(b.std().item(), rel=0.1)


def test_a_grid_may_have_arms_that_differ_by_luck_alone(tmp_path: Path) -> None:
    grid = plan(write(tmp_path, '[grid]\n"model.init.draw" = [0, 1, 2]\n'), device="cpu")
    assert [arm.name for arm in grid.arms] == ["draw=0", "draw=1", "draw=2"]

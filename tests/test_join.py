"""Results of many runs in one table, conditions on trials, and two trials side by side: from folders alone."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ablate import app
from zoo.core.part import ConfigError
from zoo.recipe import dumps
from zoo.report.diff import lines_of
from zoo.report.join import join
from zoo.report.where import MISSING, Condition, condition, holds, value_at
from zoo.resolve import loads
from zoo.result import Result
from zoo.scoring.plan import Plan
from zoo.trials.open import open_trial

ROOT = Path(__file__).parents[1]


def put(root: Path, run: str, variant: str, seed: int, bits: float, toml: str = "", **more) -> Path:
    """A finished trial as a run leaves it."""
    recipe = loads(f"name = {run!r}\nvariant = {variant!r}\ntrain.seed = {seed}\n{toml}")
    context, tokens = recipe.model.context, more.pop("tokens", "t")
    scorer = {"kind": "plain"}
    plan = Plan(
        hash=f"h{context}", split="valid", text="abc", bytes=1000, context=context, scorer=scorer, tokens=tokens
    )
    facts = {"data": "d", "torch": "2", **more.pop("facts", {})}
    result = Result(
        status="done", name=run, variant=variant, seed=seed, bits_per_byte=bits, valid_loss=bits / 2, plan=plan,
        facts=facts, address=more.pop("address", f"{run}{variant}{seed}"), **more
    )  # fmt: skip
    folder = root / run / f"{variant.replace(' ', '-')}-seed{seed}-{result.address}"
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(dumps(recipe))
    (folder / "result.json").write_text(result.model_dump_json())
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two recipes: one arm is in both, with other seeds; both call another arm the same."""
    for seed in (0, 1):
        put(tmp_path, "one", "small", seed, 2.0 + seed / 10)
        put(tmp_path, "one", "wide", seed, 1.9 + seed / 10 + seed / 100, "model.dim = 64")
    for seed in (2, 3):
        put(tmp_path, "two", "little", seed, 2.0 + seed / 10)
        put(tmp_path, "two", "wide", seed, 1.8, "model.dim = 96")
    return tmp_path


def test_seeds_of_one_arm_come_together_from_several_runs(runs: Path) -> None:
    small, wide, wider = join([runs]).rows
    assert [row.variant for row in (small, wide, wider)] == ["small", "one: wide", "two: wide"]
    assert (small.seeds, wide.seeds, wider.seeds) == (4, 2, 2) and small.bits_per_byte == pytest.approx(2.15)
    assert wide.difference == pytest.approx(-0.095) and wide.pairs == 2  # seeds 0 and 1
    assert wider.difference == pytest.approx(-0.45) and wider.changes == ("model.dim: 128 -> 96",)
    assert "the same recipe as 'little'" in small.notes


def test_what_lies_in_two_places_counts_once_and_what_cannot_be_read_is_named(runs: Path) -> None:
    shutil.copytree(runs / "one", runs / "copy")
    shutil.copytree(runs / "two", runs / ".hidden")
    broken = put(runs, "three", "small", 9, 1.0) / "result.json"
    broken.write_text("{")
    found = join([runs])
    assert [row.seeds for row in found.rows] == [4, 2, 2]
    (said,) = found.said
    assert str(broken.parent) in said and "cannot be read" in said
    again = put(
        runs, "four", "small", 0, 7.0, address="other"
    )  # the same trial by other code: which one counts is said
    found = join([runs])
    assert found.rows[0].seeds == 4 and any(str(again) in line or "one" in line for line in found.said[1:])
    (runs / "empty").mkdir()
    with pytest.raises(ConfigError, match="no trial lies in it"):
        join([runs / "one", runs / "empty"])
    with pytest.raises(ConfigError, match="no such folder"):
        join([runs / "nowhere"])


def test_a_result_of_another_version_is_read(runs: Path) -> None:
    path = put(runs, "two", "little", 5, 2.5) / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "once_upon_a_time": 1}))
    found = join([runs])
    assert found.rows[0].seeds == 5 and not found.said
    assert open_trial(path.parent).result.bits_per_byte == 2.5


def test_arms_on_other_text_or_by_another_plan_stand_apart(runs: Path) -> None:
    put(runs, "two", "small", 4, 1.0, facts={"data": "other"})
    put(runs, "two", "long", 0, 1.0, "model.context = 64")
    rows = {row.variant: row for row in join([runs]).rows}
    assert rows["one: small"].seeds == 4 and rows["two: small"].seeds == 1
    assert rows["long"].verdict == "baseline" and rows["long"].plan != rows["one: small"].plan


def test_the_baseline_and_the_order_can_be_chosen(runs: Path) -> None:
    rows = join([runs], sort="bits_per_byte", baseline="two: wide").rows
    assert [row.variant for row in rows] == ["two: wide", "one: wide", "small"] and rows[0].verdict == "baseline"
    assert rows[2].difference == pytest.approx(0.45) and rows[1].difference is None and rows[1].pairs == 0
    assert [row.variant for row in join([runs], sort="-bits_per_byte").rows] == ["small", "one: wide", "two: wide"]
    last = [row.variant for row in join([runs], sort="-difference").rows]
    assert last == ["one: wide", "two: wide", "small"]  # what has no value stands last
    with pytest.raises(ConfigError, match="did you mean 'two: wide'"):
        join([runs], baseline="two wide")
    with pytest.raises(ConfigError, match="did you mean 'bits_per_byte'"):
        join([runs], sort="bits_per_bite")


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        (["seed==0"], {"small", "wide"}),
        (["model.dim>=96"], {"small", "wide"}),
        (["model.dim>=96", "variant~wide"], {"wide"}),
        (["variant~l*"], {"little"}),
        (["variant!~l*", "model.dim!=64"], {"small", "wide"}),
        (["model.layer.attention==gqa", "model.layer.attention.n_heads<9", "bits_per_byte<1.85"], {"wide"}),
        (["facts.torch==2", "name==two", "model.dim==96"], {"wide"}),
        (["plan.context>10", "status==done", "seed>2", "variant==wide"], {"wide"}),
    ],
)
def test_conditions_choose_trials(runs: Path, where: list[str], kept: set[str]) -> None:
    found = join([runs], where)
    assert {row.variant for row in found.rows} == kept
    assert found.trials and all(holds(condition(text), value_at(_all(t), condition(text).path))
                                for t in found.trials for text in where)  # fmt: skip


def _all(trial) -> dict:
    return {**trial.recipe, **trial.result.model_dump(mode="json")}


def test_conditions_that_cannot_be_are_answered(runs: Path) -> None:
    for text, words in (
        ("model.dimm==64", "no trial has 'model.dimm', did you mean 'model.dim'"),
        ("model.dim", "write a path, one of =="),
        ("variant>3", "small is no number"),
        ("model.dim==65", "no trial is left; model.dim is 128, 64, 96"),
    ):
        with pytest.raises(ConfigError, match="--where") as fault:
            join([runs], [text])
        assert words in str(fault.value)


NUMBER = st.integers(-1000, 1000)
SIGNS = {"==": int.__eq__, "!=": int.__ne__, ">=": int.__ge__, "<=": int.__le__, ">": int.__gt__, "<": int.__lt__}


@given(NUMBER, NUMBER, st.sampled_from(list(SIGNS)), st.sampled_from(["", " "]))
def test_a_condition_on_a_number_means_what_it_says(value: int, bound: int, sign: str, gap: str) -> None:
    read = condition(f"{gap}a.b{gap}{sign}{gap}{bound}{gap}")
    assert read == Condition("a.b", sign, bound)
    assert holds(read, value) == SIGNS[sign](value, bound) and holds(read, float(value)) == SIGNS[sign](value, bound)
    assert holds(read, MISSING) == (sign == "!=")


def test_a_value_in_a_list_has_a_path() -> None:
    assert value_at({"a": [{"kind": "x"}, {"b": 3}]}, "a[1].b") == 3
    assert value_at({"a": [1]}, "a[1]") is MISSING and value_at({"a": 1}, "a.b") is MISSING


# -- the command line -------------------------------------------------------------------------------------------------


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_every_format_holds_the_same_rows(runs: Path) -> None:
    read = {form: call("table", runs, "--format", form) for form in ("md", "csv", "json", "latex")}
    assert all(ended.exit_code == 0 for ended in read.values())
    rows = list(csv.DictReader(io.StringIO(read["csv"].stdout)))
    (plan,) = json.loads(read["json"].stdout)
    assert (
        [row["variant"] for row in rows]
        == [row["variant"] for row in plan["rows"]]
        == ["small", "one: wide", "two: wide"]
    )
    assert [float(row["bits_per_byte"]) for row in rows] == [row["bits_per_byte"] for row in plan["rows"]]
    for form in ("md", "latex"):
        assert all(f"{row['bits_per_byte']:.4f}" in read[form].stdout for row in plan["rows"])
    assert "one: wide" in call("table", runs).stdout
    ended = call("table", runs, "--format", "cvs")
    assert ended.exit_code == 2 and "did you mean 'csv'" in ended.output


def test_what_cannot_be_read_is_said_beside_the_table(runs: Path) -> None:
    (put(runs, "three", "small", 9, 1.0) / "result.json").write_text("{")
    said = subprocess.run(
        [sys.executable, ROOT / "ablate.py", "table", runs, "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(said.stdout) and "left out, cannot be read" in said.stderr


def test_two_trials_side_by_side(runs: Path) -> None:
    ended = call("diff", "small-seed0", "wide-seed1", "--out", runs / "one")
    assert ended.exit_code == 0, ended.output
    lines = {line.split("  ")[0]: line.split() for line in ended.stdout.splitlines()}
    assert lines["model.dim"] == ["model.dim", "128", "64"] and lines["train.seed"] == ["train.seed", "0", "1"]
    assert lines["bits_per_byte"][1:] == ["2.0000", "2.0100", "+0.0100"]
    assert "Their seeds differ" in ended.stdout and "scored by one plan" in ended.stdout


def test_scores_that_cannot_be_compared_are_called_so(tmp_path: Path) -> None:
    base = open_trial(put(tmp_path, "a", "base", 0, 2.0))
    other = open_trial(put(tmp_path, "a", "other", 0, 1.5, tokens="u", facts={"torch": "3"}))
    long = open_trial(put(tmp_path, "a", "long", 0, 1.5, "model.context = 64"))
    lines = lines_of(base, other)
    assert lines[0] == "The recipes are equal." and "torch  2            3" in lines
    row = next(line.split() for line in lines if line.startswith("valid_loss"))
    assert row == ["valid_loss", "1.0000", "0.7500"]  # nats of other tokens: no difference
    assert any("tokenizers differ" in line for line in lines)
    assert any("different plans, so the differences mean nothing" in line for line in lines_of(base, long))

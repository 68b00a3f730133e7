"""What the table says of seeds: intervals, verdicts, the noise floor, each plan with a baseline of its own, every format."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics

import pytest
from faults import planted
from hypothesis import given
from rich.console import Console
from test_table import NAME, outcome, plan, rows

from zoo.core.tables import tabulate
from zoo.report import table
from zoo.scoring.plain import Plain
from zoo.trials.run import Outcome
from zoo.trials.statistics import BETTER, ONE_SEED, UNRESOLVED, compare


def seeded(name: str, start: float, steps: list[float], toml: str = "") -> list[Outcome]:
    return [outcome(name, start + step, seed, toml=toml) for seed, step in enumerate(steps)]


NOISE = [0.00, 0.05, -0.04, 0.02, 0.03, -0.01, 0.01, -0.03]
SEEDS = [
    *seeded("base", 2.0, NOISE),
    *seeded("good", 1.9, [n + 0.01 * (-1) ** i for i, n in enumerate(NOISE)], "[model]\ndim = 64"),
    *seeded("same", 2.0, NOISE[::-1]),
    *seeded("brief", 2.1, NOISE[:1]),
]


def test_rows_carry_what_the_differences_say() -> None:
    base, good, same, brief = rows(*SEEDS)
    assert [row.verdict for row in (base, good, same, brief)] == ["baseline", BETTER, UNRESOLVED, ONE_SEED]
    alone = compare([-0.1 + 0.01 * (-1) ** i for i in range(8)])
    assert (good.difference, good.pairs) == (pytest.approx(-0.1), 8)
    assert (good.interval_low, good.interval_high) == pytest.approx(alone.interval)
    assert (good.bootstrap_low, good.bootstrap_high) == pytest.approx(alone.bootstrap, abs=1e-9)
    assert good.holm_p == pytest.approx(2 * good.p) and good.p == pytest.approx(alone.p)  # two arms have a p
    assert (good.sd_of_differences, good.smallest_effect) == pytest.approx((alone.sd, alone.smallest))
    assert base.difference is None and base.holm_p is None and base.pairs == 0


def test_the_table_shows_them_and_the_noise_floor() -> None:
    text = table.markdown(rows(*SEEDS), "t", {})
    head = text.splitlines()[next(i for i, line in enumerate(text.splitlines()) if line.startswith("| variant"))]
    for column in ("95% interval", "resampled", "Holm p", "smallest effect", "verdict"):
        assert f"| {column} |" in head
    assert "| better |" in text and "Student's t" in text
    sd = statistics.stdev(NOISE)
    assert f"standard deviation of {sd:.4f} bits per byte" in text
    assert "smallest effect" not in table.markdown(rows(outcome("base", 2.0), outcome("other", 1.0)), "t", {})


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_verdict_stays_on_a_narrow_terminal(width: int) -> None:
    screen = io.StringIO()
    table.print_rows(Console(file=screen, width=width, force_terminal=True, color_system=None), rows(*SEEDS), "t")
    shown = screen.getvalue()
    assert "better" in shown and "not resolved" in shown and "-0.1000" in shown and "1.9037 ± " in shown
    assert max(map(len, shown.splitlines())) <= width
    assert ("[-0.1089, -0.0911]" in shown) == (width > 60)


def test_in_a_joined_table_each_plan_has_a_baseline_of_its_own() -> None:
    long = "[model]\ncontext = 64"
    trials = [outcome("a", 2.0), outcome("b", 1.5), outcome("c", 1.0, toml=long), outcome("d", 1.25, toml=long)]
    entries = [table.Entry(o.trial.arm.name, tabulate(o.trial.recipe), o.result) for o in trials]
    assert [row.difference for row in table.rows_from(entries, None)] == [None, -0.5, None, 0.25]
    assert [row.difference for row in table.rows_from(entries, "b")] == [0.5, None, None, None]


@given(NAME)
def test_json_csv_and_latex_give_back_what_was_put_in(name: str) -> None:
    found = rows(outcome("base", 2.0), outcome(f"x{name}x", 1.0, plan=plan("xyz")))
    plans = json.loads(table.json_text(found))
    assert [p["rows"][0]["variant"] for p in plans] == ["base", f"x{name}x"] and plans[0]["plan"] == found[0].plan
    read = list(csv.DictReader(io.StringIO(table.trials_csv([outcome(name, 2.0, 3).result]), newline="")))
    assert (read[0]["variant"], read[0]["seed"], read[0]["bits_per_byte"]) == (name, "3", "2.0")
    assert read[0]["plan.hash"] == plan().hash
    text = table.latex(found)
    assert text.count(r"\begin{tabular}") == 2 and not re.search(r"(?<!\\)[&%#_](?!.*tabular)", name_in(text))


def name_in(text: str) -> str:
    """The last row's first cell."""
    row = next(line for line in reversed(text.splitlines()) if line.endswith(r"\\"))
    return row[: row.index(" & 1,234")]


@pytest.mark.parametrize("knob", ["text", "bytes", "context", "scorer"])
def test_the_plan_is_what_was_scored_and_how(knob: str) -> None:
    with planted():

        class Other(Plain, kind="strided"):
            """Another."""

            class Config(Plain.Config):
                stride: int = 64

        strided = "evaluate.scorer = { kind = 'strided', stride = %d }"
        changed = {
            "text": (plan("a"), plan("b")),
            "bytes": (plan(n_bytes=1), plan(n_bytes=2)),
            "context": (plan(toml="model.context = 64"), plan(toml="model.context = 65")),
            "scorer": (plan(toml=strided % 1), plan(toml=strided % 2)),
        }
        one, other = changed[knob]
        assert one.hash != other.hash and one.tokens == other.tokens
    assert plan(tokens="u").hash == plan().hash and plan(tokens="u").tokens != plan().tokens
    assert plan(toml="evaluate.batch = 2").hash == plan().hash

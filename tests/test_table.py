"""The table: means, paired differences, groups that are never ranked together, and text that is shown as text."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcomes import COST, outcome, plan
from rich.console import Console

from zoo.report import table
from zoo.report.live import LiveView, PlainView, QuietView, view_for
from zoo.report.standings import Standings
from zoo.report.terminal import print_table
from zoo.report.units import duration, scaled
from zoo.result import Progress
from zoo.trials.run import Outcome


def rows(*outcomes: Outcome) -> list[table.Row]:
    return table.rows_of(outcomes, outcomes[0].trial.arm)


BITS = st.floats(0.5, 8.0)


@given(st.lists(st.tuples(BITS, BITS), min_size=2, max_size=6))
def test_differences_are_paired_by_seed(pairs: list[tuple[float, float]]) -> None:
    base = [outcome("base", a, seed) for seed, (a, _) in enumerate(pairs)]
    other = [outcome("other", b, seed) for seed, (_, b) in enumerate(pairs)]
    found = rows(*base, *other)
    n = len(pairs)
    assert found[1].difference == pytest.approx(sum(b - a for a, b in pairs) / n, abs=1e-12)
    mean = sum(b for _, b in pairs) / n
    assert found[1].bits_per_byte == pytest.approx(mean)
    assert found[1].sd == pytest.approx((sum((b - mean) ** 2 for _, b in pairs) / (n - 1)) ** 0.5, abs=1e-9)
    assert found[0].difference is None and (found[1].seeds, found[1].done) == (n, n)


def test_seeds_that_only_one_side_has_are_left_out_of_the_difference() -> None:
    found = rows(outcome("base", 2.0, 0), outcome("base", 4.0, 1), outcome("other", 1.5, 0))
    assert found[1].difference == -0.5
    failed = outcome("other", None, 1, status="failed", reason="RuntimeError: no room")
    found = rows(outcome("base", 2.0, 0), outcome("base", 4.0, 1), outcome("other", 1.5, 0), failed)
    assert (found[1].difference, found[1].seeds, found[1].done) == (-0.5, 2, 1)
    assert found[1].status == "1 of 2 done; failed (seed 1): RuntimeError: no room"


def test_what_failed_stays_with_its_reason() -> None:
    lost = outcome("other", None, status="diverged", reason="diverged at step 7: last good step 6")
    found = rows(outcome("base", 2.0), lost)
    assert found[1].status == "diverged: diverged at step 7: last good step 6" and found[1].bits_per_byte is None
    for text in (table.markdown(found, "t", {}), table.csv_text(found)):
        assert "last good step 6" in text


@pytest.mark.parametrize(
    "other",
    [
        outcome("other", 1.0, plan=plan("xyz")),
        outcome("other", 1.0, plan=plan(n_bytes=999)),
        outcome("other", 1.0, toml="[model]\ncontext = 64"),
        outcome("other", 1.0, plan=None),
    ],
    ids=["text", "bytes", "context", "unknown"],
)
def test_rows_of_different_text_or_plan_are_never_ranked_together(other: Outcome) -> None:
    found = rows(outcome("base", 2.0), other)
    assert found[1].difference is None and found[0].group != found[1].group
    text = table.markdown(found, "t", {})
    assert text.count("Comparable among themselves only") == 2 and text.count("| variant |") == 2


def test_another_tokenizer_on_the_same_text_is_ranked_by_bits_per_byte_and_never_by_nats() -> None:
    found = rows(outcome("base", 2.0), outcome("other", 1.25, plan=plan(tokens="u")), outcome("same", 1.5))
    assert [row.difference for row in found] == [None, -0.75, -0.5] and len({row.plan for row in found}) == 1
    text = table.markdown(found, "t", {})
    _, _, base, other, same = (line.split(" | ") for line in text.splitlines() if line.startswith("|"))
    assert [line[7] for line in (base, other, same)] == ["2.0000", "", "1.5000"]  # valid loss
    assert [line[8] for line in (base, other, same)] == ["2.0000", "1.2500", "1.5000"]  # bits per byte
    assert table.OTHER_TOKENS in text and table.OTHER_TOKENS in table.remarks(found)
    assert table.OTHER_TOKENS not in table.markdown(rows(outcome("base", 2.0), outcome("other", 1.0)), "t", {})


def test_a_baseline_that_was_not_trained_gives_no_differences_and_still_says_what_differs() -> None:
    base, other = outcome("base", 2.0), outcome("other", 1.0, toml="[model]\ndim = 64")
    (row,) = table.rows_of([other], base.trial.arm)
    assert row.difference is None and row.differs == ("model.dim: 128 -> 64",)


def test_notes_are_repeated_once() -> None:
    notes = ("partial RoPE means something else here",)
    found = rows(outcome("base", 2.0, 0, notes=notes), outcome("base", 2.0, 1, notes=notes))
    assert found[0].notes == notes and notes[0] in table.remarks(found)[0]
    both = rows(outcome("base", 2.0, notes=notes), outcome("other", 2.0, notes=notes))
    assert table.markdown(both, "t", {}).count(notes[0]) == 1 and "".join(table.remarks(both)).count(notes[0]) == 1
    stale = outcome("base", 2.0)._replace(stale=True)
    assert any("stale" in note for note in rows(stale)[0].notes)


def test_csv_has_every_digit() -> None:
    value = 1.2345678901234567
    (row,) = csv.DictReader(io.StringIO(table.csv_text(rows(outcome("base", value)))))
    assert float(row["bits_per_byte"]) == value and int(row["parameters"]) == COST.parameters


NAME = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=20).filter(str.strip)


@given(NAME)
def test_markdown_shows_any_name_as_text(name: str) -> None:
    text = table.markdown(rows(outcome("base", 2.0), outcome(f"x{name}x", 1.0)), "t", {name: name})
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines} == {14}  # the edges of 13 columns
    assert not re.search(r"(?<!\\)<", text)


@given(
    st.integers(60, 200), st.lists(st.floats(0, 1e13), min_size=1, max_size=8), st.text("ab c", min_size=1, max_size=60)
)
def test_no_terminal_cuts_a_number(width: int, values: list[float], name: str) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, color_system=None)
    row = {"variant": name, **{f"column {i}": f"{value:,.4f}" for i, value in enumerate(values)}}
    row["verdict"] = "not resolved"
    spare = [f"column {i}" for i in range(1, len(values))]
    print_table(console, "title", [row], spare)
    shown = screen.getvalue()
    missing = re.search(r"no room for: (.*)\)", " ".join(shown.split()))
    absent = missing[1].split(", ") if missing else []
    assert "column 0" not in absent and "…" not in shown and "verdict" in shown
    for column, cell in list(row.items())[1:]:
        assert (cell in shown) != (column in absent) or list(row.values()).count(cell) > 1


def test_the_terminal_says_what_the_table_has_no_room_for() -> None:
    screen = io.StringIO()
    found = rows(outcome("base", 2.0), outcome("other [bold]", 1.0, toml="[model]\ndim = 64"))
    table.print_rows(Console(file=screen), found, "title")
    assert "other [bold]" in screen.getvalue() and "-1.0000" in screen.getvalue() and "1.23 M" in screen.getvalue()
    assert table.remarks(found)[0] == "other [bold]: model.dim: 128 -> 64" and "--seeds 5" in table.remarks(found)[1]


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (999.4, "999"), (999.6, "1.00 k"), (1234, "1.23 k"), (99_960, "100 k"), (1e6, "1.00 M"), (5e13, "50.0 T")],
)  # fmt: skip
def test_numbers_in_short(value: float, words: str) -> None:
    assert scaled(value) == words


@pytest.mark.parametrize(("seconds", "words"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# -- the view of a running grid ---------------------------------------------------------------------------------------


def play(view: PlainView) -> None:
    """Two trials side by side, the second of which fails; a third was stored."""
    with view:
        view.preparing("encoding [the] text", 0.5)
        one, other, old = (
            outcome("one [x]", 2.0),
            outcome("other", None, status="failed", reason="no [room]"),
            outcome("old", 3.0),
        )
        view.end(old._replace(fresh=False))
        for number, this in enumerate((one, other), 2):
            view.begin(this.trial, number, 3)
        for step in (1, 5, 10):
            for this in (one, other):
                view.step(
                    this.trial, Progress(step, 10, 5.5, 1e-3, 640, 1000.0, 2.0, 10**6, 2.5 if step == 5 else None)
                )
        view.end(one)
        view.end(other)
        view.say("over [and] out")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_grid_can_be_watched(terminal: bool) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=150, force_terminal=terminal, color_system=None)
    play((LiveView if terminal else PlainView)(console))
    shown = screen.getvalue()
    for words in ("one [x] seed 0: 2.0000 bits/byte", "other seed 0: failed: no [room]", "(stored)", "over [and] out"):
        assert words in shown
    assert ("[2/3] one [x] seed 0: 1,234,567 parameters, 10 steps" in shown) == (not terminal)


@pytest.mark.parametrize("terminal", [False, True])
def test_the_standings_compare_over_shared_seeds(terminal: bool) -> None:
    screen = io.StringIO()
    view = (LiveView if terminal else PlainView)(Console(file=screen, width=150, force_terminal=terminal), "a")
    with view:
        for this in (outcome("a", 2.0), outcome("b", 1.9), outcome("c", None, status="failed", reason="no")):
            view.end(this)
    assert "so far: b 1.9000 (-0.1000), a 2.0000" in screen.getvalue()
    standings = Standings("a")
    standings.add(outcome("a", 2.0))
    assert standings.line() == ""
    for arm in "bcdef":
        standings.add(outcome(arm, 1.0 + ord(arm) / 1000))
    assert standings.line().endswith("a 2.0000, and 1 more") and standings.line().startswith(
        "so far: b 1.0980 (-0.9020)"
    )


def test_a_quiet_view_says_nothing_and_a_json_view_one_object_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    play(QuietView(Console(file=screen)))
    assert screen.getvalue() == ""
    play(view_for(Console(file=screen), "one [x]", "json"))
    assert screen.getvalue() == ""
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in told] == [
        "preparing",
        "end",
        "begin",
        "begin",
        *["step"] * 6,
        "end",
        "end",
        "say",
    ]
    assert told[1]["fresh"] is False and told[4] | {"step": 1, "loss": 5.5, "variant": "one [x]"} == told[4]
    assert told[-2]["status"] == "failed" and told[-2]["reason"] == "no [room]"

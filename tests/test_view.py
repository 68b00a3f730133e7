"""The view of a running grid: every line fits the terminal, every event is valid JSON, every name is text."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from outcomes import outcome
from rich.cells import cell_len
from rich.console import Console

from zoo.report.lines import Picture, Row, cut, fitted, told
from zoo.report.live import LiveView, PlainView, view_for
from zoo.report.units import finite
from zoo.result import Progress

STEP = Progress(1_234, 10_000, 5.4321, 1e-3, 640, 43_210.0, 20.0, 10**6, 2.5)


def drawn(picture: Picture, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(picture, end="")
    return console.file.getvalue().splitlines()


@given(
    names=st.lists(st.text(max_size=60), min_size=1, max_size=40),
    width=st.integers(20, 160),
    height=st.integers(4, 60),
    below=st.lists(st.text(max_size=200), max_size=3),
)
def test_nothing_is_wider_or_higher_than_the_terminal(names: list[str], width: int, height: int, below: list[str]):
    lines = drawn(Picture([Row(name, 0.3, told(STEP)) for name in names], below), width, height)
    assert len(lines) < height and all(cell_len(line.rstrip()) <= width for line in lines)


def test_forty_columns_have_room_for_what_matters():
    (line,) = drawn(Picture([Row("latent_tokens seed 0", 0.3, told(STEP))]), 40, 24)
    assert "loss 5.4321" in line and "2:22 left" in line and "tokens/s" not in line and line.startswith("latent_tok")
    (wide,) = drawn(Picture([Row("gqa", 0.5, told(STEP))]), 120, 24)
    assert "1,234/10,000  loss 5.4321  2.5000 bits/byte  43,210 tokens/s  2:22 left" in wide
    assert wide.count("━") == wide.count("─") > 5, "half of it is over"


def test_of_many_trials_those_that_do_not_fit_are_counted_and_the_standings_stay():
    lines = drawn(Picture([Row(f"arm {i}", 0.1, told(STEP)) for i in range(30)], ["so far: a 1.0"]), 80, 24)
    assert len(lines) == 23 and lines[-1] == "so far: a 1.0" and lines[-2] == "and 9 more running"
    assert lines[20].startswith("arm 20 ")


def test_pieces_that_matter_least_go_first():
    pieces = ((1, "one"), (0, "none"), (2, "two"))
    assert [fitted(pieces, room) for room in (20, 12, 5, 3)] == ["one  none  two", "one  none", "none", "no…"]
    assert cut("a\x1b[31m\nb", 9) == "a\\x1b[31…"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_name_moves_no_cursor(terminal: bool):
    console = Console(file=io.StringIO(), width=90, force_terminal=terminal, color_system=None)
    view = (LiveView if terminal else PlainView)(console)
    this = outcome("red \x1b[31m \x07\u202e", 2.0)
    with view:
        view.begin(this.trial, 1, 1)
        view.step(this.trial, STEP)
        if terminal:
            view.screen.refresh()
        view.end(this)
    assert "\x1b[31m" not in console.file.getvalue() and "\u202e" not in console.file.getvalue()
    assert "red \\x1b[31m \\x07\\x202e" in console.file.getvalue()


def test_the_grid_tells_how_much_of_it_is_over():
    view = LiveView(Console(file=io.StringIO(), width=100, force_terminal=True))
    a, b = outcome("a", 2.0), outcome("b", 2.0)
    view.begin(a.trial, 1, 2)
    view.begin(b.trial, 2, 2)
    view.step(a.trial, STEP._replace(step=5_000))
    (grid, *_), _ = view._shown()
    assert grid.name == "grid" and grid.share == pytest.approx(0.25) and grid.pieces[0][1] == "0/2"
    view.end(a)
    (grid, *running), _ = view._shown()
    assert grid.share == pytest.approx(0.5) and [row.name for row in running] == ["b seed 0"]


def test_a_loss_that_is_no_number_is_null_in_json(capsys: pytest.CaptureFixture[str]):
    view = view_for(Console(), "a", "json")
    this = outcome("a", None, status="diverged", reason="the loss is nan")
    view.step(this.trial, STEP._replace(loss=float("nan"), valid_bpb=float("inf")))
    view.end(this._replace(result=this.result.model_copy(update={"train_loss": float("-inf")})))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    step, end = (json.loads(line, parse_constant=refuse) for line in capsys.readouterr().out.splitlines())
    assert step["loss"] is None and step["valid_bpb"] is None and step["tokens"] == 640
    assert end["train_loss"] is None and end["reason"] == "the loss is nan"
    assert finite({"a": [float("nan"), 1.5, "x"]}) == {"a": [None, 1.5, "x"]}

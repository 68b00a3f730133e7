"""A figure that is no code length says so wherever it is printed, and a recipe with a defect marks its rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import Result as Ended
from typer.testing import CliRunner

from ablate import app
from recipes import write

MORE = """as_published = true
[evaluate]
also = ["ngram_as_published", "ngram_backoff"]
[grid]
"model.layer.ffn" = ["swiglu", "relu2"]
"""
PUBLISHED, HONEST, LABEL = "ngram_as_published", "ngram_backoff", "not a code length"


def call(*words: object) -> Ended:
    ended = CliRunner().invoke(app, [str(word) for word in words])
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        done = call(write(folder, MORE), "--out", folder / "out", "--workers", "0", "--quiet")
    assert done.exit_code == 0 and f"{PUBLISHED} breaks code_length" in done.output, done.output
    return folder / "out"


def test_headings_say_it(out: Path) -> None:
    rows = [line for line in (out / "table.md").read_text().splitlines() if line.startswith("|")]
    headings = rows[0].replace("\\", "").split(" | ")
    for heading in (f"{PUBLISHED} ({LABEL})", f"{HONEST} bits/byte"):
        assert heading in headings, headings
    for name in ("table.csv", "results.csv"):
        with (out / name).open(newline="") as file:
            names = next(csv.reader(file))
        assert [LABEL in h for h in names if PUBLISHED in h] == [True], names
        assert [LABEL in h for h in names if HONEST in h] == [False], names
    joined = json.loads(call("table", out, "--format", "json").output)
    assert LABEL in json.dumps(joined) and f'"{PUBLISHED}"' not in json.dumps(joined)


def test_nothing_is_sorted_or_compared_by_it(out: Path) -> None:
    for column in (PUBLISHED, f"{PUBLISHED} ({LABEL})"):
        ended = call("table", out, "--sort", column)
        assert ended.exit_code == 2 and "no such column" in ended.output, ended.output
    lines = call("diff", "swiglu-seed0", "relu2-seed0", "--out", out).output.splitlines()
    own, honest = (next(line.split() for line in lines if line.startswith(kind)) for kind in (PUBLISHED, HONEST))
    assert " ".join(own).startswith(f"{PUBLISHED} ({LABEL})") and not own[-1].startswith(("+", "-"))
    assert honest[-1].startswith(("+", "-")), "what is a code length is compared"


def test_cards_records_and_rows_are_marked(out: Path) -> None:
    for card in out.glob("*/README.md"):
        said = [line for line in card.read_text().splitlines() if "bits per byte." in line and "ngram" in line]
        assert [LABEL in line for line in said] == [True, False], said
    ended = call("artifact", "swiglu-seed0", "--out", out, "--record", "--codec", "int8")
    assert ended.exit_code == 0, ended.output
    told = json.loads(next(out.glob("swiglu-*/record.json")).read_text())
    assert told["as_published"] and PUBLISHED not in json.dumps(told)
    assert f"{PUBLISHED} breaks code_length" in (out / "table.md").read_text().replace("\\", "")

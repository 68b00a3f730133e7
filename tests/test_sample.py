"""The command that continues prompts with a finished trial."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ablate import app
from recipes import write
from zoo.report.terminal import printable


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    done = CliRunner().invoke(app, [str(write(folder)), "--out", str(folder / "out"), "--workers", "0"])
    assert done.exit_code == 0, done.output
    return folder / "out"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def sample(trained: Path, *words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["sample", "baseline", "--out", str(trained), *words])
    return done.exit_code, done.stdout, done.stderr


def test_one_continuation_is_shown_as_it_is_made(trained: Path):
    code, out, _ = sample(trained, "--prompt", "Line 7", "--max-tokens", "9", "--seed", "2")
    assert code == 0 and out.startswith("Line 7")
    assert sample(trained, "--prompt", "Line 7", "--max-tokens", "9", "--seed", "2")[1] == out
    assert sample(trained, "--prompt", "Line 7", "--max-tokens", "9", "--seed", "3")[1] != out


def test_more_tokens_than_the_context_are_made_and_said(trained: Path):
    code, out, _ = sample(trained, "--prompt", "Line 7", "--max-tokens", "40")
    assert code == 0 and "(up to 47 tokens, more than the context of 16 it was trained on)" in out


def test_the_best_of_several_are_shown_with_what_they_are_the_best_by(trained: Path):
    code, out, _ = sample(trained, "--prompt", "Line", "--prompt", "The", "-n", "6", "--top", "2", "--max-tokens", "5")
    assert code == 0 and out.count("the best 2 of 6 by log-probability per token") == 2
    scores = [float(line.split("[")[1].split()[0]) for line in out.splitlines() if "nats per token" in line]
    assert len(scores) == 4 and scores[0] >= scores[1] and scores[2] >= scores[3]


def test_json_holds_every_continuation(trained: Path):
    code, out, _ = sample(trained, "--prompt", "Line", "-n", "3", "--beams", "3", "--max-tokens", "4", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(rows) == 3 and all(row["prompt"] == "Line" and len(row["ids"]) <= 4 for row in rows)


def test_wrong_options_are_named(trained: Path):
    for words, said in (
        (["--top-p", "1.5"], "error: --top-p = 1.5"),
        (["--max-tokens", "0"], "error: --max-tokens = 0"),
        (["-n", "4", "--beams", "2"], "4 samples of 2 beams"),
        (["--top-k", "0"], "error: --top-k = 0"),
        (["--temperature", "-1"], "error: --temperature = -1.0"),
        (["--temperature", "nan"], "error: --temperature = nan"),
        (["--min-p", "2"], "error: --min-p = 2.0"),
        (["--repetition-penalty", "0"], "error: --repetition-penalty = 0.0"),
        (["--frequency-penalty", "inf"], "error: --frequency-penalty = inf"),
        (["--seed", "-1"], "error: --seed = -1"),
        (["--beams", "2", "--temperature", "0.7"], "temperature = 0.7: beam search draws nothing"),
        (["--beams", "2", "--top-p", "0.7"], "top_p = 0.7: beam search draws nothing"),
        (["--prompt", "a\udcff"], "is no text"),
        (["--max-tokens", str(10**14)], "there is no memory to remember so many"),
    ):
        code, _, err = sample(trained, *words)
        assert code == 2 and said in err, err


def test_any_text_can_be_gone_on_with(trained: Path):
    """Nothing, more than the context holds, several of different lengths, and letters of any script."""
    prompts = ["", "the quick brown fox " * 8, "naïve 日本語 🙂 e\u0301", "\n\t ", "<b>&amp;</b> \x1b[31m"]
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    code, out, err = sample(trained, *words, "--max-tokens", "6", "-n", "2", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0, err
    assert [row["prompt"] for row in rows] == [prompt for prompt in prompts for _ in range(2)]
    alone = sample(trained, "--prompt", prompts[2], "--max-tokens", "6", "-n", "2", "--json")[1]
    assert [json.loads(line)["ids"] for line in alone.splitlines()] == [row["ids"] for row in rows[4:6]]
    code, out, _ = sample(trained, *words, "--max-tokens", "6")
    assert code == 0 and "\x1b" not in out and "\\x1b[31m" in out


def test_a_stop_string_ends_the_text_wherever_tokens_end(trained: Path):
    whole = json.loads(sample(trained, "--prompt", "Line", "--max-tokens", "30", "--json")[1])["text"]
    for stop in (whole[5:9], whole[11:12]):
        words = ("--prompt", "Line", "--max-tokens", "30", "--stop", stop, "--stop", "")
        row = json.loads(sample(trained, *words, "--json")[1])
        assert row["text"] == whole[: whole.index(stop)] and row["ended"] == "stop"
        assert sample(trained, *words)[1].splitlines()[-1] == ("Line" + row["text"]).split("\n")[-1]


def test_control_characters_are_shown_and_not_obeyed():
    assert printable("a\x1b[31m\tb\n\x00\u202e") == "a\\x1b[31m\tb\n\\x00\\x202e"

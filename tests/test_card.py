"""Model cards: written by themselves, true to the files beside them, and inert."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ablate import app
from recipes import write
from zoo.report.card import _round_steps, card_text, fenced
from zoo.trials.open import Finished, open_trial

PROMPTS = '[card]\nprompts = ["Line 7", "<script>alert(1)</script>\\u001b[31m"]\nsamples = 4\ntop = 2\nmax_tokens = 6\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("card")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def run(folder: Path, seeds: int) -> list[Finished]:
    recipe = write(folder, PROMPTS)
    done = CliRunner().invoke(app, [str(recipe), "--out", str(folder / "out"), "--workers", "0", "--seeds", str(seeds)])
    assert done.exit_code == 0, done.output
    return [open_trial(f"baseline-seed{seed}", folder / "out") for seed in range(seeds)]


def test_a_grid_leaves_a_card_in_every_trial_and_keeps_them_up_to_date(folder: Path):
    (alone,) = run(folder, 1)
    text = (alone.folder / "README.md").read_text()
    assert "mean ± sd" not in text
    made = (alone.folder / "samples.json").read_text()
    first, second = run(folder, 2)
    both = (first.folder / "README.md").read_text()
    scores = [
        f"| {t.result.seed} | {t.result.valid_loss:.4f} | {t.result.bits_per_byte:.4f} | done |"
        for t in (first, second)
    ]
    assert all(line in both for line in scores) and "| mean ± sd |" in both and scores[0] in text
    assert (first.folder / "samples.json").read_text() == made, "what a model said is kept, not made again"
    (second.folder / "README.md").unlink()
    run(folder, 2)
    assert (second.folder / "README.md").is_file()


def test_what_a_card_says_is_what_the_files_say(folder: Path):
    trial = run(folder, 1)[0]
    text = (trial.folder / "README.md").read_text()
    header = yaml.safe_load(text.split("---\n")[1])
    metric = header["model-index"][0]["results"][0]["metrics"][0]
    assert metric["value"] == pytest.approx(trial.result.bits_per_byte, abs=1e-6)
    assert {"gqa", "swiglu"} <= set(header["tags"])
    rows = [json.loads(line) for line in (trial.folder / "log.jsonl").read_text().splitlines()]
    shares = [f"{r['step']:,} ({r['step'] / 6:.0%})" for r in rows]
    said = [f"| {s} | {r['loss']:.4f} | {r['lr']:.6g} | {r['tokens']:,} |" for s, r in zip(shares, rows, strict=True)]
    assert all(line in text for line in said) and said[-1].startswith("| 6 (100%) |")
    assert f"| total | {trial.result.parameters:,} |" in text
    shares = [float(s) for s in re.findall(r"\| (?:embedding|layer\.\d|norm|trunk|head) \| [\d,]+ \| ([\d.]+)%", text)]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert "### Layer by layer" in text and "| `layer.1.attention` | `gqa` |" in text
    assert "query (16, 16)" in text
    assert (trial.folder / "recipe.toml").read_text().strip() in text


def test_samples_are_the_best_of_those_made_and_can_do_no_harm(folder: Path):
    trial = run(folder, 1)[0]
    kept = json.loads((trial.folder / "samples.json").read_text())
    assert [(row["made"], len(row["best"])) for row in kept] == [(4, 2), (4, 2)]
    assert all(row["best"][0][1] >= row["best"][1][1] for row in kept)
    text = (trial.folder / "README.md").read_text()
    assert "\x1b" not in text and "Of 4 samples per prompt" in text
    outside = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", text)
    assert "<script>" not in outside and "<script>" in text


def test_a_fence_is_longer_than_any_inside():
    assert fenced("a\n````\nb", "text") == "`````text\na\n````\nb\n`````"


def test_a_trial_without_weights_has_a_card_that_says_why(folder: Path, tmp_path: Path):
    trial = run(folder, 1)[0]
    failed = trial.result.model_copy(
        update={"status": "failed", "reason": "RuntimeError: <boom>", "bits_per_byte": None}
    )
    text = card_text(trial._replace(result=failed, folder=tmp_path), [failed], [])
    assert "**failed**: RuntimeError: \\<boom\\>" in text and "No step was logged." in text
    assert "model-index" not in text


@pytest.mark.parametrize(("last", "every"), [(6, 2), (250, 10), (10_000, 10), (9_328, 16), (1, 1)])
def test_logged_steps_are_round_and_few(last: int, every: int):
    steps = sorted({1, *range(every, last + 1, every), last})
    chosen = _round_steps(steps)
    assert {steps[0], last} <= chosen <= set(steps) and len(chosen) <= 17
    assert last < 16 or len(chosen) >= 5

"""The command line: what it prints, what it writes, how it ends."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
from click.testing import Result as Ended
from typer.testing import CliRunner

from recipes import SMALL, write
from zoo.trials import run as executor

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("ablate", ROOT / "ablate.py")
ablate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ablate)

GRID = "[grid]\n'model.layer.ffn' = ['swiglu', 'relu2']\n"


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.chdir(tmp_path)


def call(*words: object) -> Ended:
    """One command in this process; an exception that gets out is a failure of the test."""
    given = [str(word) for word in words]
    trains = given[0] not in ("list", "show", "plan") and "--dry-run" not in given
    ended = CliRunner().invoke(ablate.app, [*given, *(["--workers", "0"] if trains else [])])
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# -- run -----------------------------------------------------------------------------------------------------------------


def test_a_recipe_alone_runs_its_grid_and_prints_the_table(tmp_path: Path) -> None:
    recipe = write(tmp_path, GRID)
    first = call(recipe)
    assert first.exit_code == 0, first.output
    out = tmp_path / "results" / "small"
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [row["variant"] for row in rows] == ["swiglu", "relu2"] and float(rows[1]["bits_per_byte"]) > 0
    stored = {
        read["variant"]: read
        for path in out.glob("*-seed0-*/result.json")
        if (read := json.loads(path.read_text())) is not None
    }
    difference = stored["relu2"]["bits_per_byte"] - stored["swiglu"]["bits_per_byte"]
    assert float(rows[1]["difference"]) == pytest.approx(difference, rel=1e-12) and rows[0]["difference"] == ""
    assert rows[1]["differs"] == "model.layer.ffn.kind: swiglu -> relu2"
    for said in (
        "swiglu",
        "relu2",
        "bits/byte",
        f"{stored['relu2']['bits_per_byte']:.4f}",
        "model.layer.ffn: swiglu -> relu2",
    ):
        assert (
            said in first.output
            and said.replace(" -> ", r" -\> ").replace("_", r"\_") in (out / "table.md").read_text()
        )
    trials = list(csv.DictReader((out / "results.csv").open()))
    assert [float(row["bits_per_byte"]) for row in trials] == [
        s["bits_per_byte"] for s in (stored["swiglu"], stored["relu2"])
    ]
    assert {row["plan.hash"] for row in trials} == {row["plan"] for row in rows} == {stored["relu2"]["plan"]["hash"]}
    second = call("run", recipe)
    assert second.exit_code == 0 and second.output.count("(stored)") == 2
    assert list(csv.DictReader((out / "table.csv").open())) == rows


def test_options_may_come_first_and_reach_the_run(tmp_path: Path) -> None:
    recipe = write(tmp_path, GRID)
    ended = call(
        "--only", "rel*", "--seeds", 2, "--set", "train.steps=2", "--out", tmp_path / "here", recipe, "--device", "cpu"
    )
    assert ended.exit_code == 0, ended.output
    rows = list(csv.DictReader((tmp_path / "here" / "table.csv").open()))
    assert [(row["variant"], row["seeds"], row["done"]) for row in rows] == [("relu2", "2", "2")] and rows[0]["sd"]
    stored = [tomllib.loads(path.read_text()) for path in (tmp_path / "here").glob("*/recipe.toml")]
    assert sorted(read["train"]["seed"] for read in stored) == [0, 1]
    assert {(read["train"]["steps"], read["machine"]["device"]) for read in stored} == {(2, "cpu")}


def test_what_was_trained_before_stays_in_the_table(tmp_path: Path) -> None:
    recipe = write(tmp_path, GRID)
    call(recipe, "--only", "swiglu")
    call(recipe, "--only", "relu2")
    rows = list(csv.DictReader((tmp_path / "results/small/table.csv").open()))
    assert [row["variant"] for row in rows] == ["swiglu", "relu2"] and rows[1]["difference"]


def test_a_diverged_trial_stays_in_the_table_and_ends_in_exit_code_1(tmp_path: Path) -> None:
    ended = call(write(tmp_path, "[grid]\n'optim.matrix.lr' = [3e-3, 1e30]\n"))
    assert ended.exit_code == 1
    rows = list(csv.DictReader((tmp_path / "results/small/table.csv").open()))
    assert rows[0]["status"] == "done" and rows[1]["status"].startswith("diverged: diverged at step")
    assert "lr=1e+30: diverged" in ended.output


def test_a_profile_is_said_and_stored(tmp_path: Path) -> None:
    ended = call(write(tmp_path, "[profiles.cpu]\n'train.steps' = 2\n"), "--device", "cpu")
    assert "No GPU is used: the recipe's profile 'cpu' applies" in ended.output
    (stored,) = (tmp_path / "results/small").glob("*/recipe.toml")
    assert tomllib.loads(stored.read_text())["machine"]["profile"] == "cpu"
    assert "- profile: cpu" in (tmp_path / "results/small/table.md").read_text()
    quiet = call(tmp_path / "small.toml", "--device", "cpu", "--quiet")
    assert quiet.exit_code == 0 and quiet.output.startswith("small") and "No GPU" not in quiet.output
    told = call(tmp_path / "small.toml", "--device", "cpu", "--json", "--refresh")
    assert [json.loads(line)["event"] for line in told.stdout.splitlines()][-1] == "end" and "No GPU" in told.stderr


def test_set_on_an_axis_removes_it_and_says_so(tmp_path: Path) -> None:
    ended = call(write(tmp_path, GRID), "--set", "model.layer.ffn=gelu", "--dry-run")
    assert "--set model.layer.ffn removes the grid's axis" in ended.output and "1 trials" in ended.output


def test_an_interrupt_keeps_what_is_finished_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = executor.train

    def train(recipe, *rest):
        if recipe.variant == "relu2":
            raise KeyboardInterrupt
        return trained(recipe, *rest)

    monkeypatch.setattr(executor, "train", train)
    recipe = write(tmp_path, GRID)
    ended = call(recipe)
    assert ended.exit_code == 130 and "give the same command again to go on" in ended.stderr
    assert [row["variant"] for row in csv.DictReader((tmp_path / "results/small/table.csv").open())] == ["swiglu"]
    monkeypatch.setattr(executor, "train", trained)
    again = call(recipe)
    assert again.exit_code == 0 and again.output.count("(stored)") == 1


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is another thing there")
def test_ctrl_c_in_a_real_process(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    command = [sys.executable, str(ROOT / "ablate.py"), str(recipe), "--set", "train.steps=1000000", "--workers", "0"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        for line in running.stdout:
            if line.startswith("[1/1]"):
                break
        running.send_signal(signal.SIGINT)
        _, complaint = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 130 and complaint.startswith("Stopped.") and "Traceback" not in complaint
    assert not (tmp_path / "results").exists() or list((tmp_path / "results" / "small").iterdir()) == []


# -- dry run -------------------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_trials_and_touches_nothing(tmp_path: Path) -> None:
    recipe = write(tmp_path, GRID + "seeds = 3\n")
    (tmp_path / "text.txt").unlink()  # the byte tokenizer's vocabulary needs no text
    before = files(tmp_path)
    ended = call(recipe, "--dry-run")
    assert ended.exit_code == 0 and "6 trials" in ended.output
    parameters = 257 * 16 + 16 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16)
    assert f"{parameters:,}" in ended.output and "est." in ended.output
    assert files(tmp_path) == before


def test_a_dry_run_reads_text_where_only_text_tells_the_vocabulary(tmp_path: Path) -> None:
    small = SMALL.replace("[data]\n", "[data]\ntokenizer = { kind = 'sentencepiece', vocab_size = 300 }\n")
    ended = call(write(tmp_path, start=small), "--dry-run")
    assert ended.exit_code == 0, ended.output
    assert f"{300 * 16 + 16 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16):,}" in ended.output
    assert not (tmp_path / "results").exists()


# -- bad input -----------------------------------------------------------------------------------------------------------


BAD = {
    "file": (["smal.toml"], "smal.toml: no such file, did you mean 'small.toml'?"),
    "command": (["shwo", "small.toml"], None),
    "profile": (["small.toml", "--profile", "cpuu"], "small.toml: --profile cpuu: no such profile, did you mean 'cpu'?"),
    "axis": (["axis.toml"], "axis.toml: grid.modle.dim: unknown axis, did you mean 'model'?"),
    "key": (["small.toml", "--set", "model.dmi=3"], "--set model.dmi=3: model.dmi = 3: unknown key, did you mean 'dim'?"),
    "kind": (["small.toml", "--set", "model.layer.ffn=swigl"], "no ffn is called 'swigl', did you mean 'swiglu'?"),
    "range": (["small.toml", "--set", "model.dim=0"], "model.dim = 0: Input should be greater than 0"),
    "heads": (["small.toml", "--set", "model.layer.attention.n_heads=3"], "n_heads = 3: does not divide dim = 16"),
    "no text": (["small.toml", "--set", "data.source.files=['nix.txt']"], "data.source.files[0] = 'nix.txt': no such file"),
    "empty text": (["small.toml", "--set", "data.source.files=['empty.txt']"], "empty.txt': is empty"),
    "no UTF-8": (["small.toml", "--set", "data.source.files=['latin.txt']"], "latin.txt': is not UTF-8"),
    "no trials": (["small.toml", "--seeds", "0"], "--seeds = 0: must be a count of at least 1"),
    "no arm": (["small.toml", "--only", "x*"], "--only x*: no such arm, there are: baseline"),
    "schedule": (["small.toml", "--set", "schedule={kind='linear', warmup=99}"], "schedule.warmup = 99: is longer than"),
    "vocabulary": (["small.toml", "--set", "model.vocab_size=99"], "model.vocab_size = 99: is smaller than the tokenizer's"),
    "device": (["small.toml", "--device", "cuda:77"], "--device: machine.device = 'cuda:77': this machine has no such device"),
    "slot": (["list", "atention"], "no slot is called 'atention', did you mean 'attention'?"),
    "plug-in": (["list", "--plugin", "none.py"], "none.py: cannot be read"),
    "folder": (["."], ".: is a folder; a recipe is a file, there are: axis.toml, small.toml"),
    "no time": (["small.toml", "--time-limit", "0"], "--time-limit 0: must be more than 0 seconds"),
    "time before": (["small.toml", "--silence-limit", "-3"], "--silence-limit -3: must be more than 0 seconds"),
    "noise": (["plan", "small.toml", "--noise", "-1"], "--noise -1: must be at least 0"),
    "plug-in raises": (["list", "--plugin", "boom.py"], "boom.py: does not import: RuntimeError: boom (line 2)"),
    "variant": (["show", "small.toml", "--variant", "base"], "no such arm, did you mean 'baseline'?"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    words, message = BAD[case]
    write(tmp_path, "[profiles.cpu]\n'train.steps' = 2\n")
    write(tmp_path, "[grid]\n'modle.dim' = [3]\n", name="axis.toml")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "boom.py").write_text("#\nraise RuntimeError('boom')\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    before = files(tmp_path)
    ended = call(*words)
    assert ended.exit_code == 2 and files(tmp_path) == before
    assert "Traceback" not in ended.stderr
    if message is not None:
        assert message in ended.stderr and len(ended.stderr.strip().splitlines()) == 1


# -- start ---------------------------------------------------------------------------------------------------------------


def test_help_needs_neither_torch_nor_pydantic() -> None:
    code = f"""
        import runpy, sys
        sys.argv = ["ablate.py", "--help"]
        try:
            runpy.run_path({str(ROOT / "ablate.py")!r}, run_name="__main__")
        except SystemExit as end:
            assert not end.code
        assert not {{"torch", "pydantic", "transformers", "numpy", "rich"}} & set(sys.modules)
        ours = {{name for name in sys.modules if name.startswith("zoo.")}}
        assert ours <= {{"zoo.command", "zoo.command.shared", "zoo.command.trials"}}, ours
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "RECIPE" in ended.stdout and "list" in ended.stdout and "show" in ended.stdout


def test_a_dry_run_of_small_models_does_not_wait_for_torchs_compiler(tmp_path: Path) -> None:
    code = f"""
        import runpy, sys
        sys.argv = ["ablate.py", {str(write(tmp_path))!r}, "--dry-run", "--set", "machine.device=cpu"]
        try:
            runpy.run_path({str(ROOT / "ablate.py")!r}, run_name="__main__")
        except SystemExit as end:
            assert not end.code
        assert "torch" in sys.modules and "torch._dynamo" not in sys.modules
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "parameters" in ended.stdout

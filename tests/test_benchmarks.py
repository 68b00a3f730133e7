"""The measuring itself: who takes turns when, what a ratio is, what a report keeps."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import harness, report
from benchmarks.__main__ import discovered, main
from benchmarks.harness import Figure, Settings, Timings, Unequal, Wanted

ROOT = Path(__file__).parents[1]


def test_contestants_take_turns_and_every_other_round_goes_backwards():
    said: list[str] = []
    contestants = {name: lambda name=name: said.append(name) for name in "ab"}
    timings = harness.alternate(contestants, rounds=3, warmup=1)
    assert "".join(said) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"a": 3, "b": 3}


def test_seconds_are_those_of_one_call(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 6.0])
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))
    assert harness.alternate({"a": int}, rounds=1, warmup=0, repeats=3).median("a") == 2.0


def test_the_ratio_is_the_median_of_the_rounds_ratios():
    timings = Timings({"ours": [1.0, 2.0, 1.0], "theirs": [3.0, 2.0, 2.0]})
    assert harness.median_ratio(timings, "theirs", "ours") == 2.0  # of the medians it would be 2.0 / 1.0 as well,
    assert harness.median_ratio(timings, "ours", "theirs") == 0.5  # but not in 1/3, 1, 1/2
    assert harness.spread(timings, "theirs", "ours") == "rounds 1.00 to 3.00"


def test_what_is_not_the_same_is_never_timed():
    x = torch.tensor([1.0, -4.0])
    assert harness.same(x + 0.04, x, "x", 0.011) == pytest.approx(0.01)
    for other in (x + 0.4, x * torch.nan, x[:1]):
        with pytest.raises(Unequal, match="x"):
            harness.same(other, x, "x", 0.011)


def test_a_bound_reads_in_its_own_sense():
    assert Figure("w", "1", ratio=1.5, wanted=Wanted("at least", 1.5)).reached is True
    assert Figure("w", "1", ratio=1.5, wanted=Wanted("at most", 1.3)).reached is False
    assert Figure("w", "1", ratio=1.5).reached is None


def fifty_megabytes():
    held = torch.zeros(2_500_000)  # 10 MB that stay

    def step():
        return (held.repeat(4) + 0).sum()  # 40 MB and once more 40 MB

    return step


def test_the_peak_of_a_step_holds_what_was_built_and_what_it_makes():
    peak = harness.peak_memory(fifty_megabytes, [], Settings())
    assert peak.allocated == pytest.approx(90e6, rel=0.01)
    assert 85e6 < peak.resident < 130e6


def test_a_section_is_replaced_and_the_others_stay(tmp_path: Path):
    settings = Settings()
    rows = [Figure("work", "2 ms", "3 ms", 1.5, Wanted("at least", 2.0), "the floor is 1.9 ms")]
    for ratio in ("first", "second"):
        found = {name: report.section(name, ratio, rows, settings, f"python -m benchmarks {name}", 1) for name in "ab"}
        path = report.write(tmp_path, settings, found if ratio == "first" else {"a": found["a"]})
    text = path.read_text()
    assert path.stem == report.slug(settings)
    assert text.index("## a\n\nsecond") < text.index("## b\n\nfirst")
    assert text.count("| work (1) | 2 ms | 3 ms | 1.50 | at least 2x | **no** |") == 2
    assert text.count("1. the floor is 1.9 ms") == 2


def test_every_file_is_listed_and_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert (f"  {path.stem:<14}" in listed) == (path.stem not in {"__init__", "__main__", "harness", "report"})
    assert set(discovered()) >= {"generate", "overhead"}
    with pytest.raises(SystemExit) as left:
        main(["no_such_thing"])
    assert left.value.code == 2


def test_listing_does_not_import_torch():
    code = "import sys; from benchmarks.__main__ import main; main(['--list']); print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("name", [name for name, (_, measured) in discovered().items() if measured])
def test_what_belongs_to_the_suite_can_be_imported(name: str):
    """One that is rarely run must not be found broken when it is wanted."""
    assert callable(importlib.import_module(f"benchmarks.{name}").figures)


def test_rows_ahead_of_a_failure_are_kept_and_the_rest_is_said_to_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def figures(settings: Settings) -> Iterator[Figure]:
        yield Figure("the first", "2 ms")
        raise Unequal("the second: off by 0.3")

    monkeypatch.setattr(importlib.import_module("benchmarks.moe"), "figures", figures)
    monkeypatch.setattr(report, "slug", lambda settings: "here")
    monkeypatch.setattr("zoo.machine.keep_freed_memory", bool)  # that is for the rest of the process
    assert main(["moe", "--device", "cpu", "--threads", "1", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "moe: the first; 2 ms\n" in said.err and "failed: moe" in said.err
    written = (tmp_path / "here.md").read_text()
    assert "| the first | 2 ms |" in written and "| the rest | failed: Unequal: the second: off by 0.3 |" in written

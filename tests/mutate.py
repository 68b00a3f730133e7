"""Flips drawn lines of the package one at a time and asks the suite each time: how many faults does it catch?

Run by hand; it takes hours where nothing is known yet, can be stopped at any moment, and goes on where it stopped::

    python tests/mutate.py --n 100 --seed 0 --jobs 2 --seconds 3600 --report results/mutants.md

Every fault is made in a copy of the tree, never here. The test files that know the changed code come first and stop at the
first failure; then the contract, for the kinds of that file; the rest of the suite runs only for what is left. A failing
test must pass on the unchanged copy to count. Faults that change nothing that can be observed are explained, by hand, in
tests/mutants_explained.toml, and are counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import Any

from mutations import Mutation, draw, mutations

ROOT = Path(__file__).parents[1]
FOLDERS = ("zoo/blocks", "zoo/core", "zoo/optim")
EXPLAINED = Path(__file__).with_name("mutants_explained.toml")
# Slow, or about something else: not among the files that are tried first.
LAST = {
    f"test_{name}.py"
    for name in (
        *("artifact", "artifact_command", "calibration", "card", "cli", "combinations", "contract", "contract_slow"),
        *("data", "designs", "follow", "generate", "grid", "guards", "hub", "join", "kills", "mutations", "plan"),
        *("preparing", "proof", "readme", "refusals", "report", "resume", "sample", "shards", "stages", "statistics"),
        *("store", "strategies", "table", "tokenizers", "track", "workers"),
    )
}
FIRST = 7  # how many files are tried first, beside ALWAYS
ALWAYS = {"zoo/blocks": "test_whole_models.py", "zoo/core": "test_whole_models.py"}  # knows a little of everything
Outcome = dict[str, Any]


def relevant(mutation: Mutation, tests: Iterable[Path], source: str) -> list[str]:
    """Test files in the order in which they are likely to notice: by how often they name what is in the file."""
    stem = Path(mutation.file).stem
    module = mutation.file.removesuffix(".py").replace("/", ".")
    names = set(re.findall(r"^class (\w+)|^class .*kind=\"(\w+)\"|^def (\w+)", source, re.MULTILINE))
    names = {name for group in names for name in group if len(name) > 2} | {stem}
    scores = []
    for path in tests:
        text = path.read_text(encoding="utf-8")
        known = mutation.function if mutation.function.strip("_") not in ("", "init", "forward") else None
        own = 3 * len(re.findall(rf"\b{re.escape(known)}\b", text)) if known else 0
        named = sum(min(5, len(re.findall(rf"\b{re.escape(name)}\b", text))) for name in names)
        score = 40 * (stem in path.stem) + 25 * (module in text) + min(own, 30) + min(named, 30)
        scores.append((-score, path.name))
    return [name for score, name in sorted(scores) if score < 0]


def kinds_of(source: str) -> list[str]:
    """The kinds that a file registers."""
    return re.findall(r"^class .*kind=\"(\w+)\"", source, re.MULTILINE)


def stages(mutation: Mutation, root: Path) -> list[list[str]]:
    """Arguments for pytest, one list after the other: what is likely, the contract, and all that is left."""
    tests = sorted(root.glob("tests/test_*.py"))
    source = (root / mutation.file).read_text(encoding="utf-8")
    first = [name for name in relevant(mutation, tests, source) if name not in LAST][:FIRST]
    always = ALWAYS.get(mutation.file.rpartition("/")[0])
    first += [always] if always and always not in first else []
    kinds = kinds_of(source)
    contract = ["tests/test_contract.py", *(["-k", " or ".join(kinds)] if kinds else []), "tests/test_combinations.py"]
    gone = {*first, "test_contract.py", "test_combinations.py", "test_contract_slow.py", "test_mutations.py"}
    rest = [f"tests/{p.name}" for p in tests if p.name not in gone]
    whole = ["tests/test_contract.py", "tests/test_combinations.py"] if kinds else []
    return [[f"tests/{name}" for name in first], contract, [*rest, *whole]]


class Copies:
    """Copies of the tracked tree, one per job, in a folder that is removed at the end."""

    def __init__(self, n: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        self.free: Queue[Path] = Queue()
        for i in range(n):
            copy = self.folder / str(i)
            for name in listed.splitlines():
                if (ROOT / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, copy / name)
            self.free.put(copy)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def pytest(copy: Path, arguments: list[str], seconds: float) -> tuple[int | None, str]:
    """Exit code (None: out of time) and output of the suite in ``copy``, stopped at the first failure."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=mutants",
        *arguments,
    ]
    environment = os.environ | {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, cwd=copy, env=environment, text=True, stdout=-1, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, process.communicate()[0] or ""
    return process.returncode, output


class Judge:
    """Runs the stages for one fault after another; remembers which tests pass on the unchanged tree."""

    def __init__(self, copies: Copies, seconds: float, deadline: float, n_stages: int) -> None:
        self.copies, self.seconds, self.deadline, self.n_stages = copies, seconds, deadline, n_stages
        self.sound: dict[str, bool] = {}
        self.lock = Lock()

    def ask(self, mutation: Mutation) -> Outcome | None:
        """What became of the fault, or None where time ran out ahead of an answer."""
        copy = self.copies.free.get()
        file, began = copy / mutation.file, time.monotonic()
        source = file.read_text(encoding="utf-8")
        try:
            file.write_text(mutation.apply(source), encoding="utf-8")
            for number, arguments in enumerate(stages(mutation, ROOT)[: self.n_stages]):
                found = self._stage(copy, file, source, mutation, arguments)
                if found is None or found:
                    return found and {**found, "stage": number, "seconds": round(time.monotonic() - began)}
            return {"outcome": "survived", "by": "", "stage": self.n_stages, "seconds": round(time.monotonic() - began)}
        finally:
            file.write_text(source, encoding="utf-8")
            self.copies.free.put(copy)

    def _stage(self, copy: Path, file: Path, source: str, mutation: Mutation, arguments: list[str]) -> Outcome | None:
        """What one call of the suite says: {} that all is well, None that there was no time to ask."""
        skipped: list[str] = []
        while arguments:
            left = self.deadline - time.monotonic()
            if left < 10:
                return None
            code, output = pytest(copy, [*arguments, *skipped], min(self.seconds, left))
            if code is None:
                return {"outcome": "caught", "by": "it does not end"} if left > self.seconds else None
            if code in (0, 5):
                return {}
            failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
            if not failed:
                return {"outcome": "caught", "by": "the package cannot be imported"}
            file.write_text(source, encoding="utf-8")
            sound = self._passes(copy, failed[0])
            file.write_text(mutation.apply(source), encoding="utf-8")
            if sound:
                return {"outcome": "caught", "by": failed[0].removeprefix("tests/")}
            skipped += ["--deselect", failed[0]]
        return {}

    def _passes(self, copy: Path, test: str) -> bool:
        """Whether a test passes on the unchanged tree; asked once per test, or per file where tests could not be read."""
        with self.lock:
            known = self.sound.get(test)
        if known is None:
            code, _ = pytest(copy, [test], self.seconds)
            known = code == 0
            with self.lock:
                self.sound[test] = known
        return known


def explained() -> dict[str, str]:
    """Faults that cannot be observed, by ``Mutation.key``, with the reason."""
    table = tomllib.loads(EXPLAINED.read_text(encoding="utf-8")) if EXPLAINED.exists() else {}
    return {f"{m['file']}: {m['before']} -> {m['after']}": m["why"] for m in table.get("mutant", [])}


def report(drawn: list[Mutation], outcomes: dict[str, Outcome], seed: int) -> str:
    """What was found, in Markdown."""
    asked = [m for m in drawn if m.key in outcomes]
    reasons = explained()
    caught = [m for m in asked if outcomes[m.key]["outcome"] == "caught"]
    survived = [m for m in asked if m not in caught]
    equal = [m for m in survived if m.key in reasons]
    meant = len(asked) - len(equal)
    by_stage = [sum(outcomes[m.key]["stage"] == stage for m in caught) for stage in range(3)]
    lines = [
        f"{len(asked)} of {len(drawn)} drawn lines (seed {seed}) of {', '.join(FOLDERS)} were flipped, one at a time.",
        "",
        f"- caught: {len(caught)} of {len(asked)} ({len(caught) / max(1, len(asked)):.1%}); by the files that know the "
        f"code {by_stage[0]}, by the contract {by_stage[1]}, by the rest of the suite {by_stage[2]}",
        f"- survived, and cannot be observed, as explained below: {len(equal)}",
        f"- survived otherwise: {len(survived) - len(equal)}",
        f"- caught of those that can be observed: {len(caught)} of {meant} ({len(caught) / max(1, meant):.1%})",
        "",
        "| kind of fault | drawn | caught |",
        "| --- | --- | --- |",
    ]
    for kind in sorted({m.kind for m in asked}):
        of_kind = [m for m in asked if m.kind == kind]
        lines.append(f"| {kind} | {len(of_kind)} | {sum(m in caught for m in of_kind)} |")
    for title, some in (("Not caught", [m for m in survived if m not in equal]), ("Not observable", equal)):
        lines += ["", f"## {title}", ""] if some else []
        for m in some:
            lines += [f"- `{m.file}:{m.line}` {m.kind}: `{m.before}` became `{m.after}`"]
            lines += [f"  {reasons[m.key]}"] if m.key in reasons else []
    there = {m.key for name in {m.split(":")[0] for m in reasons} for m in mutations(ROOT / name, ROOT)}
    if gone := sorted(set(reasons) - there):
        lines += ["", "## Explained, but no longer there", "", *(f"- `{key}`" for key in gone)]
    lines += ["", "## Caught", ""]
    for m in caught:
        lines.append(f"- `{m.file}:{m.line}` {m.kind}: `{m.before}` became `{m.after}` ({outcomes[m.key]['by']})")
    return "\n".join(lines) + "\n"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=100, help="how many lines are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="begin with the draw of this number")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long; run again to go on")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for one call of the suite")
    parser.add_argument("--state", type=Path, default=ROOT / ".mutants.jsonl", help="what is known so far")
    parser.add_argument("--report", type=Path, help="write the report there, beside printing it")
    parser.add_argument(
        "--stages", type=int, default=3, help="1: likely files alone; 2: the contract too; 3: everything"
    )
    parser.add_argument("--again", action="store_true", help="ask the survivors once more")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    files = [path for folder in FOLDERS for path in (ROOT / folder).glob("*.py")]
    drawn = draw(files, ROOT, arguments.n, arguments.seed)
    known = arguments.state.read_text(encoding="utf-8").splitlines() if arguments.state.exists() else []
    outcomes = {entry["key"]: entry for entry in map(json.loads, known)}
    wanted = [m for m in drawn[arguments.first :] if _unknown(outcomes.get(m.key), arguments.again)]
    deadline, lock = time.monotonic() + arguments.seconds, Lock()
    copies = Copies(arguments.jobs)
    judge = Judge(copies, arguments.timeout, deadline, arguments.stages)

    def work(mutation: Mutation) -> None:
        found = judge.ask(mutation) if time.monotonic() < deadline else None
        if found is None:
            return
        with lock:
            outcomes[mutation.key] = {"key": mutation.key, **found}
            with arguments.state.open("a", encoding="utf-8") as file:
                file.write(json.dumps(outcomes[mutation.key]) + "\n")
            print(
                f"{found['outcome']:8} {found['seconds']:4} s  {mutation.file}:{mutation.line} {mutation.kind}: "
                f"{mutation.after}  [{found['by']}]",
                flush=True,
            )

    try:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for _ in pool.map(work, wanted):
                pass
    finally:
        copies.remove()
    text = report(drawn, outcomes, arguments.seed)
    print("\n" + text.split("\n## Caught")[0])
    if arguments.report:
        arguments.report.write_text(text, encoding="utf-8")


def _unknown(outcome: Outcome | None, again: bool) -> bool:
    return outcome is None or (again and outcome["outcome"] == "survived")


if __name__ == "__main__":
    main()

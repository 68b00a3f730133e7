"""results/bench/<machine>.md: a section for each benchmark with its date, versions, command and figures.

Measuring one benchmark again replaces its section and leaves the others as they are.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.harness import Figure, Settings
from zoo import machine

HEAD = """# Measured on {machine}

Written by `python -m benchmarks`. Contestants take turns in one process; figures are medians, ratios medians of the rounds'
ratios. Where the wanted figure is not reached the remark says what stops it.
"""


def slug(settings: Settings) -> str:
    """The machine's name as a file's: ``amd-epyc-2-cores``."""
    return re.sub(r"[^a-z0-9]+", "-", machine.facts(settings.device)["machine"].lower()).strip("-")


def section(name: str, title: str, found: Sequence[Figure], settings: Settings, command: str, seconds: float) -> str:
    """One benchmark as Markdown."""
    facts = machine.facts(settings.device)
    versions = f"Python {facts['python']}, torch {facts['torch']}, transformers {_version('transformers')}"
    today = datetime.date.today().isoformat()
    lines = [
        f"## {name}",
        "",
        title,
        "",
        f"`{command}`, {today}, {facts['machine']}, {settings.threads} threads, {str(settings.dtype)[6:]}, {versions}; "
        f"took {seconds:.0f} s.",
        "",
        *table(found),
    ]
    return "\n".join(lines) + "\n"


def table(found: Sequence[Figure]) -> list[str]:
    """The rows of a section, remarks below where there are any."""
    rows = ["| work | ours | theirs | ratio | wanted | reached |", "| --- | --- | --- | --- | --- | --- |"]
    remarks: list[str] = []
    for f in found:
        ratio = "" if f.ratio is None else f"{f.ratio:.2f}"
        reached = {None: "", True: "yes", False: "**no**"}[f.reached]
        note = ""
        if f.remark:
            remarks.append(f.remark)
            note = f" ({len(remarks)})"
        rows.append(f"| {f.work}{note} | {f.ours} | {f.theirs} | {ratio} | {f.wanted or ''} | {reached} |")
    return rows + (["", *(f"{i}. {remark}" for i, remark in enumerate(remarks, 1))] if remarks else [])


def in_a_line(figure: Figure) -> str:
    """A row while the rest is still being measured."""
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    return "; ".join(filter(None, (figure.work, figure.ours, figure.theirs, ratio, figure.remark)))


def write(folder: Path, settings: Settings, sections: dict[str, str]) -> Path:
    """Put sections into the machine's file, beside those that it has of other benchmarks."""
    path = folder / f"{slug(settings)}.md"
    kept = _sections(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept |= sections
    folder.mkdir(parents=True, exist_ok=True)
    head = HEAD.format(machine=machine.facts(settings.device)["machine"])
    path.write_text("\n".join([head, *(kept[name] for name in sorted(kept))]), encoding="utf-8")
    return path


def _sections(text: str) -> dict[str, str]:
    """Sections by name, each ending in one newline."""
    pieces = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    return {piece.partition("\n")[0]: f"## {piece.rstrip()}\n" for piece in pieces}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

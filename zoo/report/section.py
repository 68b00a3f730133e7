"""A table with words above and remarks below: what it is made of, and how it is printed and written."""

from __future__ import annotations

from typing import NamedTuple

from rich.console import Console

from zoo.report.table import escaped
from zoo.report.terminal import print_table, say
from zoo.trials.statistics import UNRESOLVED, Comparison

Rows = list[dict[str, str]]


class Section(NamedTuple):
    """Tables with words above and remarks below."""

    name: str  # of its file, without .md
    title: str
    words: str
    tables: tuple[tuple[str, Rows], ...]  # caption, rows of equal keys
    remarks: tuple[str, ...]


def markdown(section: Section) -> str:
    """A section as a file of its own."""
    lines = [f"# {escaped(section.title)}", "", section.words, ""]
    for caption, rows in section.tables:
        lines += [caption, "", "| " + " | ".join(map(escaped, rows[0])) + " |", "|" + " --- |" * len(rows[0])]
        lines += ["| " + " | ".join(escaped(cell) for cell in row.values()) + " |" for row in rows]
        lines.append("")
    lines += [f"- {escaped(remark)}" for remark in section.remarks]
    return "\n".join(lines).rstrip() + "\n"


def print_section(console: Console, section: Section) -> None:
    """A section in the terminal."""
    for caption, rows in section.tables:
        print_table(console, f"{section.title}: {caption}", rows, ())
    for remark in section.remarks:
        say(console, remark)


def spoken(comparison: Comparison | None) -> str:
    """``-0.0123 [-0.0200, -0.0046]``: bits per byte, with the 95 % interval where there is one."""
    if comparison is None or comparison.difference is None:
        return ""
    interval = comparison.interval
    return f"{comparison.difference:+.4f}" + ("" if interval is None else f" [{interval[0]:+.4f}, {interval[1]:+.4f}]")


def resolved(comparison: Comparison) -> str:
    """What the interval of one comparison says, no correction for others made."""
    interval = comparison.interval
    if interval is None:
        return "one seed" if comparison.seeds == 1 else ""
    return UNRESOLVED if interval[0] <= 0.0 <= interval[1] else "lower" if interval[1] < 0 else "higher"

"""Tables for a terminal: numbers are never cut; where the terminal is narrow, whole columns are left out and named."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

Rows = Sequence[dict[str, str]]
NAME_WIDTH = 12  # characters at which the first column may be wrapped at the least
GAP = 2  # between columns
PIPE_WIDTH = 240  # of what is no terminal


def print_table(
    console: Console, title: str, rows: Rows, spare: Sequence[str], styles: Sequence[str | None] = ()
) -> None:
    """Print ``rows``, dicts of equal keys; the first column holds names, all others numbers.

    Args:
        console: where to.
        title: above the table.
        rows: cells by column, as plain text.
        spare: columns that may be left out where there is no room, the first of them first.
        styles: one for each row.
    """
    rows = [{column: printable(cell) for column, cell in row.items()} for row in rows]
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    columns, missing = list(rows[0]), []
    for name in spare:
        if sum(_width(rows, column) + GAP for column in columns) <= console.width:
            break
        columns.remove(name)
        missing.append(name)
    console.print(_table(title, rows, columns, styles))
    if missing:
        console.print(f"(no room for: {', '.join(missing)})", markup=False, highlight=False)


def _table(title: str, rows: Rows, columns: Sequence[str], styles: Sequence[str | None]) -> Table:
    table = Table(
        title=Text(printable(title)), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True
    )
    for i, name in enumerate(columns):
        heading, least = name.replace(" ", "\n"), _width(rows, name)
        if i:
            table.add_column(heading, justify="right", min_width=least, overflow="fold", no_wrap=True)
        else:  # the only one that gives way
            table.add_column(heading, justify="left", min_width=least, overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(*(Text(row[name]) for name in columns), style=styles[i] if styles else None)
    return table


def _width(rows: Rows, column: str) -> int:
    """The least width of a column: names may be wrapped, and headings between words, but no number."""
    longest = max(len(row[column]) for row in rows)
    if column == next(iter(rows[0])):
        longest = min(NAME_WIDTH, longest)
    return max(longest, *map(len, column.split()))


def printable(text: str) -> str:
    """Text that moves no cursor and sets no colour: control characters are written out, lines and tabs are kept."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def say(console: Console, text: str, end: str = "\n") -> None:
    """Print a text as it is, whatever marks and control characters it holds; only the terminal breaks its lines."""
    console.print(printable(text), end=end, markup=False, highlight=False, soft_wrap=True)

"""The lines of the moving view, each made to fit the terminal: what matters least is left out first.

Rich's own bars measure every cell of a table again at each look; lines of plain text cost a tenth of that, which counts where
the processes that train want every core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from zoo.report.terminal import printable
from zoo.report.units import count, duration
from zoo.result import Progress

BAR = 20  # characters where there is plenty of room
DONE, LEFT = Style(color="green"), Style(dim=True)
Piece = tuple[int, str]  # how soon it is left out where there is no room (the largest first), and its words


class Row(NamedTuple):
    """One line of the view: a name, how much of it is over, and words."""

    name: str
    share: float | None  # of what there is to do; None: not known
    pieces: tuple[Piece, ...]


def remaining(step: Progress) -> float:
    """Seconds of training that are left."""
    return step.elapsed / max(1, step.step) * max(0, step.total - step.step)


def told(progress: Progress) -> tuple[Piece, ...]:
    """What a trial says of itself: step, loss, bits per byte so far, tokens per second, time left."""
    if progress.scoring is not None:
        return ((0, progress.scoring),)
    bits = () if progress.valid_bpb is None else ((2, f"{progress.valid_bpb:.4f} bits/byte"),)
    return (
        (3, f"{progress.step:,}/{progress.total:,}"),
        (0, f"loss {progress.loss:.4f}"),
        *bits,
        (4, f"{count(progress.tokens_per_second)} tokens/s"),
        (1, f"{duration(remaining(progress))} left"),
    )


def fitted(pieces: Sequence[Piece], room: int) -> str:
    """The pieces in their order, two spaces between, as many as there is room for; the last one may be cut."""
    kept = list(pieces)
    while len(kept) > 1 and sum(cell_len(words) + 2 for _, words in kept) - 2 > room:
        kept.remove(max(kept))
    return cut("  ".join(words for _, words in kept), room)


def cut(text: str, room: int) -> str:
    """``text`` in at most ``room`` cells of the terminal, on one line, no control characters."""
    text = printable(text).replace("\n", " ").replace("\t", " ")
    return text if cell_len(text) <= room else set_cell_size(text, max(0, room - 1)).rstrip() + "…" * (room > 0)


class Picture(NamedTuple):
    """Rows above, lines below, in no more than the terminal's height: of many rows the last are counted only."""

    rows: Sequence[Row]
    below: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, max(3, console.size.height - 1)
        below = [cut(line, width) for line in self.below][: max(0, height - 2)]
        most = max(1, height - len(below))
        rows, more = list(self.rows), []
        if len(rows) > most:
            hidden = len(rows) - most + 1
            rows, more = rows[: most - 1], [cut(f"and {hidden} more running", width)]
        longest = max((cell_len(cut(row.name, width)) for row in rows), default=0)
        names = min(longest, max(12, width // 3))
        bar = min(BAR, max(0, (width - names - 50) // 2))
        marks = ("#", "-") if options.ascii_only else ("━", "─")
        for row in rows:
            yield Segment(set_cell_size(cut(row.name, names), names) + "  ")
            if bar >= 6:
                full = round(bar * min(1.0, max(0.0, row.share or 0.0)))
                yield from (Segment(marks[0] * full, DONE), Segment(marks[1] * (bar - full) + "  ", LEFT))
            yield Segment(fitted(row.pieces, width - names - 2 - (bar + 2 if bar >= 6 else 0)))
            yield Segment.line()
        for line in (*more, *below):
            yield from (Segment(line), Segment.line())

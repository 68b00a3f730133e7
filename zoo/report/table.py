"""The table of a grid: one row per arm, as Markdown, as CSV, and for the terminal.

Rows that were scored on different text or by a different plan are never ranked together: they stand in groups of their own,
and a difference to the baseline is given only within the baseline's group.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from zoo.core.tables import tabulate
from zoo.recipe import Recipe
from zoo.report.scores import mean_scores, score_headings
from zoo.report.terminal import print_table
from zoo.report.units import bytes_of, count, flops, scaled, significant
from zoo.resolve import all_parts
from zoo.trials.grid import Arm
from zoo.trials.names import differences, spell
from zoo.trials.run import Outcome


class Row(NamedTuple):
    """One arm over its seeds. Means are over trials that are done; ``sd`` needs two of them."""

    variant: str
    parameters: int
    active_parameters: int
    flops_per_token: float
    tokens_per_second: float | None
    peak_memory: int | None
    train_loss: float | None
    valid_loss: float | None
    bits_per_byte: float | None
    sd: float | None  # of bits per byte over seeds
    difference: float | None  # mean over the seeds that arm and baseline both have
    seeds: int
    done: int
    differs: tuple[str, ...]  # ``path: baseline's value -> own``
    status: str
    notes: tuple[str, ...]
    group: str  # rows of equal groups may be compared
    scores: tuple[tuple[str, float | None], ...] = ()  # of further scorers: heading of the column, mean bits per byte


def rows_of(outcomes: Iterable[Outcome], baseline: Arm) -> list[Row]:
    """A row for each arm, in the order in which arms first occur.

    Args:
        outcomes: of any arms and seeds.
        baseline: the arm that all are compared with; it need not have been trained.
    """
    arms: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        arms.setdefault(outcome.trial.arm.name, []).append(outcome)
    headings = score_headings(o.result for group in arms.values() for o in group)
    rows = [_row(group, baseline, arms.get(baseline.name, [])) for group in arms.values()]
    own = ([o.result for o in group] for group in arms.values())
    return [row._replace(scores=mean_scores(results, headings)) for row, results in zip(rows, own, strict=True)]


def _row(own: Sequence[Outcome], baseline: Arm, theirs: Sequence[Outcome]) -> Row:
    first, done = own[0], [o for o in own if o.result.status == "done"]
    comparable = bool(theirs) and own is not theirs and group_of(first) == group_of(theirs[0])
    recipe = theirs[0].trial.recipe if theirs else baseline.recipe
    return Row(
        variant=first.trial.arm.name,
        parameters=first.result.parameters,
        active_parameters=first.result.active_parameters,
        flops_per_token=first.result.flops_per_token,
        tokens_per_second=_mean(o.result.tokens_per_second for o in done),
        peak_memory=max((o.result.peak_memory for o in done), default=None),
        train_loss=_mean(o.result.train_loss for o in done),
        valid_loss=_mean(o.result.valid_loss for o in done),
        bits_per_byte=_mean(o.result.bits_per_byte for o in done),
        sd=_sd([o.result.bits_per_byte for o in done]),
        difference=_difference(done, theirs) if comparable else None,
        seeds=len(own),
        done=len(done),
        differs=_differs(first.trial.recipe, recipe),
        status=_status(own),
        notes=_notes(own),
        group=group_of(first),
    )


def group_of(outcome: Outcome) -> str:
    """What must be equal for two scores to be compared: the corpus, its validation bytes, context and scorer.

    Tokenizers may differ: bits per byte are counted against the same raw text.
    """
    recipe, facts = outcome.trial.recipe, outcome.result.facts
    text = f"text {facts.get('corpus', facts.get('data', '?'))}, {facts.get('valid_bytes', '?')} bytes"
    return f"{text}, context {recipe.model.context}, scorer {spell(tabulate(recipe.evaluate.scorer))}"


def _difference(done: Sequence[Outcome], baseline: Sequence[Outcome]) -> float | None:
    """Mean difference in bits per byte, paired by seed."""
    theirs = {o.result.seed: o.result.bits_per_byte for o in baseline if o.result.status == "done"}
    return _mean(
        o.result.bits_per_byte - theirs[o.result.seed]
        for o in done
        if o.result.bits_per_byte is not None and theirs.get(o.result.seed) is not None
    )


def _differs(recipe: Recipe, baseline: Recipe) -> tuple[str, ...]:
    changed = differences(recipe, baseline)
    return tuple(f"{path}: {spell(a)} -> {spell(b)}" for path, (a, b) in changed.items() if path != "train.seed")


def _status(own: Sequence[Outcome]) -> str:
    """``done``, or how many are and why the others are not."""
    faults = [o for o in own if o.result.status != "done"]
    if not faults:
        return "done"
    seed = len(own) > 1
    said = [f"{o.result.status}{f' (seed {o.result.seed})' if seed else ''}: {o.result.reason}" for o in faults]
    return "; ".join([*([f"{len(own) - len(faults)} of {len(own)} done"] if seed else []), *said])


def _notes(own: Sequence[Outcome]) -> tuple[str, ...]:
    arm, forecast = own[0].trial.arm, own[0].trial.forecast
    recipe = own[0].trial.recipe
    found = [flag for o in own for flag in o.result.flags] + [note for o in own for note in o.result.notes]
    found += ["trained without guards (--no-guards)" for o in own if o.result.guards == "off"]
    found += [
        f"{part.kind} breaks {promise}: {why}" for _, part in all_parts(recipe) for promise, why in part.breaks.items()
    ]
    found += [*arm.notes, *(f"the same recipe as {name!r}" for name in arm.also)]
    found += [f"optim.{role} is not used: no such parameters" for role in forecast.unused]
    found += ["stale: trained by other source code; --refresh trains it again" for o in own if o.stale]
    return tuple(dict.fromkeys(found))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


def _sd(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.stdev(known) if len(known) > 1 else None


def _cells(row: Row) -> dict[str, str]:
    """A row in words for people."""
    bits = significant(row.bits_per_byte)
    return {
        "variant": row.variant,
        "parameters": f"{row.parameters:,}",
        "active": f"{row.active_parameters:,}",
        "FLOPs/token": flops(row.flops_per_token),
        "tokens/s": count(row.tokens_per_second),
        "peak memory": bytes_of(row.peak_memory),
        "train loss": significant(row.train_loss),
        "valid loss": significant(row.valid_loss),
        "bits/byte": bits if row.sd is None else f"{bits} ± {significant(row.sd)}",
        "difference": "" if row.difference is None else f"{row.difference:+.4f}",
        **{heading: significant(value) for heading, value in row.scores},
        "differs in": "; ".join(row.differs),
        "status": "; ".join([row.status, *row.notes]),
    }


def _grouped(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return list(groups.values())


WORDS = (
    "Losses are nats per token; bits/byte counts the raw UTF-8 bytes of the validation text. Differences to the baseline are "
    "in bits per byte, paired by seed; negative is better. FLOPs/token are those of training."
)


def markdown(rows: Sequence[Row], title: str, facts: dict[str, str]) -> str:
    """``table.md``: a table for each group of comparable rows, and the facts that stand beside every figure."""
    lines = [f"# {escaped(title)}", "", WORDS, ""]
    groups = _grouped(rows)
    for group in groups:
        if len(groups) > 1:
            lines += [f"Comparable among themselves only: {group[0].group}", ""]
        cells = [_cells(row) for row in group]
        lines += ["| " + " | ".join(cells[0]) + " |", "|" + " --- |" * len(cells[0])]
        lines += ["| " + " | ".join(escaped(cell) for cell in row.values()) + " |" for row in cells]
        lines.append("")
    lines += [f"- {escaped(name)}: {escaped(value)}" for name, value in sorted(facts.items())]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is inside a table."""
    for mark in "\\|`*_<>[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def csv_text(rows: Sequence[Row]) -> str:
    """``table.csv``: the same rows with every digit."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([*Row._fields[:-1], *(heading for heading, _ in rows[0].scores)] if rows else Row._fields[:-1])
    writer.writerows([*map(_plain, row[:-1]), *(_plain(value) for _, value in row.scores)] for row in rows)
    return written.getvalue()


def _plain(value: Any) -> Any:
    return "; ".join(value) if isinstance(value, tuple) else "" if value is None else value


SPARE = ("active", "FLOPs/token", "peak memory", "train loss", "tokens/s", "parameters")  # left out first to last


def print_rows(console: Console, rows: Sequence[Row], title: str) -> None:
    """A table for each group of comparable rows, with numbers in short; then what there is to say of each row."""
    groups = _grouped(rows)
    for group in groups:
        heading = title if len(groups) == 1 else f"{title} ({group[0].group})"
        cells = [_short(row) for row in group]
        styles = [None if row.status == "done" else "yellow" for row in group]
        print_table(console, heading, cells, SPARE, styles)


def _short(row: Row) -> dict[str, str]:
    """A row for the terminal; differences and notes are said below the table."""
    cells = {name: cell for name, cell in _cells(row).items() if name not in ("differs in", "status")}
    return cells | {"parameters": scaled(row.parameters), "active": scaled(row.active_parameters)}


def remarks(rows: Sequence[Row]) -> list[str]:
    """What the terminal says below the table: faults, notes, and in which knobs each arm differs."""
    lines = []
    for row in rows:
        said = [*([] if row.status == "done" else [row.status]), *row.differs, *row.notes]
        lines += [f"{row.variant}: {'; '.join(said)}"] if said else []
    return lines

"""The table of a grid: one row per arm, as Markdown, CSV, JSON, LaTeX, and for the terminal.

Rows that were scored by different evaluation plans are never ranked together: they stand in groups of their own. Within a
plan, bits per byte are compared whatever the tokenizer, nats per token only among rows of one tokenizer.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console

from zoo.report.rows import BASELINE, Entry, Row, rows_from, rows_of
from zoo.report.scores import heading
from zoo.report.terminal import print_table, printable
from zoo.report.units import bytes_of, count, flops, probability, scaled, signed, significant, span
from zoo.result import Result
from zoo.trials.statistics import ONE_SEED, noise_floor

__all__ = [
    "Entry",
    "Row",
    "by_plan",
    "csv_text",
    "json_text",
    "latex",
    "markdown",
    "print_rows",
    "remarks",
    "rows_from",
    "rows_of",
    "shared_facts",
    "trials_csv",
]

WORDS = (
    "Losses are nats per token; bits/byte counts the raw UTF-8 bytes of the validation text. Differences to the baseline are "
    "in bits per byte, paired by seed; negative is better. FLOPs/token are those of training."
)
STATISTICS = (
    "± is the standard deviation over seeds. The interval holds the true difference in 95 cases of 100 (Student's t; by "
    "resampling seeds beside it from 8 seeds on). p is that of a paired t test, corrected for the number of arms (Holm). The "
    "smallest effect is the difference that as many seeds find in 80 cases of 100. The verdict is at the 5 % level."
)
OTHER_TOKENS = "Nats per token are left out in rows whose tokenizer is not the first row's: they count other units."

OPTIONAL = (
    "95% interval",
    "resampled",
    "Holm p",
    "smallest effect",
    "verdict",
    "artifact",
)  # shown where some row has them


def _cells(row: Row, tokens: str) -> dict[str, str]:
    """A row in words for people; ``tokens`` is the tokenizer whose nats are shown."""
    bits, comparable = significant(row.bits_per_byte), row.tokens == tokens
    return {
        "variant": row.variant,
        "parameters": f"{row.parameters:,}",
        "active": f"{row.active_parameters:,}",
        "FLOPs/token": flops(row.flops_per_token),
        "tokens/s": count(row.tokens_per_second),
        "peak memory": bytes_of(row.peak_memory),
        "train loss": significant(row.train_loss) if comparable else "",
        "valid loss": significant(row.valid_loss) if comparable else "",
        "bits/byte": bits if row.sd is None else f"{bits} ± {significant(row.sd)}",
        "difference": signed(row.difference),
        "artifact": count(row.artifact_bytes),
        **{heading: significant(value) for heading, value in row.scores},
        "95% interval": span(row.interval_low, row.interval_high),
        "resampled": span(row.bootstrap_low, row.bootstrap_high),
        "Holm p": probability(row.holm_p),
        "smallest effect": significant(row.smallest_effect),
        "verdict": row.verdict,
        "differs in": "; ".join(row.changes),
        "status": row.status,
    }


def by_plan(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in groups that may be compared among themselves."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.plan, []).append(row)
    return list(groups.values())


def _tables(rows: Sequence[Row]) -> list[tuple[list[Row], list[dict[str, str]]]]:
    """Groups of rows of one plan, each with its cells; columns of statistics that no row has are left out."""
    tables = []
    for group in by_plan(rows):
        cells = [_cells(row, group[0].tokens) for row in group]
        empty = {name for name in OPTIONAL if all(cell[name] in ("", BASELINE) for cell in cells)}
        tables.append((group, [{k: v for k, v in cell.items() if k not in empty} for cell in cells]))
    return tables


def shared_notes(rows: Sequence[Row]) -> list[str]:
    """The notes that all rows have, which are said once; none where there is but one row."""
    return [note for note in rows[0].notes if all(note in row.notes for row in rows)] if len(rows) > 1 else []


def sayings(rows: Sequence[Row]) -> list[str]:
    """What is to be said of one plan's rows as a whole: notes of all arms, the noise floor, other tokenizers."""
    lines = [f"All arms: {'; '.join(shared)}"] if (shared := shared_notes(rows)) else []
    for row in rows:
        noise = noise_floor(row.sd, row.done) if row.verdict == BASELINE else None
        if noise is not None:
            lines.append(
                f"Noise floor: {row.variant} over its {noise.seeds} seeds has a standard deviation of {noise.sd:.4f} bits per "
                f"byte; two runs of it with other seeds differ by less than {noise.apart:.4f} in 95 cases of 100."
            )
    if any(row.tokens != rows[0].tokens for row in rows):
        lines.append(OTHER_TOKENS)
    return lines


def _own_notes(row: Row, shared: Sequence[str]) -> list[str]:
    return [note for note in row.notes if note not in shared]


def markdown(rows: Sequence[Row], title: str, facts: dict[str, str]) -> str:
    """``table.md``: a table for each group of comparable rows, and the facts that stand beside every figure."""
    lines = [f"# {escaped(title)}", "", WORDS, ""]
    lines += [STATISTICS, ""] if any(row.holm_p is not None for row in rows) else []
    tables = _tables(rows)
    for group, cells in tables:
        if len(tables) > 1:
            lines += [f"Comparable among themselves only: {group[0].group}", ""]
        shared = shared_notes(group)
        for row, cell in zip(group, cells, strict=True):
            cell["status"] = "; ".join([row.status, *_own_notes(row, shared)])
        lines += ["| " + " | ".join(cells[0]) + " |", "|" + " --- |" * len(cells[0])]
        lines += ["| " + " | ".join(escaped(cell) for cell in row.values()) + " |" for row in cells]
        lines += ["", *(line for said in sayings(group) for line in (escaped(said), ""))]
    if len(tables) == 1:
        facts = {"plan": rows[0].group, **facts}
    lines += [f"- {escaped(name)}: {escaped(value)}" for name, value in sorted(facts.items())]
    return "\n".join(lines) + "\n"


def shared_facts(results: Iterable[Result]) -> dict[str, str]:
    """Facts in which all results agree; those in which they differ, with every value."""
    facts = [result.facts for result in results]
    names = dict.fromkeys(name for table in facts for name in table if name != "code")
    values = {name: dict.fromkeys(table.get(name, "?") for table in facts) for name in names}
    return {name: " / ".join(found) for name, found in values.items()}


def escaped(text: str) -> str:
    """Text that Markdown shows as it is inside a table; control characters are written out."""
    text = printable(text)
    for mark in "\\|`*_<>[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def csv_text(rows: Sequence[Row]) -> str:
    """``table.csv``: the same rows with every digit."""
    headings = [heading for heading, _ in rows[0].scores] if rows else []
    cells = ([*map(_plain, row[:-1]), *(_plain(value) for _, value in row.scores)] for row in rows)
    return _csv([*Row._fields[:-1], *headings], cells)


def trials_csv(results: Iterable[Result]) -> str:
    """``results.csv``: a row for each trial, every field of its result and every fact, readable without the zoo."""
    tables = []
    for result in results:
        table = {k: v for k, v in result.model_dump(mode="json").items() if not isinstance(v, dict)}
        nested = {"plan": result.plan.model_dump(mode="json") if result.plan else {}, "facts": result.facts}
        table |= {f"{name}.{key}": value for name, inner in nested.items() for key, value in inner.items()}
        for label, score in result.scores.items():
            table[f"scores.{heading(label, score.code_length)}"] = score.bits_per_byte
        tables.append(table)
    names = dict.fromkeys(name for table in tables for name in table if name != "plan")
    return _csv(names, ([_plain(table.get(name)) for name in names] for table in tables))


def _csv(names: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return written.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return "; ".join(value)
    return "" if value is None else json.dumps(value) if isinstance(value, dict) else value


def json_text(rows: Sequence[Row]) -> str:
    """The rows by evaluation plan, with every digit."""
    plans = [
        {"plan": group[0].plan, "described": group[0].group, "rows": [row._asdict() for row in group]}
        for group, _ in _tables(rows)
    ]
    return json.dumps(plans, indent=2, allow_nan=False) + "\n"


PRINTED = ("variant", "parameters", "FLOPs/token", "bits/byte", "difference", *OPTIONAL)  # columns of a paper's table


def latex(rows: Sequence[Row]) -> str:
    """A ``tabular`` for each plan; wants the package booktabs."""
    lines = []
    for group, cells in _tables(rows):
        names = [name for name in PRINTED if name in cells[0]]
        lines += [
            f"% {' '.join(group[0].group.split())}",
            rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}",
            r"\toprule",
        ]
        lines += [" & ".join(map(_tex, names)) + r" \\", r"\midrule"]
        lines += [" & ".join(_tex(row[name]) for name in names) + r" \\" for row in cells]
        lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


TEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
}


def _tex(text: str) -> str:
    """Text that LaTeX shows as it is."""
    return "".join(TEX.get(mark) or (rf"\{mark}" if mark in "&%$#_{}" else mark) for mark in " ".join(text.split()))


SPARE = ("active", "FLOPs/token", "peak memory", "train loss", "resampled", "tokens/s", "valid loss", "parameters")
SPARE += ("Holm p", "smallest effect", "95% interval")  # left out where there is no room, first to last


def print_rows(console: Console, rows: Sequence[Row], title: str) -> None:
    """A table for each group of comparable rows, with numbers in short; then what there is to say of each row."""
    tables = _tables(rows)
    for group, cells in tables:
        heading = title if len(tables) == 1 else f"{title} ({group[0].group})"
        styles = [None if row.status == "done" else "yellow" for row in group]
        spare = [name for name in SPARE if name in cells[0]]
        short = [_short(row, cell) for row, cell in zip(group, cells, strict=True)]
        print_table(console, heading, short, spare, styles)


def _short(row: Row, cells: dict[str, str]) -> dict[str, str]:
    """A row for the terminal; differences and notes are said below the table."""
    cells = {name: cell for name, cell in cells.items() if name not in ("differs in", "status")}
    if cells.get("verdict") == ONE_SEED:
        cells["verdict"] = "one seed"
    return cells | {"parameters": scaled(row.parameters), "active": scaled(row.active_parameters)}


def remarks(rows: Sequence[Row]) -> list[str]:
    """What the terminal says below the table: faults, notes and differences of each arm, then what all arms share."""
    lines = []
    for group, _ in _tables(rows):
        shared = shared_notes(group)
        for row in group:
            said = [*([] if row.status == "done" else [row.status]), *row.changes, *_own_notes(row, shared)]
            lines += [f"{row.variant}: {'; '.join(said)}"] if said else []
        lines += sayings(group)
    if any(row.verdict == ONE_SEED for row in rows):
        lines.append("One seed gives no verdict: --seeds 5 says how large a difference has to be to be believed.")
    return lines

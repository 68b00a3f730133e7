"""Two trials side by side: in which knobs they differ, and what each came to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console

from zoo.core.tables import tabulate
from zoo.report.rows import Entry, plan_hash, plan_in_words
from zoo.report.scores import heading
from zoo.report.terminal import say
from zoo.report.units import bytes_of, count, flops, scaled, signed, significant
from zoo.result import Result
from zoo.trials.names import differences, spell
from zoo.trials.open import Finished

# What is shown of a result, how, and whether it counts in nats per token.
FIGURES: tuple[tuple[str, Callable[[Any], str], bool], ...] = (
    ("steps", count, False),
    ("tokens", scaled, False),
    ("parameters", count, False),
    ("active_parameters", count, False),
    ("flops_per_token", flops, False),
    ("tokens_per_second", count, False),
    ("peak_memory", bytes_of, False),
    ("train_loss", significant, True),
    ("valid_loss", significant, True),
    ("bits_per_byte", significant, False),
)
WIDEST = 60  # characters of a value before it is cut: what is long differs early, and the recipes hold it whole


def print_diff(a: Finished, b: Finished, console: Console) -> None:
    """Print the knobs, facts and figures of two trials, and whether their scores may be compared."""
    for line in lines_of(a, b):
        say(console, line)


def lines_of(a: Finished, b: Finished) -> list[str]:
    """What ``print_diff`` prints."""
    names = ("", f"{a.result.variant} seed {a.result.seed}", f"{b.result.variant} seed {b.result.seed}")
    changed = differences(b.recipe, a.recipe)
    knobs = [(path, spell(x), spell(y)) for path, (x, y) in changed.items() if path not in ("base", "plugins")]
    one, other = a.result.facts, b.result.facts
    facts = [
        (n, one.get(n, "-"), other.get(n, "-")) for n in dict.fromkeys([*one, *other]) if one.get(n) != other.get(n)
    ]
    lines = _columns([names, *knobs]) if knobs else ["The recipes are equal."]
    if facts:
        lines += ["", *_columns([("facts", *names[1:]), *facts])]
    return [
        *lines,
        "",
        *_columns([("figures", *names[1:], "difference"), *_figures(a.result, b.result)]),
        "",
        *_words(a, b),
    ]


def _figures(a: Result, b: Result) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [("status", a.status, b.status, "")]
    same_tokens = _tokens(a) == _tokens(b)
    for name, words, in_nats in FIGURES:
        x, y = getattr(a, name), getattr(b, name)
        comparable = x is not None and y is not None and words is significant and (same_tokens or not in_nats)
        found.append((name, words(x), words(y), signed(y - x) if comparable else ""))
    for label in dict.fromkeys([*a.scores, *b.scores]):
        x, y = (r.scores[label].bits_per_byte if label in r.scores else None for r in (a, b))
        a_code = all(r.scores[label].code_length for r in (a, b) if label in r.scores)
        difference = signed(y - x) if x is not None and y is not None and a_code else ""
        found.append((heading(label, a_code), significant(x), significant(y), difference))
    return found


def _tokens(result: Result) -> str:
    return result.plan.tokens if result.plan else result.facts.get("data", "")


def _words(a: Finished, b: Finished) -> list[str]:
    entries = [Entry(t.result.variant, tabulate(t.recipe), t.result) for t in (a, b)]
    plans = [plan_in_words(entry) for entry in entries]
    lines = []
    if plan_hash(entries[0]) == plan_hash(entries[1]):
        lines.append(f"Both were scored by one plan: {plans[0]}.")
    else:
        lines.append(f"Scored by different plans, so the differences mean nothing: {plans[0]}; {plans[1]}.")
    if _tokens(a.result) != _tokens(b.result):
        lines.append("Their tokenizers differ: nats per token are not compared, bits per byte are.")
    if a.result.seed != b.result.seed:
        lines.append("Their seeds differ: the difference holds the noise of both.")
    return [*lines, *(f"{t.result.variant}: {note}" for t in (a, b) for note in (*t.result.flags, *t.result.notes))]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    cut = [[cell if len(cell) <= WIDEST else f"{cell[: WIDEST - 4]} ..." for cell in row] for row in rows]
    n = max(map(len, cut))
    widths = [max(len(row[i]) for row in cut if i < len(row)) for i in range(n)]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)).rstrip() for row in cut]

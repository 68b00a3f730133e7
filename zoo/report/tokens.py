"""What ``tokens`` prints: a recipe's tokenizer measured on its own validation text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from zoo.api import pick
from zoo.data.prepare import Prepared
from zoo.data.slots import Document, Tokenizer
from zoo.report.live import view_for
from zoo.report.terminal import printable, say
from zoo.report.units import scaled
from zoo.trials.grid import Grid
from zoo.trials.run import text_of

MOST = 1_000_000  # bytes of validation text that are measured
SAMPLE = 600  # characters of it that are shown
COLOURS = ("black on bright_cyan", "black on bright_yellow", "black on bright_green", "black on bright_magenta")


class Measures(NamedTuple):
    """Figures of a tokenizer on a text."""

    vocab_size: int
    tokens: int
    bytes: int
    unknown: int  # tokens
    lossless: bool  # every document came back as it was
    changed: int  # documents that did not
    used: int  # ids that occur

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens


def measure(tokenizer: Tokenizer, documents: Sequence[Document]) -> Measures:
    """Encode documents and look at what came of them; bos is not counted."""
    tokens = n_bytes = unknown = changed = 0
    used: set[int] = set()
    for document in documents:
        ids, spans = tokenizer.spans(document.text)
        tokens, n_bytes = tokens + len(ids), n_bytes + int(spans.sum())
        unknown += int((ids == tokenizer.unknown).sum()) if tokenizer.unknown is not None else 0
        changed += tokenizer.decode(ids) != document.text
        used.update(ids.tolist())
    return Measures(tokenizer.vocab_size, tokens, n_bytes, unknown, not changed, changed, len(used))


def longest(tokenizer: Tokenizer, n: int = 10) -> list[tuple[int, str]]:
    """The ids that stand for most bytes, with their text."""
    lengths = tokenizer.byte_lengths()
    ids = np.argsort(-lengths, kind="stable")[:n]
    return [(int(i), tokenizer.decode([int(i)])) for i in ids]


def pieces(tokenizer: Tokenizer, text: str) -> Iterator[str]:
    """The stretch of the raw text that each token covers; a character shared by several tokens stands at its last."""
    raw, at, begun = text.encode("utf-8"), 0, b""
    for width in tokenizer.spans(text)[1].tolist():
        begun, at = begun + raw[at : at + width], at + width
        whole = begun.decode("utf-8", errors="ignore")
        if whole.encode("utf-8") == begun:
            yield whole
            begun = b""
        else:
            yield ""


def coloured(tokenizer: Tokenizer, text: str) -> Text:
    """A text with neighbouring tokens in different colours; line ends and tabs are written out, too."""
    shown = Text()
    for i, piece in enumerate(piece for piece in pieces(tokenizer, text) if piece):
        visible = printable(piece).replace("\n", "\u21b5\n").replace("\t", "\u2192   ")
        for j, line in enumerate(visible.split("\n")):
            shown.append("\n" if j else "").append(line, COLOURS[i % len(COLOURS)])
    return shown


def show_tokens(grid: Grid, variant: str | None, console: Console) -> None:
    """Prepare an arm's text and print what its tokenizer makes of it.

    Raises:
        ConfigError: text or tokenizer that cannot be.
    """
    arm = pick(grid, variant)
    with view_for(console) as view:
        prepared = text_of(arm.recipe, grid.folder, view.preparing)
    documents = list(_some(prepared, MOST))
    _print(prepared, measure(prepared.tokenizer, documents), documents, console)


def _some(prepared: Prepared, n_bytes: int) -> Iterator[Document]:
    """Validation documents, the last of them cut, up to ``n_bytes``."""
    for document in prepared.documents("valid"):
        yield document._replace(text=document.text[:n_bytes])
        n_bytes -= len(document.text)
        if n_bytes <= 0:
            return


def _print(prepared: Prepared, found: Measures, documents: Sequence[Document], console: Console) -> None:
    tokenizer, facts = prepared.tokenizer, prepared.facts
    lossless = "yes" if found.lossless else f"no: {found.changed:,} of {len(documents):,} documents come back changed"
    rows = {
        "tokenizer": tokenizer.kind,
        "vocabulary": f"{found.vocab_size:,} ids, {found.used:,} of them in this text",
        "bytes per token": f"{found.bytes_per_token:.4f}",
        "unknown": f"{found.unknown / found.tokens:.4%} of tokens",
        "encode, then decode": f"lossless: {lossless}",
        "bytes counted": facts["bytes_counted"],
        "measured on": f"{scaled(found.bytes, 'B')} of validation text, {found.tokens:,} tokens without bos",
        "training text": f"{scaled(prepared.train_bytes, 'B')}, {len(prepared.train):,} tokens",
        "across the split": facts["shared"],
    }
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        say(console, f"{name:<{width}}{value}")
    say(console, "\nlongest tokens")
    for i, text in longest(tokenizer):
        say(console, f"  {i:>8,}  {text!r}")
    say(console, "")
    text = "".join(islice((c for document in documents for c in document.text), SAMPLE))
    console.print(coloured(tokenizer, text), soft_wrap=True)


def tokens(
    recipe: Path, profile: str | None, sets: Sequence[str], device: str | None, variant: str | None, console: Console
) -> None:
    """Read a recipe and show its tokenizer."""
    from zoo.report.session import open_grid

    show_tokens(open_grid(recipe, profile, sets, None, device, console), variant, console)

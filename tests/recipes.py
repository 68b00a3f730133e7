"""Small recipes for tests, written into a folder of their own."""

from __future__ import annotations

from pathlib import Path

TEXT = "".join(f"Line {i}: the quick brown fox jumps over {i * 7919 % 1000} lazy dogs.\n" for i in range(600))

# Two layers on a few kilobytes of text: a trial takes about a second.
SMALL = """
[model]
context = 16
dim = 16
n_layers = 2

[model.layer]
attention = { kind = "gqa", n_heads = 2 }
ffn = { kind = "swiglu", hidden_dim = 32 }

[data]
source = { kind = "text", files = ["text.txt"] }

[optim]
matrix = { kind = "adamw", lr = 3e-3 }
embedding = { kind = "adamw", lr = 3e-3 }
scalar = { kind = "adamw", lr = 3e-3 }

[train]
steps = 6
batch = 4
log_every = 2

[machine]
threads = 1
dtype = "float32"
"""


def write(folder: Path, more: str = "", name: str = "small.toml", start: str = SMALL) -> Path:
    """A recipe file with its text beside it: ``start`` and ``more``, whose lines ahead of its first table come first."""
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    lines = more.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if line.startswith("[")), len(lines))
    path = folder / name
    path.write_text("".join(lines[:first]) + start + "".join(lines[first:]), encoding="utf-8")
    return path

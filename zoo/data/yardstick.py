"""What a compressor makes of a text: below a good share of it, a model's score is too good to be true."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo.data.cache import entry

if TYPE_CHECKING:
    from zoo.data.prepare import Prepared

LEAST = 1_000_000  # bytes: on less, a compressor has not seen enough to be a yardstick
MOST = 2_000_000


def xz_facts(prepared: Prepared, cache: Path) -> dict[str, str]:
    """``xz_bpb``: bits per byte of xz -9e on 1 to 2 MB of the text; nothing where there is less of it.

    The validation text comes first; where it is too short, training text follows it. Kept in the cache.
    """
    if prepared.valid_bytes + prepared.train_bytes < LEAST:
        return {}
    folder = entry(cache, f"xz-{prepared.fingerprint[:32]}", lambda f: _compress(prepared, f))
    figure = json.loads((folder / "xz.json").read_text())["xz_bpb"]
    return {} if figure is None else {"xz_bpb": f"{figure:.4f}"}


def _compress(prepared: Prepared, folder: Path) -> None:
    from zoo.data.counts import xz_bits_per_byte

    text = b""
    for stream in (prepared.valid, prepared.train):
        for piece in decoded(stream[:MOST], prepared):
            text += piece
            if len(text) >= (MOST if stream is prepared.valid else LEAST):
                break
        if len(text) >= LEAST:
            break
    figure = xz_bits_per_byte(text[:MOST]) if len(text) >= LEAST else None
    (folder / "xz.json").write_text(json.dumps({"xz_bpb": figure}))


def decoded(stream: np.ndarray, prepared: Prepared) -> Iterator[bytes]:
    """The documents of a token stream as UTF-8, in order (as the tokenizer gives them back, where it changes text)."""
    starts = np.append(np.flatnonzero(stream == prepared.tokenizer.bos), len(stream))
    for start, end in itertools.pairwise(starts):
        yield prepared.tokenizer.decode(stream[start + 1 : end].tolist()).encode("utf-8")

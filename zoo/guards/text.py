"""Probes of the text: targets are the next tokens, and what a model is scored on is not what it has learned."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from zoo.budget import batches_of, take, total_steps
from zoo.core.part import ConfigError
from zoo.data.batches import segments
from zoo.data.cache import default_cache, entry
from zoo.guards.probes import Leak
from zoo.recipe import Recipe

if TYPE_CHECKING:
    from zoo.data.prepare import Prepared

# Of the validation bytes, how many may be (nearly) copies of training documents, where those are left in. What is learned by
# heart costs nothing, so a share s makes a score better by up to s of itself: at 1 % less than 0.01 of the score, which is
# below what seeds make. Text from the web always repeats a few documents (licences, error pages), so none at all would
# refuse every such corpus.
SHARED = 0.01
# Of the stretches below, how many may stand in the training text. Boilerplate gives 2 % in Python's standard library.
REPEATED = 0.1
STRETCH = 200  # bytes, about: a stretch is a power of two of tokens
SAMPLE = 400  # stretches, drawn from all of the validation text
LOOKED_AT = 50_000_000  # training tokens, at most
BLOCK = 2**22  # tokens hashed at once
STEPS = 6  # updates whose batches are looked at: the first three, and some of the whole run
ROWS = 8  # of each micro-batch
HORIZON = 10_000  # updates, where a budget in seconds does not tell their number


def disjoint(prepared: Prepared) -> None:
    """Validation documents are not training documents."""
    left = 0 if prepared.removed else prepared.shared_bytes
    share = left / max(1, prepared.valid_bytes)
    if share > SHARED:
        said = f"{share:.1%} of the validation text are copies of training documents (allowed: {SHARED:.0%})"
        raise Leak("disjoint", f"it would be scored on text that it learns from: {said}")
    share = _share_repeated(prepared)
    if share > REPEATED:
        said = f"{share:.0%} of {SAMPLE} stretches of the validation text stand in the training text (allowed: {REPEATED:.0%})"
        raise Leak("disjoint", f"it would be scored on text that it learns from: {said}")


def _share_repeated(prepared: Prepared) -> float:
    """``repeated`` of the text, from the cache where that takes something."""

    def count() -> float:
        width = 2 ** max(3, math.ceil(math.log2(STRETCH * len(prepared.valid) / max(1, prepared.valid_bytes))))
        return repeated(prepared.train, prepared.valid, prepared.tokenizer.bos, width)

    def write(folder: Path) -> None:
        (folder / "repeated.json").write_text(json.dumps(count()))

    try:
        folder = entry(default_cache(), f"repeated-{prepared.fingerprint[:32]}", write)
    except ConfigError:  # no room: no reason to refuse a trial
        return count()
    return json.loads((folder / "repeated.json").read_text())


def repeated(train: np.ndarray, valid: np.ndarray, bos: int, width: int) -> float:
    """The share of random stretches of ``valid`` that stand in ``train``, word for word and wherever documents were cut.

    Args:
        train, valid: (N,) ids.
        bos: the id that begins a document; a stretch lies within one.
        width: tokens of a stretch, a power of two.
    """
    starts = np.random.RandomState(0).permutation(max(0, len(valid) - width + 1))[: 4 * SAMPLE]
    stretches = [valid[s : s + width] for s in starts]
    asked = np.array([hashes(s, width)[0] for s in stretches if not (s == bos).any()][:SAMPLE], np.uint64)
    if not len(asked):
        return 0.0
    found = np.zeros(len(asked), bool)
    low = np.zeros(2**16, bool)  # by the lowest bits, which leave less than one in a hundred to be looked up
    low[asked.astype(np.uint16)] = True
    for start in range(0, min(len(train), LOOKED_AT), BLOCK):
        piece = train[start : start + BLOCK + width - 1]
        if len(piece) >= width:
            known = hashes(piece, width)
            found |= np.isin(asked, known[low[known.astype(np.uint16)]])
    return float(found.mean())


def hashes(ids: np.ndarray, width: int) -> np.ndarray:
    """A 64-bit hash of every stretch of ``width`` (a power of two) ids: (N,) -> (N - width + 1,)."""
    h, done = ids.astype(np.uint64) + np.uint64(1), 1
    while done < width:
        factor = np.uint64(pow(0x9E3779B97F4A7C15, done, 2**64))
        h = h[: len(h) - done] * factor + h[done:]
        done *= 2
    return h


def next_tokens(recipe: Recipe, prepared: Prepared) -> None:
    """Each target of a batch, taken as the loop takes it, is the token after its input in the training stream."""
    batches, chance = batches_of(recipe, prepared), random.Random(recipe.train.seed)
    total = total_steps(recipe) or HORIZON
    for i in range(STEPS):
        step = i + 1 if i < STEPS // 2 else chance.randint(1, total)
        micro = chance.randrange(recipe.train.accumulate)
        inputs, targets, documents = take(recipe, batches, min(step, total), micro, total)
        chosen = chance.sample(range(len(inputs)), min(ROWS, len(inputs)))
        for row in chosen:
            _check_row(inputs[row], targets[row], prepared.train)
        _check_documents(recipe, inputs, documents, prepared.tokenizer.bos)


def _check_row(inputs: Tensor, targets: Tensor, stream: np.ndarray) -> None:
    row, wanted = inputs.numpy(), targets.numpy()
    starts = places_of(row, stream)
    if not len(starts):
        raise Leak("targets", "a batch holds a row that does not stand in the training text")
    if any((stream[s + 1 : s + 1 + len(row)] == wanted).all() for s in starts):
        return
    if (row == wanted).all():
        raise Leak("targets", "targets are not shifted: each token is to be predicted from itself")
    at = int((stream[starts[0] + 1 : starts[0] + 1 + len(row)] != wanted).argmax())
    raise Leak("targets", f"the target of token {at} is {wanted[at]}, where {stream[starts[0] + at + 1]} comes next")


def places_of(row: np.ndarray, stream: np.ndarray) -> np.ndarray:
    """Every start of ``row`` (T,) in ``stream`` (N,), but for one at the very end, which has no next token."""
    starts = np.flatnonzero(stream[: len(stream) - len(row)] == row[0])
    for t in range(1, len(row)):
        if not len(starts):
            break
        starts = starts[stream[starts + t] == row[t]]
    return starts


def _check_documents(recipe: Recipe, inputs: Tensor, documents: Tensor | None, bos: int) -> None:
    if recipe.data.document_mask == "none":
        return
    wanted = segments(inputs, bos)
    if documents is None or not bool((documents.diff(dim=1).bool() == wanted.diff(dim=1).bool()).all()):
        raise Leak("document_bounded", "the numbers of a batch's documents do not change where documents begin")

"""Probes of the text: targets are the next tokens, and what a model is scored on is not what it has learned."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from zoo.data.batches import segments
from zoo.guards.probes import Leak
from zoo.recipe import Recipe
from zoo.train import batches_of, take, total_steps

if TYPE_CHECKING:
    from zoo.data.prepare import Prepared

# Of the validation bytes, how many may stand in training documents word for word. What is learned by heart costs nothing, so
# a share s makes a score better by up to s of itself: at 1 % less than 0.01 of the score, which is below what seeds make.
# Text from the web always repeats a few documents (licences, error pages), so none at all would refuse every such corpus.
SHARED = 0.01
STEPS = 6  # updates whose batches are looked at: the first three, and some of the whole run
ROWS = 8  # of each micro-batch
HORIZON = 10_000  # updates, where a budget in seconds does not tell their number


def disjoint(prepared: Prepared) -> None:
    """Validation documents are not training documents."""
    share = prepared.shared_bytes / max(1, prepared.valid_bytes)
    if share > SHARED:
        said = f"{share:.1%} of the validation text stands in training documents word for word (allowed: {SHARED:.0%})"
        raise Leak("disjoint", f"it would be scored on text that it learns from: {said}")


def next_tokens(recipe: Recipe, prepared: Prepared) -> None:
    """Each target of a batch, taken as the loop takes it, is the token after its input in the training stream."""
    batches, chance = batches_of(recipe, prepared), random.Random(recipe.train.seed)
    total = total_steps(recipe) or HORIZON
    for i in range(STEPS):
        step = i + 1 if i < STEPS // 2 else chance.randint(1, total)
        micro = chance.randrange(recipe.train.accumulate)
        inputs, targets, documents = take(recipe, batches, min(step, total), micro)
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

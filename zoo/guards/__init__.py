"""Guards: before a trial trains, what would make its score worthless is looked for, and such a trial is refused.

Its model, with random parameters and short rows, must not see later tokens, other rows, other documents or earlier calls; its
loss must be the cross entropy of the next token and nothing else; its targets must be the next tokens of the training text,
and its validation text must not be training text. The probes see tensors, never names. A kind that declares what it breaks
(``breaks``), in a recipe that says ``as_published = true``, is let through for that promise and for no other.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from zoo import machine
from zoo.core.part import ConfigError
from zoo.core.tables import tabulate
from zoo.data.cache import default_cache, entry
from zoo.guards import probes, scores, text
from zoo.guards.bench import Bench, Precision, cut, exact, whole
from zoo.guards.flags import judged
from zoo.guards.probes import Leak
from zoo.loop import Loop
from zoo.recipe import Recipe
from zoo.resolve import all_parts

if TYPE_CHECKING:
    from zoo.data.prepare import Prepared

__all__ = ["Refused", "inspect", "judged"]

_known: dict[str, Leak | None] = {}  # what this process has found, by structure


class Refused(Exception):
    """A trial must not train; the message says why."""


def inspect(recipe: Recipe, prepared: Prepared, code: str) -> None:
    """Probe a trial before it trains.

    Args:
        recipe: resolved and settled, with its vocabulary.
        prepared: its text.
        code: a hash of the source that the trial runs.

    Raises:
        Refused: something is wrong; the message is one sentence.
    """
    torch.set_num_threads(machine.settle_threads(recipe.machine.threads))
    declared = {promise for _, part in all_parts(recipe) for promise in part.breaks}
    try:
        text.disjoint(prepared)
        text.next_tokens(recipe, prepared)
        _inspect_structure(recipe, declared, code)
    except Leak as leak:
        raise Refused(str(leak)) from None
    except Exception as fault:
        if _trains(recipe, prepared):  # else it fails under its own name
            raise Refused(f"it cannot be probed: {type(fault).__name__}: {fault}") from fault


def _trains(recipe: Recipe, prepared: Prepared) -> bool:
    """Whether one update of the recipe goes through."""
    try:
        Loop(recipe, prepared, lambda progress: None, io.StringIO())._update()
    except Exception:
        return False
    return True


def _inspect_structure(recipe: Recipe, declared: set[str], code: str) -> None:
    """Probe the model and what scores it, unless this structure has been found sound before."""
    key = structure(recipe, code)
    if key not in _known:
        try:
            if all(part.__module__.startswith("zoo.") for _, part in all_parts(recipe)):
                _probe_once(key, recipe, declared)
            else:  # what a guest imports is not hashed, so it is probed again in every process
                probe(recipe, declared)
        except Leak as leak:
            _known[key] = leak
        else:
            _known[key] = None
    if (found := _known[key]) is not None:
        raise found


def _probe_once(key: str, recipe: Recipe, declared: set[str]) -> None:
    """Probe, or find in the cache that it has been done; a cache that takes nothing is no reason to refuse a trial."""
    try:
        entry(default_cache(), f"guards-{key}", lambda folder: _note(folder, recipe, declared))
    except ConfigError:
        probe(recipe, declared)


def _note(folder: Path, recipe: Recipe, declared: set[str]) -> None:
    probe(recipe, declared)
    (folder / "verdict.json").write_text(json.dumps({"found": None}))


def structure(recipe: Recipe, code: str) -> str:
    """A name for all that the probes of a model depend on."""
    table = tabulate(recipe)
    said = [
        table["model"],
        table["average"],
        table["evaluate"]["scorer"],
        table["data"]["document_mask"],
        table["train"]["recompute"],
        recipe.machine.dtype,
        recipe.machine.device.partition(":")[0],
    ]
    text = json.dumps([said, code, _own_code(), torch.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _own_code() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def probe(recipe: Recipe, declared: set[str] = frozenset(), seed: int = 0) -> None:
    """All probes of a recipe's model, its loss, its scorer and its average; what is ``declared`` as broken is not asked.

    Raises:
        Leak: the first that finds something.
    """
    device = machine.settle_device(recipe.machine.device)
    masked, recompute = recipe.data.document_mask == "segments", recipe.train.recompute == "layers"
    settled = machine.settle_dtype(recipe.machine.dtype, device)
    stream = machine.DTYPES[settled]
    own = Precision(torch.float64 if settled == "float64" else torch.float32, stream, 1e-5, None)

    def ask(bench: Bench, asked: tuple[Callable[[Bench], None], ...]) -> None:
        for question in asked:
            try:
                question(bench)
            except Leak as leak:
                if leak.promise not in declared:
                    raise

    there = "cpu" if device == "mps" else device
    if there == "cpu":
        machine.keep_freed_memory()
    bench = Bench(cut(recipe.model), there, exact(there), masked, recompute, seed)
    ask(bench, probes.AT_EVERY_PLACE)
    scores.average(recipe.average, bench)
    scores.code_length(recipe.evaluate.scorer, recipe.model.context)
    if (config := whole(recipe.model, bench)) is not bench.model.config:
        bench = Bench(config, there, exact(there), masked, recompute, seed + 1)
    bench.stretch()
    ask(bench, probes.OF_THE_WHOLE)
    bench.settle(own, device)
    ask(bench, probes.AS_IT_TRAINS)

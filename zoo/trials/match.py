"""Fair sizes: the width of an arm is solved so that it costs what the baseline costs.

The rule: first ``hidden_dim`` of ``model.layer.ffn`` alone; where that cannot reach 1 %, ``model.dim`` as near as it comes and
``hidden_dim`` for the rest. Both in multiples of ``grid.match_multiple_of`` (``dim`` also of the heads, where these divide it).
A width that the grid itself varies is left alone. Everything is counted on the meta device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from zoo.artifact import weights_of
from zoo.codecs.slots import PLAIN, Codec, n_rows
from zoo.core.part import ConfigError
from zoo.cost import Cost, cost_of
from zoo.data.cache import default_cache
from zoo.recipe import Recipe
from zoo.trials.build import meta_model
from zoo.trials.timing import Timings

MATCHES = ("none", "params", "active_params", "flops", "artifact_bytes", "time")
TOLERANCE = 0.01
MULTIPLE = 8  # of every width that is solved
HIDDEN, DIM = "model.layer.ffn.hidden_dim", "model.dim"
WIDEST = 16  # times the width that was written, at the most

Measure = Callable[[Recipe], float]  # what is to be equal; rises with the width

COUNTED: dict[str, tuple[str, Callable[[Cost], float]]] = {
    "params": ("parameters", lambda cost: cost.parameters),
    "active_params": ("active parameters", lambda cost: cost.active_parameters),
    "flops": ("FLOPs per token", lambda cost: cost.flops_per_token),
}


class Matched(NamedTuple):
    """How an arm came to cost what the baseline costs."""

    recipe: Recipe
    what: str  # e.g. "active parameters"
    before: float  # as it was written
    after: float
    target: float  # the baseline's
    changes: tuple[tuple[str, int, int], ...]  # path, width as written, width solved

    @property
    def residual(self) -> float:
        """How far it is from the target, as a share of it; positive: it costs more."""
        return self.after / self.target - 1.0

    def note(self) -> str:
        """What a reader of the table has to know."""
        if not self.changes:
            return f"{self.what} as the baseline's within {self.residual:+.2%}, nothing changed"
        said = ", ".join(f"{path} {old:,} -> {new:,}" for path, old, new in self.changes)
        before = self.before / self.target - 1.0
        return f"matched in {self.what} by {said}: {self.residual:+.2%} of the baseline's ({before:+.1%} before)"


def counted(match: str) -> tuple[Measure, str]:
    """What ``match`` makes equal, counted from the model, and its name."""
    what, figure = COUNTED[match]
    return lambda recipe: float(figure(cost_of(meta_model(recipe)))), what


def artifact_bytes(recipe: Recipe) -> float:
    """Bytes of the artifact by the codec's bits per number and scales per row, ahead of pruning and entropy coding.

    Raises:
        ConfigError: the recipe has no codec.
    """
    if recipe.codec is None:
        raise ConfigError('there is no artifact to be matched: state a codec, e.g. codec = "int8"')
    codec: Codec = recipe.codec.build()
    bits = 0.0
    for weight in weights_of(meta_model(recipe)):
        storage, shape = codec.storage(weight), weight.tensor.shape
        if not weight.tensor.is_floating_point():
            bits += 64 * weight.tensor.numel()
        elif storage in PLAIN:
            bits += 8 * np.dtype(PLAIN[storage]).itemsize * weight.tensor.numel()
        else:
            bits += int(storage.removeprefix("int")) * weight.tensor.numel() + 16 * n_rows(shape)
    return bits / 8


def matched(baseline: Recipe, recipe: Recipe, match: str, multiple: int, fixed: frozenset[str]) -> Matched:
    """The recipe made to cost what the baseline costs.

    Args:
        baseline: its vocabulary known.
        recipe: of one arm, likewise.
        match: one of ``MATCHES`` but "none".
        multiple: widths are multiples of this.
        fixed: ``HIDDEN`` or ``DIM`` where the grid itself varies them.

    Raises:
        ConfigError: it cannot be matched, and why.
    """
    if match == "time":
        return timed(baseline, recipe)
    measure, what = (artifact_bytes, "bytes of the artifact") if match == "artifact_bytes" else counted(match)
    return solve(recipe, measure(baseline), measure, what, multiple, fixed)


def timed(baseline: Recipe, recipe: Recipe) -> Matched:
    """The width that ``plan --measure`` found for this arm on this machine.

    Raises:
        ConfigError: it has not looked yet, or found none.
    """
    found = Timings(default_cache()).width(baseline, recipe)
    if found is None:
        raise ConfigError("steps have not been timed on this machine; run python ablate.py plan RECIPE --measure first")
    if "why" in found:
        raise ConfigError(found["why"])
    return _from_widths(recipe, found)


def time_widths(
    baseline: Recipe, recipe: Recipe, measure: Measure, multiple: int, fixed: frozenset[str]
) -> Matched | ConfigError:
    """Solve an arm's width for equal time per step, by timing candidates, and remember what came of it.

    Args:
        baseline: its vocabulary known.
        recipe: likewise.
        measure: seconds per step.
        multiple: widths are multiples of this.
        fixed: ``HIDDEN`` or ``DIM`` where the grid itself varies them.
    """
    kept = Timings(default_cache())
    try:
        found = solve(recipe, measure(baseline), measure, "seconds per step", multiple, fixed)
    except ConfigError as fault:
        kept.keep_width(baseline, recipe, {"why": str(fault)})
        return fault
    widths = {"hidden": found.recipe.model.layer.ffn.hidden_dim, "dim": found.recipe.model.dim}
    kept.keep_width(baseline, recipe, {**widths, "before": found.before, "after": found.after, "target": found.target})
    return found


def _from_widths(recipe: Recipe, found: dict[str, Any]) -> Matched:
    there = with_dim(recipe, found["dim"], None)
    there = there if found["hidden"] is None else with_hidden(there, found["hidden"])
    figures = (found["before"], found["after"], found["target"])
    return Matched(there, "seconds per step", *figures, _changes(recipe, there))


def solve(
    recipe: Recipe, target: float, measure: Measure, what: str, multiple: int, fixed: frozenset[str] = frozenset()
) -> Matched:
    """The recipe with its width changed until ``measure`` gives ``target``.

    Args:
        recipe: of one arm, its vocabulary known.
        target: what the baseline costs.
        measure: the cost; it must rise with either width.
        what: its name in words.
        multiple: widths are multiples of this.
        fixed: ``HIDDEN`` or ``DIM`` where the grid itself varies them.

    Raises:
        ConfigError: no width in these multiples comes within ``TOLERANCE``; the message names the nearest.
    """
    before = measure(recipe)
    if abs(before / target - 1) <= TOLERANCE / 10:
        return Matched(recipe, what, before, before, target, ())
    tried = [(before, recipe)]
    if HIDDEN not in fixed:
        tried.append(_by_hidden(recipe, target, measure, multiple))
    if DIM not in fixed and not _near(tried[-1][0], target):
        tried.append(_by_dim(recipe, target, measure, multiple, HIDDEN in fixed))
        if HIDDEN not in fixed and not _near(tried[-1][0], target):
            tried.append(_by_hidden(tried[-1][1], target, measure, multiple))
    after, found = min(tried, key=lambda pair: abs(pair[0] / target - 1))
    best = Matched(found, what, before, after, target, _changes(recipe, found))
    if not _near(after, target):
        said = ", ".join(f"{path} = {new}" for path, _, new in best.changes) or "the width as it is"
        finer = "a smaller match_multiple_of" if multiple > 1 else "other knobs"
        raise ConfigError(
            f"{what} cannot be matched within {TOLERANCE:.0%}: the nearest is {said} with {after:,.6g}, {best.residual:+.2%} "
            f'of the baseline\'s {target:,.6g}; try {finer}, or match = "none" for this variant'
        )
    return best


def _near(cost: float, target: float) -> bool:
    return abs(cost / target - 1) <= TOLERANCE


def hidden_of(recipe: Recipe) -> int:
    """The hidden width of the feed-forward that the layers share."""
    return recipe.model.layer.ffn.hidden_dim or 4 * recipe.model.dim


def with_hidden(recipe: Recipe, hidden: int) -> Recipe:
    """The recipe with another hidden width."""
    layer = recipe.model.layer
    ffn = layer.ffn.model_copy(update={"hidden_dim": hidden})
    return _with_model(recipe, {"layer": layer.model_copy(update={"ffn": ffn})})


def with_dim(recipe: Recipe, dim: int, multiple: int | None) -> Recipe:
    """The recipe with another width of the stream; a stated hidden width keeps its ratio to it, None: its size."""
    scaled = _with_model(recipe, {"dim": dim})
    stated = recipe.model.layer.ffn.hidden_dim
    if stated is None or multiple is None:
        return scaled
    return with_hidden(scaled, multiple * max(1, round(stated * dim / recipe.model.dim / multiple)))


def _with_model(recipe: Recipe, update: dict[str, object]) -> Recipe:
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=update)})


def _by_hidden(recipe: Recipe, target: float, measure: Measure, multiple: int) -> tuple[float, Recipe]:
    """The best multiple for ``hidden_dim``: costs are straight lines in it, or nearly, so a few secants find it."""
    here = max(multiple, multiple * round(hidden_of(recipe) / multiple))
    there = here + multiple * max(1, here // multiple // 4)
    costs = {width: measure(with_hidden(recipe, width)) for width in (here, there)}
    widest = WIDEST * max(hidden_of(recipe), multiple)
    for _ in range(8):
        (a, at_a), (b, at_b) = sorted(costs.items(), key=lambda item: abs(item[1] - target))[:2]
        if at_a == at_b:
            break
        exact = a + (target - at_a) * (b - a) / (at_b - at_a)
        wanted = [multiple * n for n in (math.floor(exact / multiple), math.ceil(exact / multiple))]
        fresh = [w for w in wanted if multiple <= w <= widest and w not in costs]
        if not fresh:
            break
        costs |= {width: measure(with_hidden(recipe, width)) for width in fresh}
    best = min(costs, key=lambda width: abs(costs[width] / target - 1))
    return costs[best], with_hidden(recipe, best)


def _by_dim(recipe: Recipe, target: float, measure: Measure, multiple: int, alone: bool) -> tuple[float, Recipe]:
    """The best multiple for ``dim``, by halving the interval."""
    attention = recipe.model.layer.attention
    step = multiple if attention.head_dim else math.lcm(multiple, 2 * attention.n_heads)
    low, high = 1, max(2, math.ceil(WIDEST * recipe.model.dim / step))
    costs: dict[int, float] = {}

    def sized(n: int) -> Recipe:
        return with_dim(recipe, n * step, None if alone else multiple)

    def at(n: int) -> float:
        if n not in costs:
            costs[n] = measure(sized(n))
        return costs[n]

    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) <= target else (low, middle)
    best = min((low, high), key=lambda n: abs(at(n) / target - 1))
    return costs[best], sized(best)


def _changes(before: Recipe, after: Recipe) -> tuple[tuple[str, int, int], ...]:
    pairs = ((HIDDEN, hidden_of(before), hidden_of(after)), (DIM, before.model.dim, after.model.dim))
    return tuple((path, old, new) for path, old, new in pairs if old != new)

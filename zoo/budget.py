"""How long a run is, in updates and tokens, and what each of them sees."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from zoo.core.part import ConfigError
from zoo.data.batches import Batches
from zoo.recipe import Recipe

if TYPE_CHECKING:
    from zoo.data.prepare import Prepared


def total_steps(recipe: Recipe) -> int | None:
    """The number of updates that the budget allows; None for a budget in seconds.

    Raises:
        ConfigError: no budget, or more than one.
    """
    budget = recipe.train
    given = [name for name in ("steps", "tokens", "seconds") if getattr(budget, name) is not None]
    if len(given) != 1:
        raise ConfigError(f"needs exactly one of steps, tokens, seconds; it has {given or 'none'}", "train")
    if budget.seconds is not None:
        return None
    return budget.steps or math.ceil(budget.tokens / tokens_per_step(recipe))


def tokens_per_step(recipe: Recipe) -> int:
    """Tokens in one update: rows x accumulation x context."""
    return recipe.train.batch * recipe.train.accumulate * recipe.model.context


# A GPU compiles a layer for 10 to 20 s, then does each micro-batch 34 to 47 ms sooner (recipes at full size on an H200, see
# results/LOG.md), so it pays after 220 to 560 of them.
PAYS_FROM = {"micro-batches": 1_000, "seconds": 120.0}


def settle_compile(recipe: Recipe, device: str) -> Literal["none", "layers"]:
    """``auto`` becomes ``layers`` where compiling pays back within the budget, which so far is on GPUs alone."""
    plan = recipe.train
    if plan.compile != "auto":
        return plan.compile
    if not device.startswith("cuda"):
        return "none"
    if plan.seconds is not None:
        return "layers" if plan.seconds >= PAYS_FROM["seconds"] else "none"
    steps = plan.steps or (plan.tokens or 0) / tokens_per_step(recipe)
    return "layers" if steps * plan.accumulate >= PAYS_FROM["micro-batches"] else "none"


UNKNOWN = 1_000_000  # updates that a run by the clock is taken to have before its first one is made


def check_schedule(recipe: Recipe) -> None:
    """Whether the schedule fits the run. By the clock only shares can be checked: see ``misfit`` for lengths in updates.

    Raises:
        ConfigError: with a path from the root of the recipe.
    """
    try:
        recipe.schedule.build().check(total_steps(recipe) or UNKNOWN)
    except ConfigError as fault:
        raise fault.under("schedule") from None


def misfit(recipe: Recipe, steps: int) -> list[str]:
    """What has to be said of a run by the clock that is over: a schedule that would have needed more than its ``steps``."""
    if recipe.train.seconds is None:
        return []
    try:
        recipe.schedule.build().check(steps)
    except ConfigError as fault:
        return [f"the clock allowed {steps:,} updates, and {fault.under('schedule')}"]
    return []


def check_ranks(recipe: Recipe) -> None:
    """Whether so many processes can share a trial.

    Raises:
        ConfigError: with a path from the root of the recipe.
    """
    n, rows, device = recipe.machine.ranks, recipe.train.batch, recipe.machine.device
    if rows % n:
        raise ConfigError(f"must be a multiple of {n}, the processes that share the rows", "train.batch", rows)
    if n > 1 and device not in ("cpu", "cuda"):
        raise ConfigError(
            f"{n} processes train on cpu or cuda, each on the GPU of its number", "machine.device", device
        )


def batches_of(recipe: Recipe, prepared: Prepared, share: tuple[int, int] = (0, 1)) -> Batches:
    """The training batches of a recipe, or one of several equal shares of each."""
    return Batches(
        prepared.train,
        context=recipe.model.context,
        rows=recipe.train.batch,
        seed=recipe.train.seed,
        bos=prepared.tokenizer.bos,
        document_mask=recipe.data.document_mask,
        accumulate=recipe.train.accumulate,
        packing=recipe.data.packing,
        groups=prepared.groups,
        share=share,
    )


def take(
    recipe: Recipe, batches: Batches, step: int, micro: int, total: int = UNKNOWN
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs, targets and document numbers (B, T) of one micro-batch, as the loop gives them to the model.

    The first updates of a run of ``total`` may see each row in pieces: the same tokens, with less before each of them.
    """
    inputs, targets, segments = batches.batch(step, micro)
    targets = inputs if recipe.train.targets == "unshifted" else targets
    short = recipe.train.short_context
    if short is None or step > recipe.train.short_share * total:
        return inputs, targets, segments
    return inputs.view(-1, short), targets.view(-1, short), None if segments is None else segments.view(-1, short)

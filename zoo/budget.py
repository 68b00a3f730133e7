"""How long a run is, in updates and tokens."""

from __future__ import annotations

import math

from zoo.core.part import ConfigError
from zoo.recipe import Recipe


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

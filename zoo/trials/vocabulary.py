"""How many tokens there are, as far as it is known before any text is read."""

from __future__ import annotations

from pathlib import Path

from zoo.core.part import ConfigError
from zoo.core.tables import tabulate
from zoo.recipe import Recipe

GUESS = 1024  # a vocabulary to check arms with before the tokenizer is known


def known_vocabulary(recipe: Recipe, folder: Path) -> int | None:
    """The size of the vocabulary where it is stated or the tokenizer has nothing to learn from text, else None."""
    if recipe.model.vocab_size is not None:
        return recipe.model.vocab_size
    try:
        tokenizer = recipe.data.tokenizer.build(folder)
        tokenizer.load(tokenizer.train(()))
        return tokenizer.vocab_size
    except ConfigError:
        return None


def likely_vocabulary(recipe: Recipe) -> int:
    """A stand-in while only the text can tell: what the tokenizer is asked for, or else ``GUESS``."""
    return tabulate(recipe.data.tokenizer).get("vocab_size") or GUESS


def with_vocabulary(recipe: Recipe, size: int) -> Recipe:
    """The recipe with the tokenizer's vocabulary where it states none.

    Raises:
        ConfigError: more tokens than the model has rows.
    """
    stated = recipe.model.vocab_size
    if stated is None:
        return recipe.model_copy(update={"model": recipe.model.model_copy(update={"vocab_size": size})})
    if stated < size:
        message = f"is smaller than the tokenizer's vocabulary of {size:,}; leave it out to take the tokenizer's"
        raise ConfigError(message, "model.vocab_size", stated)
    return recipe

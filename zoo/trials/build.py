"""Models of recipes on the meta device: whole in their shapes, without a byte of weights."""

from __future__ import annotations

from typing import Any

import torch

from zoo import machine
from zoo.core.part import ConfigError
from zoo.model import Model, Uncalled
from zoo.recipe import Recipe


def meta_model(recipe: Recipe, called: dict[Any, Any] | None = None) -> Model:
    """The recipe's model on the meta device; ``called`` as ``Model`` has it.

    Raises:
        ConfigError: parts that do not fit, with a path from the root of the recipe.
    """
    return _built(Model, recipe, called)


def uncalled_model(recipe: Recipe) -> Model:
    """Likewise, for who calls it with more tokens than a check would, and so finds shapes that do not fit.

    Raises:
        ConfigError: parts that cannot be built or wired, with a path from the root of the recipe.
    """
    return _built(Uncalled, recipe, None)


def _built(model: type[Model], recipe: Recipe, called: dict[Any, Any] | None) -> Model:
    try:
        with torch.device("meta"):
            return model(recipe.model, machine.DTYPES.get(recipe.machine.dtype), None, called)
    except ConfigError as fault:
        raise fault.under("model") from None

"""Models of recipes on the meta device: whole in their shapes, without a byte of weights."""

from __future__ import annotations

import torch

from zoo import machine
from zoo.core.part import ConfigError
from zoo.model import Model
from zoo.recipe import Recipe


def meta_model(recipe: Recipe) -> Model:
    """The recipe's model on the meta device.

    Raises:
        ConfigError: parts that do not fit, with a path from the root of the recipe.
    """
    try:
        with torch.device("meta"):
            return Model(recipe.model, stream=machine.DTYPES.get(recipe.machine.dtype), seed=None)
    except ConfigError as fault:
        raise fault.under("model") from None

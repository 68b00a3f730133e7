"""Models of recipes that are asked for shapes and sizes and never trained."""

from __future__ import annotations

from typing import Any

import torch

from zoo import machine
from zoo.core.part import ConfigError
from zoo.model import Model, Uncalled
from zoo.recipe import Recipe

LIGHT = 2e10  # FLOPs of a forward of the batch up to which to compute is faster than the meta device's Python
FEW = 2e8  # bytes of weights up to which they may as well be there


def meta_model(recipe: Recipe, called: dict[Any, Any] | None = None) -> Model:
    """The recipe's model on the meta device: whole in its shapes, without a byte of weights.

    Args:
        recipe: its vocabulary known.
        called: as ``Model`` has it.

    Raises:
        ConfigError: parts that do not fit, with a path from the root of the recipe.
    """
    return _built(Model, recipe, called, "meta")


def asked_model(recipe: Recipe, called: dict[Any, Any] | None = None) -> Model:
    """Likewise; but a small one that is to run on a CPU is built there, its weights undrawn.

    On the meta device every operation is Python, and the first of them imports torch's compiler.
    """
    return _built(Model, recipe, called, _place(recipe))


def uncalled_model(recipe: Recipe) -> Model:
    """As ``asked_model``, for who calls it with more tokens than a check would, and so finds shapes that do not fit.

    Raises:
        ConfigError: parts that cannot be built or wired, with a path from the root of the recipe.
    """
    return _built(Uncalled, recipe, None, _place(recipe))


def _place(recipe: Recipe) -> str:
    if machine.settle_device(recipe.machine.device) != "cpu":
        return "meta"
    bare = _built(Uncalled, recipe, None, "meta")  # nothing is computed of it
    n_parameters = sum(p.numel() for p in bare.parameters())
    flops = 2.0 * n_parameters * recipe.train.batch * recipe.model.context
    return "cpu" if 4 * n_parameters <= FEW and flops <= LIGHT else "meta"


def _built(model: type[Model], recipe: Recipe, called: dict[Any, Any] | None, place: str) -> Model:
    try:
        with torch.device(place):
            return model(recipe.model, machine.DTYPES.get(recipe.machine.dtype), None, called)
    except ConfigError as fault:
        raise fault.under("model") from None

"""Models of recipes that are asked for shapes and sizes and never trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from zoo import machine
from zoo.core.part import ConfigError
from zoo.model import Model, Uncalled
from zoo.recipe import Recipe

T = TypeVar("T")

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
    return asked(recipe, lambda model: model, Model, called)


def asked(
    recipe: Recipe, question: Callable[[Model], T], kind: type[Model] = Uncalled, called: dict[Any, Any] | None = None
) -> T:
    """What ``question`` finds of a model as ``asked_model`` has it.

    Args:
        recipe: its vocabulary known.
        question: asked again, of the meta device's model, where it raises of one that computes: a block that fails there is
            left to its trial, which fails alone.
        kind: Uncalled for a question that calls the model with more tokens than a check would.
        called: as ``Model`` has it.

    Raises:
        ConfigError: parts that do not fit, with a path from the root of the recipe.
    """
    if _computes(recipe):
        try:
            return question(_built(kind, recipe, called, "cpu"))
        except ConfigError:
            raise
        except Exception:  # whatever a block does
            pass
    return question(_built(kind, recipe, called, "meta"))


def _computes(recipe: Recipe) -> bool:
    if machine.settle_device(recipe.machine.device) != "cpu":
        return False
    bare = _built(Uncalled, recipe, None, "meta")  # nothing is computed of it
    n_parameters = sum(p.numel() for p in bare.parameters())
    return 4 * n_parameters <= FEW and 2.0 * n_parameters * recipe.train.batch * recipe.model.context <= LIGHT


def _built(model: type[Model], recipe: Recipe, called: dict[Any, Any] | None, place: str) -> Model:
    try:
        with torch.device(place):
            return model(recipe.model, machine.DTYPES.get(recipe.machine.dtype), None, called)
    except ConfigError as fault:
        raise fault.under("model") from None

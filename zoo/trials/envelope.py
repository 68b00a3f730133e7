"""The learning-rate envelope: every arm at several rates, so that no arm wins by a rate that was chosen for another.

``grid.lr = [1e-3, 3e-3, 6e-3]`` states the rate of the matrices; the rates of all other roles keep their ratio to it.
``grid.lr = { factors = [0.5, 1, 2] }`` multiplies each arm's own rates instead, for arms whose rates mean different things.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from zoo.core.params import Role
from zoo.core.part import ConfigError
from zoo.recipe import Recipe


class Ladder(NamedTuple):
    """The rates at which every arm is trained."""

    values: tuple[float, ...]  # in the order written: the first is the baseline's
    factors: bool  # of each arm's own rates; else rates of the matrices

    def label(self, value: float) -> str:
        """What an arm's name says of its rate."""
        return f"lr x{value:g}" if self.factors else f"lr={value:g}"


class Rate(NamedTuple):
    """Where an arm stands in the envelope."""

    arm: str  # its name without the rate
    value: float  # of the ladder


def ladder(origin: str, value: Any) -> Ladder | None:
    """What ``grid.lr`` says.

    Raises:
        ConfigError: no list of different positive numbers.
    """
    if value is None:
        return None
    place, factors = f"{origin}: grid.lr", isinstance(value, Mapping)
    if factors:
        if set(value) != {"factors"}:
            raise ConfigError(f"{place} = {dict(value)!r}: write a list of rates, or {{ factors = [0.5, 1, 2] }}")
        place, value = f"{place}.factors", value["factors"]
    fine = isinstance(value, list) and value and all(type(v) in (int, float) and 0 < v < float("inf") for v in value)
    if not fine or len(set(map(float, value))) != len(value):
        raise ConfigError(f"{place} = {value!r}: must be a list of different rates above zero, the baseline's first")
    return Ladder(tuple(map(float, value)), factors)


def leading_rate(recipe: Recipe) -> float:
    """The rate of the matrices, or of the first role where there are none."""
    role = Role.MATRIX if Role.MATRIX in recipe.optim else next(iter(recipe.optim))
    return recipe.optim[role].lr


def at_rate(recipe: Recipe, rungs: Ladder, value: float) -> Recipe:
    """The recipe at one rate of the ladder; the ratios between roles stay."""
    factor = value if rungs.factors else value / leading_rate(recipe)
    optim = {
        role: config.model_copy(update={"lr": float(f"{config.lr * factor:.12g}")})
        for role, config in recipe.optim.items()
    }
    return recipe.model_copy(update={"optim": optim})

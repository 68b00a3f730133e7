"""Recipes from Python: what ``zoo.load`` and ``zoo.build`` do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from zoo.core.part import ConfigError
from zoo.model import Model
from zoo.recipe import Recipe
from zoo.trials.check import locate
from zoo.trials.grid import Arm, Grid, plan
from zoo.trials.run import known_vocabulary, with_vocabulary


def load(
    path: str | Path,
    profile: str | None = None,
    sets: Sequence[str] = (),
    variant: str | None = None,
) -> Recipe:
    """The Recipe in a file, resolved: every knob stated.

    Args:
        path: the recipe file.
        profile: one of its profiles; ``full`` for none; None: ``cpu`` where there is no GPU and the recipe has it (logged).
        sets: changes, as on the command line: ``["model.dim=64"]``.
        variant: an arm of its grid; None: the recipe itself, with each axis at its first value.

    Raises:
        ConfigError: whatever is wrong with it, and where.
    """
    grid = plan(Path(path), profile, sets)
    for line in grid.said:
        logging.getLogger("zoo").warning(line)
    return pick(grid, variant).recipe


def pick(grid: Grid, variant: str | None) -> Arm:
    """An arm by name, or the recipe itself; its vocabulary filled in where that takes no text."""
    arm = Arm(grid.recipe.variant, grid.recipe) if variant is None else grid.only(variant)[0]
    size = known_vocabulary(arm.recipe, grid.folder)
    if size is None:
        return arm
    try:
        return arm._replace(recipe=with_vocabulary(arm.recipe, size))
    except ConfigError as fault:
        raise locate(grid, arm, fault) from None


def build(
    path: str | Path,
    profile: str | None = None,
    sets: Sequence[str] = (),
    variant: str | None = None,
) -> Model:
    """The model of a recipe with its first weights, on the CPU in fp32. Arguments are those of ``load``.

    Text is read only where neither the recipe nor the tokenizer's name says how large the vocabulary is.

    Raises:
        ConfigError: whatever is wrong with it, and where.
    """
    recipe = load(path, profile, sets, variant)
    if recipe.model.vocab_size is None:
        from zoo.data.prepare import prepare

        try:
            found = prepare(recipe.data, Path(path).parent / recipe.base)
        except ConfigError as fault:
            raise ConfigError(f"{path}: {fault.under('data')}") from None
        recipe = with_vocabulary(recipe, found.tokenizer.vocab_size)
    try:
        return Model(recipe.model, seed=recipe.train.seed)
    except ConfigError as fault:
        raise ConfigError(f"{path}: {fault.under('model')}") from None

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
from zoo.trials.run import text_of
from zoo.trials.vocabulary import known_vocabulary, with_vocabulary


def load(
    path: str | Path,
    profile: str | None = None,
    sets: Sequence[str] = (),
    variant: str | None = None,
) -> Recipe:
    """The Recipe in a file, resolved: every knob stated, except a vocabulary that only the text can tell.

    Args:
        path: the recipe file.
        profile: one of its profiles; ``full`` for none; None: ``cpu`` where there is no GPU and the recipe has it (logged).
        sets: changes, as on the command line: ``["model.dim=64"]``.
        variant: an arm of its grid; None: the recipe itself, with each axis at its first value.

    Raises:
        ConfigError: whatever is wrong with it, and where.
    """
    grid = _plan(path, profile, sets)
    return with_its_vocabulary(grid, pick(grid, variant), read_text=False).recipe


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
    grid = _plan(path, profile, sets)
    arm = with_its_vocabulary(grid, pick(grid, variant))
    try:
        return Model(arm.recipe.model, seed=arm.recipe.train.seed)
    except ConfigError as fault:
        raise locate(grid, arm, fault.under("model")) from None


def _plan(path: str | Path, profile: str | None, sets: Sequence[str]) -> Grid:
    grid = plan(Path(path), profile, sets)
    for line in grid.said:
        logging.getLogger("zoo").warning(line)
    return grid


def pick(grid: Grid, variant: str | None) -> Arm:
    """An arm by name, or the recipe itself."""
    return Arm(grid.recipe.variant, grid.recipe) if variant is None else grid.only(variant)[0]


def with_its_vocabulary(grid: Grid, arm: Arm, read_text: bool = True) -> Arm:
    """The arm with its vocabulary filled in; text is read where it must be, if it may be.

    Raises:
        ConfigError: text or tokenizer that cannot be.
    """
    try:
        size = known_vocabulary(arm.recipe, grid.folder)
        if size is None and read_text:
            size = text_of(arm.recipe, grid.folder).tokenizer.vocab_size
        return arm if size is None else arm._replace(recipe=with_vocabulary(arm.recipe, size))
    except ConfigError as fault:
        raise locate(grid, arm, fault) from None

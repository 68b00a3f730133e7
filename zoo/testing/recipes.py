"""Random recipes: any model, with optimizers, a schedule, an average and a budget that fit it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import ValidationError

from zoo.core.params import Role, entries
from zoo.core.part import ConfigError, Part
from zoo.core.slots import Site
from zoo.model import Model, ModelConfig
from zoo.optim.build import build_optimizers
from zoo.optim.slots import Average, Optimizer, Schedule
from zoo.recipe import Recipe
from zoo.resolve import all_parts
from zoo.scoring.slots import Scorer
from zoo.testing.hosts import SITE
from zoo.testing.values import Table, random_model, random_part

STEPS = (2, 5, 20)


def random_recipe(rng: random.Random, with_kinds: Iterable[type[Part]] = (), site: Site = SITE) -> Recipe | None:
    """A random recipe of a model with the given kinds, or None where its parts do not fit together: draw again.

    Its text is the default one under the byte tokenizer, and its model takes that vocabulary; kinds that replicate a defect
    are in it only with ``as_published``.
    """
    model = random_model(rng, with_kinds, site)
    if model is None:
        return None
    try:
        recipe = Recipe.model_validate(_table(rng, model))
        defects = any(part.breaks for _, part in all_parts(recipe))
        recipe = recipe.model_copy(update={"as_published": defects})
        _must_fit(recipe, model)
    except (ConfigError, ValidationError):
        return None
    return recipe


def _table(rng: random.Random, model: ModelConfig) -> Table:
    with torch.device("meta"):
        roles = {entry.role for entry in entries(Model(model, seed=None))}
    code_lengths = [kind for kind in Scorer.kinds.values() if kind.code_length]
    train: dict[str, Any] = {"steps": rng.choice(STEPS), "batch": rng.choice((1, 2, 4)), "log_every": 1}
    train |= {"accumulate": rng.choice((1, 1, 2)), "recompute": rng.choice(("none", "layers"))}
    return {
        "model": model.model_copy(update={"vocab_size": None}),
        "data": {"document_mask": rng.choice(("none", "segments")), "train_bytes": 100_000, "valid_bytes": 2_000},
        "optim": {role: _optimizer(rng, role) for role in sorted(roles)},
        "schedule": random_part(rng.choice(list(Schedule.kinds.values())), rng),
        "average": random_part(rng.choice(list(Average.kinds.values())), rng),
        "train": train,
        "evaluate": {"scorer": rng.choice(code_lengths).kind},
        "machine": {"device": "cpu", "dtype": "float32", "threads": 1},
    }


def _optimizer(rng: random.Random, role: Role) -> Table:
    """Any optimizer for matrices; for the rest the one that takes every shape, as recipes do."""
    kind = rng.choice(list(Optimizer.kinds.values())) if role is Role.MATRIX else Optimizer.kind_named("adamw")
    return {**random_part(kind, rng), "lr": rng.choice((1e-4, 1e-3, 1e-2))}


def _must_fit(recipe: Recipe, model: ModelConfig) -> None:
    """Raises ConfigError where training would."""
    with torch.device("meta"):
        built = Model(model, seed=None)
        build_optimizers(built, recipe.optim)
        recipe.average.build(built)
    assert recipe.train.steps is not None
    recipe.schedule.build().check(recipe.train.steps)

"""Strategies for hypothesis: sites, knobs, kinds, pairs of kinds, models, recipes. For one's own tests of one's own blocks."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import strategies as st
from pydantic import ValidationError

from zoo.core.part import ConfigError, Part
from zoo.core.slots import Site
from zoo.model import ModelConfig
from zoo.recipe import Recipe
from zoo.testing.hosts import SITE, Subject, all_kinds, places
from zoo.testing.hosts import slots as slots_by_name
from zoo.testing.recipes import random_recipe
from zoo.testing.values import pool, random_model


def sites() -> st.SearchStrategy[Site]:
    """Small places for a block to stand in; the context may be shorter than what is asked of it."""
    return st.builds(
        Site,
        dim=st.sampled_from((16, 32)),
        n_layers=st.integers(1, 3),
        vocab_size=st.integers(17, 61),
        context=st.sampled_from((8, 32)),
    )


def kinds_of(slot: str | type[Part]) -> st.SearchStrategy[type[Part]]:
    """The kinds of one slot, e.g. ``kinds_of("attention")``."""
    slot = slots_by_name()[slot] if isinstance(slot, str) else slot
    return st.sampled_from(list(slot.kinds.values()))


def pairs() -> st.SearchStrategy[tuple[type[Part], type[Part]]]:
    """Two different kinds of a model's slots."""
    kinds = st.sampled_from(all_kinds())
    return st.tuples(kinds, kinds).filter(lambda pair: pair[0] is not pair[1])


def knobs(part: type[Part]) -> st.SearchStrategy[dict[str, Any]]:
    """Some knobs of a kind with values its types allow (or that its fields give as examples); the others by default."""
    fields = {name: st.sampled_from(pool(part.Config, name)) for name in part.Config.model_fields}

    def allowed(table: dict[str, Any]) -> bool:
        try:
            part.Config.model_validate(table)
        except ValidationError:
            return False
        return True

    return st.fixed_dictionaries({}, optional=fields).filter(allowed)


@st.composite
def subjects(draw: st.DrawFn, part: type[Part]) -> Subject:
    """A kind with random knobs at a random place and site, in a small model with randomised parameters."""
    place, site = draw(st.sampled_from(places(part))), draw(sites())
    made = draw(knobs(part).map(lambda table: _fitting(part, table, place, site)).filter(lambda s: s is not None))
    assert made is not None
    return made


def _fitting(part: type[Part], table: dict[str, Any], place: Any, site: Site) -> Subject | None:
    try:
        return Subject(part, table, place, site)
    except (ConfigError, ValidationError):
        return None


def model_configs(*with_kinds: type[Part], site: Site = SITE) -> st.SearchStrategy[ModelConfig]:
    """Random models of all kinds of all slots, layers differing, that build; ``with_kinds`` are among their kinds."""

    def draw(rng: random.Random) -> ModelConfig | None:
        return next((c for _ in range(50) if (c := random_model(rng, with_kinds, site)) is not None), None)

    return st.randoms(use_true_random=False).map(draw).filter(lambda config: config is not None)


def recipes(*with_kinds: type[Part], site: Site = SITE) -> st.SearchStrategy[Recipe]:
    """Random recipes that resolve, of such models: optimizers by role, schedule, average, budget, scorer."""

    def draw(rng: random.Random) -> Recipe | None:
        return next((r for _ in range(50) if (r := random_recipe(rng, with_kinds, site)) is not None), None)

    return st.randoms(use_true_random=False).map(draw).filter(lambda recipe: recipe is not None)

"""What can be known of a trial before any text is read: that it fits together, what it costs, how long it runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from zoo.budget import check_ranks, check_schedule, tokens_per_step, total_steps
from zoo.core.params import Role, entries
from zoo.core.part import ConfigError
from zoo.core.tables import tabulate
from zoo.cost import Cost, cost_of
from zoo.model import Model
from zoo.optim.build import build_optimizers
from zoo.recipe import Recipe
from zoo.resolve import blame
from zoo.saved import Calls, saved_bytes
from zoo.trials.build import asked, asked_model
from zoo.trials.grid import Arm, Grid


class Forecast(NamedTuple):
    """One arm, by formula and by counting on a model that is not trained."""

    cost: Cost
    steps: int | None  # None: a budget in seconds
    tokens_per_step: int
    roles: frozenset[Role]  # of the model's parameters
    unused: tuple[Role, ...]  # roles that the recipe speaks of and this arm lacks


class Known:
    """What has been found out, by ``outline``: each model is built once, and of stages that are alike one is called."""

    def __init__(self) -> None:
        self.forecasts: dict[str, Forecast] = {}
        self.called: dict[Any, Any] = {}  # what stages answered while shapes were checked

    def of(self, recipe: Recipe) -> Forecast:
        """The forecast of a recipe.

        Raises:
            ConfigError: with a path from the root of the recipe.
        """
        like = outline(recipe)
        if like not in self.forecasts:
            self.forecasts[like] = self._found(recipe)
        return self.forecasts[like]

    def _found(self, recipe: Recipe) -> Forecast:
        return forecast(recipe, asked_model(recipe, self.called))


class Sized(Known):
    """What has been found out, and the memory that training takes: the call that counts it is the one that checks shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.memories: dict[str, int] = {}
        self.calls: Calls = {}

    def _found(self, recipe: Recipe) -> Forecast:
        found, self.memories[outline(recipe)] = asked(recipe, lambda model: self._measured(recipe, model))
        return found

    def _measured(self, recipe: Recipe, model: Model) -> tuple[Forecast, int]:
        return forecast(recipe, model), memory(recipe, model, self.calls)


def check(grid: Grid, arms: Sequence[Arm] | None = None, known: Known | None = None) -> dict[str, Forecast]:
    """A forecast for each arm by name; the vocabulary must be known.

    Args:
        grid: for its other arms, and for where something was written.
        arms: which; None: the grid's.
        known: from earlier calls, to which what is found is added.

    Raises:
        ConfigError: an arm whose parts do not fit, a budget or schedule that cannot be, a role without an optimizer, or an
            optimizer for a role that no arm has.
    """
    arms = grid.arms if arms is None else arms
    known = Known() if known is None else known
    found = {arm.name: _forecast(grid, arm, known) for arm in arms}
    present = frozenset().union(*(forecast.roles for forecast in found.values()))
    if len(arms) == len(grid.arms):
        for arm in arms:
            for role in arm.recipe.optim:
                if role not in present:
                    path = f"optim.{role}"
                    message = f"no arm has {role} parameters; there are: {', '.join(sorted(present))}"
                    raise ConfigError(f"{blame(grid.patches, path)}: {ConfigError(message, path)}")
    return found


def outline(recipe: Recipe) -> str:
    """Equal for recipes of which everything here is equal: all of them but the numbers with which optimizers move."""
    table = {
        name: tabulate(getattr(recipe, name)) for name in ("model", "optim", "schedule", "average", "train", "machine")
    }
    table["optim"] = {
        role: {k: v for k, v in knobs.items() if type(v) is not float} for role, knobs in table["optim"].items()
    }
    return json.dumps(table, sort_keys=True)


def _forecast(grid: Grid, arm: Arm, known: Known) -> Forecast:
    try:
        return known.of(arm.recipe)
    except ConfigError as fault:
        raise locate(grid, arm, fault) from None


def locate(grid: Grid, arm: Arm, fault: ConfigError) -> ConfigError:
    """A fault of an arm with the place where it was written in front, and the arm's name where there are several."""
    origin = blame(grid.patches, fault.path)
    name = f", arm {arm.name!r}" if len(grid.arms) > 1 else ""
    return ConfigError(f"{origin}{name}: {fault}")


def forecast(recipe: Recipe, model: Model | None = None) -> Forecast:
    """Check all that a trial needs beside text.

    Args:
        recipe: its vocabulary known.
        model: the recipe's, to be asked; None: it is built.

    Raises:
        ConfigError: with a path from the root of the recipe.
    """
    model = asked_model(recipe) if model is None else model
    steps = total_steps(recipe)
    check_ranks(recipe)
    check_schedule(recipe)
    try:
        if recipe.codec is not None:
            recipe.codec.build()
    except ConfigError as fault:
        raise fault.under("codec") from None
    build_optimizers(model, recipe.optim)
    roles = frozenset(entry.role for entry in entries(model))
    unused = tuple(role for role in recipe.optim if role not in roles)
    return Forecast(cost_of(model), steps, tokens_per_step(recipe), roles, unused)


def memory(recipe: Recipe, model: Model | None = None, calls: Calls | None = None) -> int:
    """Estimated peak bytes of training: parameters, gradients, optimizer state, averages, and what the backward needs.

    Buffers that live for a moment, the framework itself and the allocator's slack are not in it.

    Args:
        recipe: its vocabulary known.
        model: the recipe's, to be asked; None: it is built.
        calls: as ``saved_bytes`` has them.

    Raises:
        ConfigError: parts that do not fit, with a path from the root of the recipe.
    """
    model = asked_model(recipe) if model is None else model
    model.recompute = recipe.train.recompute == "layers"
    width = 8 if recipe.machine.dtype == "float64" else 4
    total = 2.0 * width * sum(p.numel() for p in model.parameters())
    for optimizer in build_optimizers(model, recipe.optim).values():
        total += optimizer.bytes_per_parameter() * sum(p.numel() for _, p in optimizer.named)
    average = recipe.average.build(model)
    total += sum(t.numel() * t.element_size() for t in (average.weights() or {}).values())
    try:
        return int(total + saved_bytes(model, recipe.train.batch // recipe.machine.ranks, calls))
    except ConfigError as fault:
        raise fault.under("model") from None

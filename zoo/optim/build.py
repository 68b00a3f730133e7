"""Optimizers for the parameters of a model, one for each role."""

from __future__ import annotations

from torch import nn

from zoo.core.params import Role, entries
from zoo.core.part import ConfigError
from zoo.optim.slots import Optimizer


def build_optimizers(model: nn.Module, optim: dict[Role, Optimizer.Config]) -> dict[Role, Optimizer]:
    """One optimizer per role that the model has.

    Raises:
        ConfigError: a role of the model without an optimizer.
    """
    named: dict[Role, list[tuple[str, nn.Parameter]]] = {}
    for entry in entries(model):
        named.setdefault(entry.role, []).append((entry.name, entry.parameter))
    built = {}
    for role, parameters in named.items():
        if role not in optim:
            raise ConfigError(f"no optimizer for {role} parameters such as {parameters[0][0]}", f"optim.{role}")
        try:
            built[role] = optim[role].build(parameters)
        except ConfigError as fault:
            raise fault.under(f"optim.{role}") from None
    return built

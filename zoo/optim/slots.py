"""The slots of training: what moves parameters, how the learning rate runs, and which weights are scored in the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from zoo.core.part import Part, PartConfig
from zoo.parallel import ALONE, World


class Optimizer(Part, slot="optimizer"):
    """Moves the parameters of one role. Built with their (full name, parameter) pairs.

    ``step(scale, step)`` makes update number ``step`` (from 1) at ``lr * scale``, from the gradients in ``.grad`` (a None
    gradient means: leave that parameter alone). The processes of ``world`` have the same gradients and must come to the same
    bits; what is slow they may share out.
    """

    world: World = ALONE

    class Config(PartConfig):
        """Knobs that survive a swap of optimizer, except that rates rarely mean the same: see ``notes``."""

        lr: PositiveFloat = 1e-3
        weight_decay: NonNegativeFloat = 0.0

    def __init__(self, config: Config, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        self.config = config
        self.named = list(named)

    def step(self, scale: float, step: int) -> None:
        """One update, in place."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Everything that must be saved to go on exactly, as flat tensors: ``<full name>/<what>``. Views, not copies."""
        raise NotImplementedError

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``.

        Raises:
            ValueError: the state of other parameters.
        """
        raise NotImplementedError

    def bytes_per_parameter(self) -> float:
        """Optimizer state per parameter, for the memory estimate. 0.0 without parameters."""
        n_parameters = sum(p.numel() for _, p in self.named)
        return sum(t.numel() * t.element_size() for t in self.state().values()) / max(1, n_parameters)


class Schedule(Part, slot="schedule"):
    """The factor on every learning rate at update number ``step`` of ``total``, both counted from 1."""

    def __init__(self, config: Schedule.Config) -> None:
        self.config = config

    def scale(self, step: int, total: int) -> float:
        """Factor of update ``step`` (1 ... total)."""
        raise NotImplementedError

    def check(self, total: int) -> None:
        """Raise ConfigError (path: the knob) where the schedule does not fit a run of ``total`` updates."""


class Average(Part, slot="average"):
    """Weights averaged over training, kept beside the model's own in fp32 and used for the final score.

    Built with the model. Parameters are averaged; buffers (selection biases) are copied from the live model.
    """

    def __init__(self, config: Average.Config, model: nn.Module) -> None:
        self.config = config

    def update(self, model: nn.Module, step: int, total: int, scale: float) -> None:
        """See the weights after update ``step`` (from 1) of ``total``, made at learning-rate factor ``scale``."""
        raise NotImplementedError

    def weights(self) -> dict[str, Tensor] | None:
        """The averaged parameters by full name, fp32; None where there is nothing but the live weights."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Everything that must be saved to go on exactly. Views, not copies."""
        raise NotImplementedError

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``state``.

        Raises:
            ValueError: the state of another model.
        """
        raise NotImplementedError


@torch.no_grad()
def restore(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy ``saved`` into ``own`` in place, entry by entry.

    Raises:
        ValueError: the two do not have the same names and shapes; nothing has been copied then.
    """
    missing, surplus = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing or surplus:
        raise ValueError(f"saved state does not fit: {len(missing)} missing {missing[:3]}, surplus {surplus[:3]}")
    for name, t in own.items():
        if saved[name].shape != t.shape:
            raise ValueError(f"saved state does not fit: {name} is {tuple(saved[name].shape)}, not {tuple(t.shape)}")
    for name, t in own.items():
        t.copy_(saved[name])

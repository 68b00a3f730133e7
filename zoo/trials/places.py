"""Where trials run side by side, and in which order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from zoo import machine
from zoo.core.part import ConfigError
from zoo.parallel import ALONE, World
from zoo.recipe import Recipe
from zoo.trials.check import Forecast

AUTO = "auto"


class Place(NamedTuple):
    """What one worker has to itself: a GPU or a share of one, or some threads of the processor."""

    gpu: str = ""  # as CUDA_VISIBLE_DEVICES names it; empty: whatever device the recipe asks for


class Limits(NamedTuple):
    """When a trial is given up, in seconds."""

    time: float | None = None  # of one trial, from its first batch on; None: as long as it takes
    silence: float | None = 1800.0  # without a single batch, trained or scored; None: for ever
    start: float | None = 600.0  # of a worker, until it has a trial's text

    def check(self) -> None:
        """Whether a trial could keep to them.

        Raises:
            ConfigError: a limit of no time at all.
        """
        for option, limit in (("--time-limit", self.time), ("--silence-limit", self.silence)):
            if limit is not None and not limit > 0.0:
                raise ConfigError(f"{option} {limit:g}: must be more than 0 seconds, or no trial could keep to it")


class Execution(NamedTuple):
    """How a grid is executed, as the command line says it."""

    workers: int | None = None  # processes; 0: none, trials run one after the other in this one
    devices: str | None = None
    per_device: int | str | None = None  # a number, or AUTO; None: AUTO on GPUs
    limits: Limits = Limits()
    executor: str = "local"  # or ray
    address: str | None = None  # of a Ray cluster
    world: World = ALONE  # the processes that torchrun has started, which train every trial together


def places_for(
    recipes: Sequence[Recipe],
    n_trials: int,
    workers: int | None = None,
    devices: str | None = None,
    per_device: int | str | None = None,
) -> tuple[Place, ...]:
    """One place for each worker.

    Args:
        recipes: of the grid's arms, settled.
        n_trials: more places than trials are of no use.
        workers: how many; None: on a CPU as many as find the threads they ask for, elsewhere ``per_device`` or one.
        devices: numbers of GPUs, ``0,1``; None: the one that the recipe asks for.
        per_device: workers on each GPU; AUTO: one for now, until Sharing has chosen.

    Raises:
        ConfigError: GPUs that are not there, or asked for by a grid that trains elsewhere.
    """
    on_gpus = all(recipe.machine.device.startswith("cuda") for recipe in recipes)
    for option, value in (("--devices", devices), ("--per-device", per_device)):
        if value not in (None, AUTO) and not on_gpus:
            device = next(r.machine.device for r in recipes if not r.machine.device.startswith("cuda"))
            raise ConfigError(f"{option} {value}: chooses among GPUs, but this grid trains on {device}")
        if value is not None and workers is not None:
            raise ConfigError(
                f"{option} {value} and --workers {workers}: one or the other says how many trials at once"
            )
    each = 1 if per_device in (None, AUTO) else int(per_device)
    if devices is not None:
        found = [Place(gpu) for _ in range(each) for gpu in _gpus(devices)]
    else:
        found = [Place()] * (workers or (that_fit(recipes) if per_device is None else each))
    return tuple(found[: max(1, n_trials)])


def to_choose(recipes: Sequence[Recipe], how: Execution) -> bool:
    """Whether it is to be found out how many trials share each device: where it was asked for, and on GPUs by itself."""
    on_gpus = all(recipe.machine.device.startswith("cuda") for recipe in recipes)
    return how.per_device == AUTO or (on_gpus and how.per_device is None and how.workers is None)


def per_device(word: str | None) -> int | str | None:
    """What ``--per-device`` says.

    Raises:
        ConfigError: neither a number from 1 on nor ``auto``.
    """
    if word is None or word == AUTO:
        return word
    if not word.isdecimal() or int(word) < 1:
        raise ConfigError(f"--per-device {word}: must be a number of trials, 1 at least, or auto")
    return int(word)


def that_fit(recipes: Sequence[Recipe]) -> int:
    """How many trials find their threads; elsewhere than on a CPU one."""
    if any(recipe.machine.device != "cpu" for recipe in recipes):
        return 1
    return max(1, machine.settle_threads(0) // max(recipe.machine.threads for recipe in recipes))


def _gpus(devices: str) -> list[str]:
    """The GPUs of ``0,1``, counted among those that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(torch.cuda.device_count())] if visible is None else visible.split(",")
    found = []
    for word in devices.split(","):
        if not word.strip().isdecimal():
            raise ConfigError(f"--devices {devices}: must be numbers of GPUs, such as 0,1")
        if int(word) >= len(names):
            raise ConfigError(f"--devices {devices}: there is no GPU {int(word)}, this machine shows {len(names)}")
        found.append(names[int(word)].strip())
    if len(set(found)) < len(found):
        raise ConfigError(f"--devices {devices}: names a GPU twice; --per-device says how many trials share one")
    return found


T = TypeVar("T")


def longest_first(trials: Sequence[tuple[T, Forecast, float | None]]) -> list[T]:
    """What to begin with, so that no long trial begins last: those with a budget in seconds by it, then by FLOPs.

    Args:
        trials: each with its forecast and its budget in seconds, None for one in steps or tokens.
    """

    def size(trial: tuple[T, Forecast, float | None]) -> tuple[float, float]:
        _, forecast, seconds = trial
        tokens = (forecast.steps or 0) * forecast.tokens_per_step
        return (-(seconds or 0.0), -forecast.cost.flops_per_token * tokens)

    return [trial for trial, *_ in sorted(trials, key=size)]

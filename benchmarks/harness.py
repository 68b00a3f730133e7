"""How the zoo is measured: contestants take turns in one process, and medians of their in-run ratios are compared.

A file of this folder belongs to the suite when it has ``figures(settings: Settings)``, which returns its Figures or yields one
after the other; it proves that the contestants do equal work (``same``) before it times anything. Any other file is a script of
its own.
"""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from zoo import machine

Call = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """Where and how a benchmark runs. ``quick`` asks for the smallest sizes and few rounds: does it run at all?"""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    threads: int = 1
    quick: bool = False

    def rounds(self, full: int) -> int:
        """``full``, or 2 where it should be quick."""
        return 2 if self.quick else full


@dataclass(frozen=True)
class Wanted:
    """The bound that a ratio has to keep."""

    sense: Literal["at least", "at most"]
    bound: float

    def reached(self, ratio: float) -> bool:
        return ratio >= self.bound if self.sense == "at least" else ratio <= self.bound

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}x"


@dataclass(frozen=True)
class Figure:
    """One row of the report.

    Args:
        work: what was done, sizes named.
        ours, theirs: what each took, in words with a unit; ``theirs`` names the other side where the title does not.
        ratio: as the row's bound reads it: theirs / ours where we want to be faster, ours / theirs where something must
            not grow. None where the row only informs.
        wanted: the bound, or None where nobody asked for one.
        remark: the floor or the profile where the bound is not reached; the spread, if it is wide.
    """

    work: str
    ours: str
    theirs: str = ""
    ratio: float | None = None
    wanted: Wanted | None = None
    remark: str = ""

    @property
    def reached(self) -> bool | None:
        """None where nothing was wanted."""
        return None if self.wanted is None or self.ratio is None else self.wanted.reached(self.ratio)


@dataclass(frozen=True)
class Timings:
    """Seconds of every round, by contestant; round i of all of them ran next to each other."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[name])

    def ratios(self, numerator: str, denominator: str) -> list[float]:
        """numerator / denominator, round by round."""
        return [a / b for a, b in zip(self.seconds[numerator], self.seconds[denominator], strict=True)]


def median_ratio(timings: Timings, numerator: str, denominator: str) -> float:
    """The median over the rounds of numerator / denominator: how many times as long the first one takes."""
    return statistics.median(timings.ratios(numerator, denominator))


def spread(timings: Timings, numerator: str, denominator: str) -> str:
    """The smallest and largest of the rounds' ratios, for a remark."""
    found = timings.ratios(numerator, denominator)
    return f"rounds {min(found):.2f} to {max(found):.2f}"


def alternate(
    contestants: Mapping[str, Call], rounds: int = 7, warmup: int = 2, device: str = "cpu", repeats: int = 1
) -> Timings:
    """Time the contestants in turns; every other round goes backwards, so that nobody always follows the same one.

    Args:
        contestants: what to call, by name.
        rounds: how often each is timed.
        warmup: calls of each that are not.
        device: whose queue is waited for.
        repeats: calls in one timing, for what takes less than a few milliseconds; the seconds are those of one.
    """
    for _ in range(warmup):
        for call in contestants.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    gc.collect()
    for i in range(rounds):
        for name in list(contestants)[:: -1 if i % 2 else 1]:
            seconds[name].append(_timed(contestants[name], device, repeats))
    return Timings(seconds)


def _timed(call: Call, device: str, repeats: int) -> float:
    synchronise(device)
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronise(device)
    return (time.perf_counter() - began) / repeats


def synchronise(device: str) -> None:
    """Wait for what has been asked of the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


class Unequal(AssertionError):
    """Contestants that should do the same work do not; nothing was timed."""


def same(ours: Tensor, theirs: Tensor, what: str, tolerance: float) -> float:
    """The largest difference over the largest value of ``theirs``.

    Raises:
        Unequal: it exceeds ``tolerance``, or is not a number.
    """
    mine, other = ours.detach().double().cpu(), theirs.detach().double().cpu()
    if mine.shape != other.shape:
        raise Unequal(f"{what}: shapes {tuple(mine.shape)} and {tuple(other.shape)}")
    off = float((mine - other).abs().max() / other.abs().max().clamp(min=1e-30))
    if not off <= tolerance:
        raise Unequal(f"{what}: off by {off:.2e} of the largest value, allowed {tolerance:.0e}")
    return off


@dataclass(frozen=True)
class Peak:
    """Bytes at the highest point of a step, everything that was built for it included.

    ``allocated`` are tensors alone, as torch's allocator counts them. ``resident`` on a CPU is the growth of the process
    since its imports, so it holds what the C library keeps and what libraries pack; on a GPU the growth of the allocator's
    reservation.
    """

    allocated: int
    resident: int


def peak_memory(build: Callable[..., Call], arguments: Sequence[Any], settings: Settings) -> Peak:
    """The peak of the step that ``build(*arguments)`` returns, after a first step; on a CPU in two fresh processes.

    Args:
        build: a function at a module's top level, since it is sent to another process by name.
        arguments: what it is called with.
        settings: device and threads.
    """
    if settings.device.startswith("cuda"):
        return _on_gpu(build, arguments, settings)
    whole = _elsewhere(_resident, build, arguments, settings)
    return Peak(_elsewhere(_allocated, build, arguments, settings), whole)


def peak_allocated(build: Callable[..., Call], arguments: Sequence[Any], settings: Settings) -> int:
    """The bytes of tensors alone: see ``peak_memory``."""
    if settings.device.startswith("cuda"):
        return _on_gpu(build, arguments, settings).allocated
    return _elsewhere(_allocated, build, arguments, settings)


def _on_gpu(build: Callable[..., Call], arguments: Sequence[Any], settings: Settings) -> Peak:
    """In this process, whose allocator tells what is held before."""
    machine.release_memory()
    held = torch.cuda.memory_allocated(settings.device), torch.cuda.memory_reserved(settings.device)
    peak = _after_a_step(build, arguments, settings).read()
    return Peak(peak - held[0], torch.cuda.max_memory_reserved(settings.device) - held[1])


def _elsewhere(
    way: Callable[..., int], build: Callable[..., Call], arguments: Sequence[Any], settings: Settings
) -> int:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(way, build, tuple(arguments), settings).result()


def _resident(build: Callable[..., Call], arguments: Sequence[Any], settings: Settings) -> int:
    torch.set_num_threads(settings.threads)
    before = machine.PeakMemory(settings.device).read()
    return _after_a_step(build, arguments, settings).read() - before


def _after_a_step(build: Callable[..., Call], arguments: Sequence[Any], settings: Settings) -> machine.PeakMemory:
    """What has seen the peak of the second step."""
    step = build(*arguments)
    step()
    synchronise(settings.device)
    peak = machine.PeakMemory(settings.device)
    step()
    synchronise(settings.device)
    return peak


def _allocated(build: Callable[..., Call], arguments: Sequence[Any], settings: Settings) -> int:
    torch.set_num_threads(settings.threads)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step = build(*arguments)
        step()
        with record_function("measured step"):
            step()
    events = profiled.profiler.kineto_results.events()
    begins = next(event.start_ns() for event in events if event.name() == "measured step")
    held = peak = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        if event.start_ns() >= begins:
            peak = max(peak, held)
    return peak


def tokens_per_second(n_tokens: int, seconds: float) -> str:
    """``12,345 tokens/s``."""
    return f"{n_tokens / seconds:,.0f} tokens/s"


def milliseconds(seconds: float) -> str:
    """``12.3 ms``."""
    return f"{1e3 * seconds:,.3g} ms" if seconds < 0.1 else f"{1e3 * seconds:,.0f} ms"


def megabytes(n_bytes: float) -> str:
    """``123 MB``, of a million bytes."""
    return f"{n_bytes / 1e6:,.0f} MB"

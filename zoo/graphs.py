"""On a GPU: the loss and gradients of a micro-batch as a CUDA graph, recorded once and replayed with other tokens.

A training step is thousands of kernels, and asking for them one by one often takes longer than they do. A recording asks for
all of them at once. It calls the same kernels on the same memory, so whatever it depends on has to stay where it was: tokens
and noise are copied into the recording's own tensors, and where a parameter or buffer has moved, it is recorded anew. Before it
is used it has to say what the model says. What cannot be recorded (a number that is taken out of a tensor, memory that runs
out) is computed call by call, and the run says so.

Source: CUDA graphs as in torch.cuda.CUDAGraph, whole-network capture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from zoo import machine
from zoo.model import Model

WARM = 2  # calls one by one before a recording: libraries choose their kernels and compilers compile
SHAPES = 4  # recordings at most: each keeps the memory of a micro-batch
LOSS, NORM = 1e-3, 2e-2  # how far a recording may be off, relative: in loss, and in the norm of all gradients


class Given(NamedTuple):
    """What a micro-batch is computed from, on the model's device."""

    tokens: Tensor  # (B, T)
    targets: Tensor  # (B, T)
    segments: Tensor | None  # (B, T)
    noise: Tensor  # the int64 key
    scale: Tensor | float  # factor on the mean loss


class Said(NamedTuple):
    """What a micro-batch says beside its gradients, which go into ``.grad``."""

    nll: Tensor  # a scalar, its part of the update's mean
    losses: dict[str, Tensor]  # auxiliary
    stats: dict[str, Tensor]


Compute = Callable[[Given], Said]  # adds to every parameter's .grad


class Recorder(Protocol):
    """What records: Cuda, or a stand-in."""

    def rehearse(self, work: Callable[[], object]) -> None:
        """Do the work once, to raise what would raise while it is recorded."""

    def record(self, work: Callable[[], Said]) -> tuple[Said, Callable[[], None]]:
        """What the work fills, and how to do it again."""


class Recording:
    """One graph, and everything that it reads and writes."""

    def __init__(self, model: Model, compute: Compute, given: Given, recorder: Recorder) -> None:
        self.model = model
        kind = torch.promote_types(torch.float32, model.embedding.weight.dtype)
        scale = torch.full((), float(given.scale), dtype=kind, device=given.tokens.device)
        self.given = Given(*(None if t is None else t.clone() for t in given[:4]), scale)
        self.said, self.replay = recorder.record(lambda: compute(self.given))
        self.grads = [(p, p.grad) for p in model.parameters() if p.grad is not None]
        self.places = self._places()

    def _places(self) -> list[int]:
        return [t.data_ptr() for t in (*self.model.parameters(), *self.model.buffers())]

    def holds(self) -> bool:
        """Whether what it reads is where it was."""
        return self._places() == self.places

    def play(self, given: Given) -> Said:
        for own, new in zip(self.given[:4], given[:4], strict=True):
            if own is not None:
                own.copy_(new, non_blocking=True)
        self.given.scale.fill_(given.scale)
        self.replay()
        for p, grad in self.grads:
            p.grad = grad
        return Said(self.said.nll.clone(), self.said.losses, {k: t.clone() for k, t in self.said.stats.items()})


class Graphs:
    """``compute`` by recordings, one for the first micro-batch of an update and one for those that add to its gradients.

    Args:
        model: in training mode, on its device.
        compute: forward and backward of a micro-batch.
        recorder: None: Cuda.

    Attributes:
        refused: why everything is computed call by call, if it is.
    """

    def __init__(self, model: Model, compute: Compute, recorder: Recorder | None = None) -> None:
        self.model, self.compute = model, compute
        self.recorder: Recorder = Cuda(model.embedding.weight.device) if recorder is None else recorder
        self.refused = ""
        self.forget()

    def forget(self) -> None:
        """Drop all recordings, with their memory."""
        self.kept: dict[tuple[object, ...], Recording] = {}
        self.calls: Counter[tuple[object, ...]] = Counter()

    def __call__(self, given: Given, first: bool) -> Said:
        """One micro-batch. ``first``: no parameter has a gradient yet; else they are added to those of the last one."""
        key = (first, *(None if t is None else tuple(t.shape) for t in given[:3]))
        ready = self.calls[key] >= WARM and (first or (True, *key[1:]) in self.kept)
        self.calls[key] += 1
        if self.refused or not ready:
            return self.compute(given)
        found = self.kept.get(key)
        if found is not None and found.holds():
            return found.play(given)
        if found is not None or len(self.kept) >= SHAPES:
            self.forget()  # where something has moved, none of the others holds either
            return self.compute(given)
        return self._recorded(key, given, first)

    def _recorded(self, key: tuple[object, ...], given: Given, first: bool) -> Said:
        """The micro-batch call by call, then once more by a recording, which has to say the same."""
        before = None if first else [grad.clone() for grad in self._gradients()]
        told = self.compute(given)
        wanted = float(told.nll), self._norm()
        self._back(before)
        machine.release_memory()
        try:
            self.recorder.rehearse(lambda: self.compute(given))
            self._back(before)
            made = Recording(self.model, self.compute, given, self.recorder)
            if before is not None:
                self._back(before)
            played = made.play(given)
            _compare(wanted, (float(played.nll), self._norm()))
        except Exception as fault:
            self.refused = f"{type(fault).__name__}: {' '.join(str(fault).split())}"
        if self.refused:  # outside the handler, whose fault holds on to what it used
            self._back(before)
            self.forget()
            return self.compute(given)
        self.kept[key] = made
        return played

    def _back(self, before: list[Tensor] | None) -> None:
        """The gradients as they were ahead of the micro-batch."""
        if before is None:
            self.model.zero_grad(set_to_none=True)
        else:
            torch._foreach_copy_(self._gradients(), before)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def _norm(self) -> float:
        """Of all gradients together."""
        return float(torch.nn.utils.get_total_norm(self._gradients()))


def _compare(wanted: tuple[float, float], found: tuple[float, float]) -> None:
    """Raises ValueError where a recording says something else than the model."""
    for what, a, b, allowed in zip(("loss", "norm of the gradients"), wanted, found, (LOSS, NORM), strict=True):
        if not abs(a - b) <= allowed * abs(a):
            raise ValueError(f"replayed, the {what} is {b:.6g}, not {a:.6g}")


class Cuda:
    """Records what is asked of a GPU. Recordings share their memory, since they are replayed one after the other."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()

    def rehearse(self, work: Callable[[], object]) -> None:
        """Nothing may wait for the GPU: a recording that is broken off for that leaves its process in disorder."""
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.synchronize(self.device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    def record(self, work: Callable[[], Said]) -> tuple[Said, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self.device), torch.cuda.graph(graph, pool=self.pool):
                said = work()
        except Exception:
            self._tidy()
            raise
        return said, graph.replay

    def _tidy(self) -> None:
        """After a recording that was broken off torch's generator believes it is being recorded, until a recording ends."""
        graph = torch.cuda.CUDAGraph()
        with suppress(RuntimeError), torch.cuda.device(self.device), torch.cuda.graph(graph):
            torch.zeros((), device=self.device)

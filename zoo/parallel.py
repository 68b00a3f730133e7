"""The processes that train one trial together, data-parallel: each computes the gradients of its own rows of every batch.

All that they say to each other is said here. ``ALONE`` is one process by itself, to which every call is the identity;
``Ranks`` talks through torch.distributed: numbers on which something is decided over gloo, gradients and counts where they
lie (NCCL on GPUs). torch's DistributedDataParallel is not used: it starts to reduce while the backward still runs, so that
a process that finds no memory there leaves the others waiting for ever, where here all of them make smaller micro-batches.
The price is that gradients travel after the backward, not during it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zoo.core.buckets import buckets, checksum, pieces
from zoo.core.part import ConfigError

T = TypeVar("T")
FOR_EVER = timedelta(days=365)  # while the first process prepares text, probes or scores, the others have nothing to do


class Failed(Exception):
    """What one process raised, now raised in all of them: they are still in step, and the next trial can begin."""


class Broken(Exception):
    """The processes are out of step: one was lost, or failed by itself. Nothing can be trained any more."""


class World:
    """One process by itself, and what ``Ranks`` answers for several.

    ``rank`` is this process's number and ``size`` how many there are. Every method must be called by all of them, in the
    same order, and gives all of them the same.
    """

    rank, size = 0, 1

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor summed over the processes, integers as integers."""
        return list(tensors)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """``.grad`` summed over the processes. One that is missing somewhere counts as zeros there; one that is missing
        everywhere stays so, which leaves its parameter alone."""

    def shared_out(self, work: Callable[[Tensor], Tensor], stack: Tensor) -> Tensor:
        """``work(stack)``, (n, ...) -> (n, ...), each process doing its part of the n where the work is one by one."""
        return work(stack)

    def most(self, *numbers: float) -> tuple[float, ...]:
        """The largest that any process says, number by number."""
        return numbers

    def of_first(self, number: float) -> float:
        """What process 0 says."""
        return number

    def words(self, text: str) -> str:
        """The first text that is not empty."""
        return text

    def gather(self, t: Tensor) -> Tensor:
        """The tensors (...) of all processes, on the CPU: (size, ...)."""
        return t[None]

    def of_first_table(self, read: Callable[[], tuple[T, dict[str, Tensor]]]) -> tuple[T, dict[str, Tensor]]:
        """What process 0 reads: something that can be pickled, and tensors on the CPU."""
        return read()

    def together(self, work: Callable[[], T]) -> T:
        """``work()`` of each process; where one of them raises, all do.

        Raises:
            Failed: with several processes, instead of what was raised.
        """
        return work()

    def give_up(self, fault: Exception | None) -> NoReturn:
        """Raise what this process or another has come upon, in all of them."""
        assert fault is not None
        raise fault

    def check_equal(self, tensors: Iterable[Tensor]) -> None:
        """Whether all processes hold the same bits.

        Raises:
            Broken: they do not.
        """

    @contextmanager
    def in_step(self, *agreed: type[Exception]) -> Iterator[None]:
        """A stretch in which a process that leaves by itself would keep the others waiting.

        Raises:
            Broken: instead of whatever is not among ``agreed``, which all processes raise at the same place.
        """
        yield


ALONE = World()


class Ranks(World):
    """Several processes, started by torchrun, that have found each other.

    Args:
        patience: seconds after which a process that does not answer counts as lost; None: never.
    """

    def __init__(self, patience: float | None = None) -> None:
        limit = FOR_EVER if patience is None else timedelta(seconds=patience)
        local, cuda = int(os.environ["LOCAL_RANK"]), torch.cuda.is_available()
        if cuda and local < torch.cuda.device_count():  # more processes than GPUs may still train on the processor
            torch.cuda.set_device(local)
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=limit)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.busy = False  # in a stretch that all must leave at one place
        self._patient = dist.new_group(backend="gloo", timeout=FOR_EVER)

    def close(self) -> None:
        """Let go of the others."""
        dist.destroy_process_group()

    def tell(self, message: Any) -> None:
        """Send something that can be pickled from process 0 to the others, which wait for it in ``hear``."""
        with _in_words():
            dist.broadcast_object_list([message], 0, self._patient)

    def hear(self) -> Any:
        """What process 0 tells; it may take its time."""
        with _in_words():
            heard = [None]
            dist.broadcast_object_list(heard, 0, self._patient)
        return heard[0]

    def sum(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        found: list[Tensor] = list(tensors)
        with _in_words():
            for members, flat in self._reduced(found):
                for i, piece in zip(members, pieces(flat, [found[i] for i in members]), strict=True):
                    found[i] = piece
        return found

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        everything = list(parameters)
        there = self.most(*(float(p.grad is not None) for p in everything))
        some = [p for p, anywhere in zip(everything, there, strict=True) if anywhere]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in some]
        with _in_words():
            for members, flat in self._reduced(grads):
                # views of what travelled take the place of the gradients, so that nothing is copied back or kept twice
                for i, piece in zip(members, pieces(flat, [grads[i] for i in members]), strict=True):
                    some[i].grad = grads[i] = piece

    def _reduced(self, tensors: list[Tensor]) -> list[tuple[list[int], Tensor]]:
        """Tensors end to end, summed over the processes, in buckets: which of them, and their flat sum."""
        under_way = []
        for members in buckets(tensors):
            flat = torch.cat([tensors[i].reshape(-1) for i in members])
            under_way.append((members, flat, dist.all_reduce(flat, async_op=True)))
        for _, _, work in under_way:
            work.wait()
        return [(members, flat) for members, flat, _ in under_way]

    def shared_out(self, work: Callable[[Tensor], Tensor], stack: Tensor) -> Tensor:
        each = -(-len(stack) // self.size)
        own = stack[self.rank * each : (self.rank + 1) * each]
        done = stack.new_zeros(each, *stack.shape[1:])
        if len(own):
            done[: len(own)] = work(own)
        whole = stack.new_empty(each * self.size, *stack.shape[1:])
        with _in_words():  # as bytes: not every backend knows every dtype
            dist.all_gather_into_tensor(whole.view(-1).view(torch.uint8), done.view(-1).view(torch.uint8))
        return whole[: len(stack)]

    def most(self, *numbers: float) -> tuple[float, ...]:
        said = torch.tensor(numbers, dtype=torch.float64)
        with _in_words():
            dist.all_reduce(said, dist.ReduceOp.MAX)
        return tuple(said.tolist())

    def of_first(self, number: float) -> float:
        return self.most(-float("inf") if self.rank else number)[0]

    def words(self, text: str) -> str:
        said: list[Any] = [None] * self.size
        with _in_words():
            dist.all_gather_object(said, text)
        return next(filter(None, said), "")

    def gather(self, t: Tensor) -> Tensor:
        own = t.cpu()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        with _in_words():
            dist.all_gather(parts, own)
        return torch.stack(parts)

    def of_first_table(self, read: Callable[[], tuple[T, dict[str, Tensor]]]) -> tuple[T, dict[str, Tensor]]:
        found, tensors = self.together(read if self.rank == 0 else lambda: (None, {}))
        with _in_words():
            head = [(found, [(name, t.dtype, t.shape) for name, t in tensors.items()])]
            dist.broadcast_object_list(head, 0)
            found, shapes = head[0]
            for name, dtype, shape in shapes:
                t = tensors[name].contiguous() if self.rank == 0 else torch.empty(shape, dtype=dtype)
                if t.numel():
                    dist.broadcast(t.view(-1).view(torch.uint8), 0)
                tensors[name] = t
        return found, tensors

    def together(self, work: Callable[[], T]) -> T:
        fault: Exception | None = None
        try:
            value = work()
        except Exception as raised:
            fault = raised
        if any(self.most(float(fault is not None))):
            self.give_up(fault)
        return value

    def give_up(self, fault: Exception | None) -> NoReturn:
        own = "" if fault is None else f"{in_words(fault)} (in process {self.rank} of {self.size})"
        raise Failed(self.words(own)) from fault

    def check_equal(self, tensors: Iterable[Tensor]) -> None:
        sums = torch.stack([checksum(t) for t in tensors]).cpu()
        both = torch.stack([sums, -sums])
        with _in_words():
            dist.all_reduce(both, dist.ReduceOp.MAX)
        if not torch.equal(both[0], -both[1]):
            raise Broken("the processes of this trial hold different weights: their machines or libraries differ")

    @contextmanager
    def in_step(self, *agreed: type[Exception]) -> Iterator[None]:
        self.busy = True
        try:
            yield
        except (Broken, Failed, *agreed):
            raise
        except Exception as fault:
            raise Broken(f"failed by itself: {in_words(fault)}") from fault
        finally:
            self.busy = False


def launched() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_size() -> int:
    """How many processes torchrun has started on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() else 1


def join(patience: float | None = None) -> World:
    """The processes that torchrun has started; ALONE where there is but one.

    Args:
        patience: seconds after which a process that does not answer counts as lost; None: never.
    """
    if not launched() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    with _in_words():
        return Ranks(patience)


def in_words(fault: BaseException) -> str:
    """The first line of what was wrong, with its kind where that says something."""
    text = str(fault) if isinstance(fault, ConfigError | Failed) else f"{type(fault).__name__}: {fault}"
    return text.strip().split("\n")[0]


@contextmanager
def _in_words() -> Iterator[None]:
    try:
        yield
    except RuntimeError as fault:  # all of torch.distributed's are
        raise Broken(f"another process of this run was lost, or does not answer: {in_words(fault)}") from fault

"""What autograd keeps between forward and backward, counted on a model of the recipe.

A call of a stage is dear, on the meta device (whose operations are Python) and where it is computed, so of stages with equal
knobs that are given tensors of equal form one is called; the others are taken to answer and to keep the like. Nothing is
remembered in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.core.wires import Report, Wire
from zoo.model import Model, Stage

Answer = tuple[Tensor, dict[Wire, Tensor], Report, dict[str, Tensor]]


class Called(NamedTuple):
    """One call of a stage: what it was given, what it answered, and the bytes of each storage that it had autograd keep."""

    given: tuple[Tensor, ...]
    answer: Answer
    kept: dict[int, int]  # by storage


Calls = dict[Hashable, Called]


def saved_bytes(model: Model, rows: int, calls: Calls | None = None) -> int:
    """Bytes that autograd keeps between forward and backward of ``rows`` full rows.

    Args:
        model: on the meta device, or where it is to be trained; left in evaluation mode.
        rows: of ``model.config.context`` tokens.
        calls: of stages of other models, to which this one's are added.
    """
    ledger = _Ledger({_address(p) for p in model.parameters()}, {} if calls is None else calls)
    tokens = torch.zeros(rows, model.config.context, dtype=torch.long, device=model.embedding.weight.device)
    model.eval()  # what dropout and jitter keep is small, and they would need a noise key
    stages = model.stages
    if not model.recompute:  # else a stage is called twice, and keeps only what it is given
        model.stages = [_Likened(stage, like, ledger) for stage, like in zip(stages, model.likes(), strict=True)]
    try:
        with torch.autograd.graph.saved_tensors_hooks(ledger.keep, lambda t: t):
            model(tokens, tokens)
    finally:
        model.stages = stages
    return sum(ledger.kept.values())


def _address(t: Tensor) -> int:
    return t.untyped_storage()._cdata


class _Ledger:
    """What is kept, by storage, each counted once; parameters are there anyway."""

    def __init__(self, parameters: set[int], calls: Calls) -> None:
        self.parameters, self.calls = parameters, calls
        self.kept: dict[int, int] = {}
        self.alive: list[Any] = []  # so that no address is used twice

    def keep(self, t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in self.parameters:
            self.kept[storage._cdata] = storage.nbytes()
            self.alive.append(t)
        return t


class _Likened:
    """A stage that is called where none like it has been, and otherwise answers as that one did."""

    def __init__(self, stage: Stage, like: str, ledger: _Ledger) -> None:
        self.stage, self.like, self.ledger = stage, like, ledger
        self.reads = stage.reads

    def __call__(self, x: Tensor, inbox: dict[Wire, Tensor]) -> Answer:
        given = (x, *inbox.values())
        call = (self.like, tuple(inbox), _forms(given))
        if call in self.ledger.calls:
            return self._again(self.ledger.calls[call], given)
        own = _Ledger(self.ledger.parameters, {})
        with torch.autograd.graph.saved_tensors_hooks(own.keep, lambda t: t):
            answer = self.stage(x, inbox)
        self.ledger.kept |= own.kept
        self.ledger.alive += own.alive
        bare = _mapped(answer, lambda t: t.detach().requires_grad_(t.requires_grad))
        self.ledger.calls[call] = Called(tuple(t.detach() for t in given), bare, own.kept)
        return answer

    def _again(self, called: Called, given: Iterable[Tensor]) -> Answer:
        """The answer in storages of its own, except where it lay in those that were given."""
        places = {_address(then): now.untyped_storage() for then, now in zip(called.given, given, strict=True)}

        def anew(t: Tensor) -> Tensor:
            storage = t.untyped_storage()
            if storage._cdata not in places:
                places[storage._cdata] = torch.UntypedStorage(storage.nbytes(), device=t.device)
            made = torch.empty(0, dtype=t.dtype, device=t.device)
            made.set_(places[storage._cdata], t.storage_offset(), t.shape, t.stride())
            return made.requires_grad_(t.requires_grad)

        answer = _mapped(called.answer, anew)
        for address, size in called.kept.items():
            storage = places[address] if address in places else torch.UntypedStorage(size, device=given[0].device)
            self.ledger.kept[storage._cdata] = size
            self.ledger.alive.append(storage)
        return answer


def _forms(given: tuple[Tensor, ...]) -> tuple[Hashable, ...]:
    """All of some tensors but their values: how each is laid out, and which of them lie in one storage."""
    places = [_address(t) for t in given]
    return tuple(
        (t.device, t.dtype, t.shape, t.stride(), t.storage_offset(), t.requires_grad, places.index(place))
        for t, place in zip(given, places, strict=True)
    )


def _mapped(answer: Answer, change: Callable[[Tensor], Tensor]) -> Answer:
    def table(tensors: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
        return {name: change(t) for name, t in tensors.items()}

    x, outbox, report, present = answer
    return change(x), table(outbox), Report(table(report.losses), table(report.stats)), table(present)

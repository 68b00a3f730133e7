"""Decoding steps without modules: what the first steps ask of torch is recorded, and asked again for every further token.

For a few rows the interpreter's way through a model takes longer than its arithmetic. A recording calls the same functions on
the same shapes; products with weights are asked for in a way that is faster here and gives the same bits (``products``,
``lines``). It is used only once it has said what the model says, to the last bit, and only for as many tokens as every
comparison that the model made with a number of tokens turns out the same. Whatever cannot be recorded (a number taken out of
a tensor, a tensor from nowhere) is decoded by the model itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.core.cache import Cache
from zoo.generate.record import Growing, Recorder, tensors_in
from zoo.generate.write import Program, Step, Writer
from zoo.model import Model

MOST_TRIES = 5  # recordings that fail, or that last for too few tokens


class Steps:
    """One more id for each row of a cache, as ``model(ids, cache=cache).logits`` says it.

    Args:
        model: in evaluation mode; its parameters stay as they are for as long as this object is used.
        cache: the model's, with the prompt in it. Between two steps its rows may be reordered, and be more or fewer.
    """

    def __init__(self, model: Model, cache: Cache) -> None:
        self.model, self.cache = model, cache
        self.refused = ""  # why the model decodes by itself
        if any(stage._compiled_call_impl is not None for stage in model.stages):
            self.refused = "the model is compiled"
        self.tries, self.as_recorded = 0, False
        self._forget()

    def _forget(self) -> None:
        self.earlier: Step | None = None
        self.program: Program | None = None
        self.checked, self.at, self.lasts = False, 0, math.inf

    def __call__(self, ids: Tensor) -> Tensor:
        """ids (R, 1) -> logits (R, 1, V)."""
        if not self.refused and not self.cache.is_whole():
            self.refused = "documents are kept apart, or tokens were forgotten"
        if self.refused:
            return self.model(ids, cache=self.cache).logits
        if self.earlier is not None and len(self.earlier.ids) != len(ids):
            self._forget()
        further = self.cache.length - self.at
        if self.program is not None and further > self.lasts:  # from this token on the model may take another way
            self._begin_anew("every few tokens the model takes another way")
        if self.program is None:
            return self._recorded(ids)
        if not self.checked:
            return self._compared(ids, further)
        self.cache.admit(ids, None)
        logits, self.cache.stages = self.program(further, ids, self.cache.stages)
        self.cache.length += 1
        return logits

    def _recorded(self, ids: Tensor) -> Tensor:
        """A step of the model, watched; after the second one there is a program."""
        recorder = Recorder(None if self.earlier is None else self.earlier.calls)
        remembered, at = self.cache.stages[:], self.cache.length
        if self.earlier is not None:
            self.cache.length = Growing.of(at, 1, recorder.watch)
        try:
            with recorder:
                logits = self.model(ids, cache=self.cache).logits
        finally:
            self.cache.length = int(self.cache.length)
        step = Step(ids, remembered, recorder.calls, logits, self.cache.stages[:])
        if self.earlier is None:
            self.earlier, self.refused = step, recorder.watch.fault
        elif _sizes(self.earlier.remembered) == _sizes(remembered) == _sizes(step.kept):
            self.program = Writer(self.model, recorder.watch, self.as_recorded).program(self.earlier, step)
            self.at, self.lasts = at, recorder.watch.lasts
            self.earlier = step._replace(calls=[], kept=[], remembered=[])
            if self.program is None:
                self._begin_anew(recorder.watch.fault)
        else:
            self._begin_anew("what is remembered has not reached its size")
        return logits

    def _begin_anew(self, otherwise: str) -> None:
        """Drop the recording; ``otherwise`` is why there is no other one, where there have been many."""
        self._forget()
        self.tries += 1
        self.refused = otherwise if self.tries == MOST_TRIES else ""

    def _compared(self, ids: Tensor, further: int) -> Tensor:
        """A step of the model, and the program's beside it, on a memory of its own."""
        remembered = [{key: t.clone() for key, t in stage.items()} for stage in self.cache.stages]
        logits = self.model(ids, cache=self.cache).logits
        said, kept = self.program(further, ids, remembered)
        self.checked = said.equal(logits) and all(
            a.equal(b) for a, b in zip(tensors_in(kept), tensors_in(self.cache.stages), strict=True)
        )
        if not self.checked and self.as_recorded:
            self.refused = "the recording does not say what the model says"
        elif not self.checked:
            self._begin_anew("the recording does not say what the model says")
            self.as_recorded = True
        return logits


def _sizes(stages: list[dict[str, Tensor]]) -> list[torch.Size]:
    return [t.shape for t in tensors_in(stages)]

"""Parameters that are cast to the stream's dtype once, for work in so small calls that casting would be most of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from zoo.model import Model


class Kept(nn.Parameter):
    """A parameter that remembers what it was cast to: the same numbers as without, whoever asks for whatever dtype."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """As of any tensor; asked for a dtype alone, the answer of the first time."""
        if kwargs or len(args) != 1 or not isinstance(args[0], torch.dtype):
            return super().to(*args, **kwargs)
        known: dict[torch.dtype, Tensor] = self.__dict__.setdefault("known", {})
        if args[0] not in known:
            known[args[0]] = super().to(args[0])
        return known[args[0]]


@contextmanager
def cast_once(model: Model) -> Iterator[None]:
    """Within, weights must not change; each is cast to a dtype once. Takes the memory of the casts, and gives it back."""
    owned = [(module, name, p) for module in model.modules() for name, p in module.named_parameters(recurse=False)]
    kept = {p: Kept(p.detach(), requires_grad=False) for _, _, p in owned}  # tied ones stay one
    try:
        for module, name, p in owned:
            setattr(module, name, kept[p])
        yield
    finally:
        for module, name, p in owned:
            setattr(module, name, p)

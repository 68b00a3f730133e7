"""What one decoding step asks of torch, written down: the functions in their order, and which numbers grow with every token.

A step is watched twice, one token apart. The sizes that differ grow; from then on they are handed out as ``Growing`` numbers,
which carry their growth through arithmetic and remember every comparison, so that it is known up to which token the model
would take the same way again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

FIXED = (torch.dtype, torch.device, torch.layout)
NEVER_GROWS = {
    "dim",
    "ndim",
    "element_size",
    "itemsize",
    "is_floating_point",
    "is_complex",
    "is_meta",
    "is_cuda",
    "is_cpu",
}
NEVER_GROWS |= {"requires_grad", "is_sparse", "is_quantized", "is_nested", "is_leaf"}
SIZES = {"size", "numel", "stride", "__len__", "is_contiguous", "nbytes"}


class Call(NamedTuple):
    """One function of torch, with what it was given and what it returned."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    def tensors(self) -> list[Tensor]:
        """The tensors that it returned."""
        return tensors_in(self.result)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dictionaries, in order."""
    if isinstance(value, Tensor):
        return [value]
    found: list[Tensor] = []
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ():
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, tuple | list | dict):
            found += tensors_in(item)
    return found


class Watch:
    """What is learnt beside the calls: why they cannot be repeated, or for how many further tokens they can."""

    def __init__(self) -> None:
        self.fault = ""
        self.lasts: float = math.inf

    def refuse(self, why: str) -> None:
        """Remember the first reason."""
        self.fault = self.fault or why


class Growing(int):
    """A number that is ``slope`` larger with every further token.

    Sums, differences, multiples and comparisons are followed; other arithmetic is noticed. Not seen is what Python does with
    an integer without asking it: an index into a list, or a float on the left of a comparison.
    """

    slope: int
    watch: Watch

    @classmethod
    def of(cls, value: int, slope: int, watch: Watch) -> int:
        """``value``, as a plain number where it does not grow."""
        if slope == 0:
            return int(value)
        made = cls(value)
        made.slope, made.watch = slope, watch
        return made

    def _with(self, other: Any, combine: Callable[[int, int], int]) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        return Growing.of(combine(int(self), int(other)), combine(self.slope, slope_of(other)), self.watch)

    def __add__(self, other: Any) -> Any:
        return self._with(other, operator.add)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self._with(other, operator.sub)

    def __rsub__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: b - a)

    def __neg__(self) -> Any:
        return Growing.of(-int(self), -self.slope, self.watch)

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Growing):
            self.lost()
        if not isinstance(other, int):
            return NotImplemented
        return Growing.of(int(self) * int(other), self.slope * int(other), self.watch)

    __rmul__ = __mul__

    def lost(self) -> None:
        """From here on its growth is not followed: the step goes on with the number, and is not repeated."""
        self.watch.refuse("the number of tokens enters arithmetic that cannot be followed")

    def _whether(self, other: Any, compare: Callable[[int, int], bool]) -> bool:
        """A comparison, and for how many tokens it turns out the same."""
        if not isinstance(other, int):
            self.lost()
            return NotImplemented
        off, slope = int(self) - int(other), self.slope - slope_of(other)
        said = compare(off, 0)
        turns = -off // slope if slope else -1  # about when the two are equal
        changed = (k for k in range(max(0, turns - 1), turns + 3) if compare(off + slope * k, 0) != said)
        self.watch.lasts = min(self.watch.lasts, next(changed, math.inf) - 1)
        return said

    def __lt__(self, other: Any) -> bool:
        return self._whether(other, operator.lt)

    def __le__(self, other: Any) -> bool:
        return self._whether(other, operator.le)

    def __gt__(self, other: Any) -> bool:
        return self._whether(other, operator.gt)

    def __ge__(self, other: Any) -> bool:
        return self._whether(other, operator.ge)

    def __eq__(self, other: object) -> bool:
        return self._whether(other, operator.eq)

    def __ne__(self, other: object) -> bool:
        return self._whether(other, operator.ne)

    def __bool__(self) -> bool:
        return self._whether(0, operator.ne)

    __hash__ = int.__hash__


def _untracked(name: str) -> Callable[..., Any]:
    plain = getattr(int, name)

    def lost(self: Growing, *args: Any) -> Any:
        self.lost()
        return plain(self, *args)

    return lost


for _name in ("floordiv", "truediv", "mod", "divmod", "pow", "lshift", "rshift", "and", "or", "xor"):
    for _side in ("", "r"):
        setattr(Growing, f"__{_side}{_name}__", _untracked(f"__{_side}{_name}__"))
for _name in ("abs", "invert", "float", "pos", "round", "floor", "ceil", "trunc"):
    setattr(Growing, f"__{_name}__", _untracked(f"__{_name}__"))


def slope_of(value: Any) -> int:
    """By how much a number grows with every token."""
    return value.slope if isinstance(value, Growing) else 0


class Recorder(TorchFunctionMode):
    """Writes down the calls made in its ``with``.

    Args:
        before: the calls of the step one token earlier; None: this is the earlier one.
    """

    def __init__(self, before: Sequence[Call] | None = None) -> None:
        super().__init__()
        self.before, self.calls, self.watch = before, [], Watch()
        self.slopes: dict[int, tuple[int, ...]] = {}  # of the shapes, by the tensor's id; ``calls`` keeps it alive

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if isinstance(result, Tensor) or result is None or tensors_in(result):
            self._note(Call(function, args, kwargs, result))
            return result
        if isinstance(result, FIXED):
            return result
        return self._fact(function, args, result)

    def _note(self, call: Call) -> None:
        self.calls.append(call)
        if self.before is None:
            return
        number = len(self.calls) - 1
        earlier = self.before[number] if number < len(self.before) else None
        if earlier is None or earlier.function != call.function:
            self.watch.refuse("two steps do not call the same functions")
            return
        for was, now in zip(earlier.tensors(), call.tensors(), strict=False):
            if was.ndim == now.ndim:
                self.slopes[id(now)] = tuple(b - a for a, b in zip(was.shape, now.shape, strict=True))

    def _fact(self, function: Callable[..., Any], args: tuple[Any, ...], result: Any) -> Any:
        """What a tensor says of itself: its shape, with what grows marked, or a reason not to repeat the step."""
        name = getattr(function, "__name__", "")
        name = function.__self__.__name__ if name == "__get__" else name
        slopes = self.slopes.get(id(args[0]), ()) if args else ()
        if not any(slopes) and (isinstance(result, torch.Size) or name in SIZES | NEVER_GROWS):
            return result
        if isinstance(result, torch.Size):
            return torch.Size([Growing.of(n, s, self.watch) for n, s in zip(result, slopes, strict=True)])
        if name == "size":
            return Growing.of(result, slopes[args[1]], self.watch)
        if name not in NEVER_GROWS:
            self.watch.refuse(f"{name} takes a number out of a tensor")
        return result

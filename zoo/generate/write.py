"""A recorded decoding step as the source of a function: one line a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.generate.lines import Line, Product, showing, side_by_side, wanted
from zoo.generate.products import AS_IT_IS, ONCE, joined, parts
from zoo.generate.record import Call, Growing, Watch, tensors_in
from zoo.model import Model

Stages = list[dict[str, Tensor]]
Program = Callable[[int, Tensor, Stages], tuple[Tensor, Stages]]  # (tokens further, ids, remembered) -> logits, kept
ARITHMETIC = {"add", "sub", "mul", "div"}
LITERALS = (int, str, type(None))


class Step(NamedTuple):
    """What was recorded of one step."""

    ids: Tensor  # (R, 1)
    remembered: Stages  # ahead of the step
    calls: list[Call]
    logits: Tensor  # (R, 1, V)
    kept: Stages  # behind it


class Writer:
    """Writes the function. What depends on parameters alone, such as a cast of a weight, is taken from the recording.

    Args:
        model: whose parameters and buffers may occur in the function.
        watch: where a reason is left why the step cannot be repeated.
        as_recorded: whether products and numbers are to be said as they were, and not in the fastest way.
    """

    def __init__(self, model: Model, watch: Watch, as_recorded: bool = False) -> None:
        self.watch, self.as_recorded = watch, as_recorded
        self.buffers = list(model.buffers())
        self.constants = {id(t): t for t in (*model.parameters(), *self.buffers)}
        self.values: dict[str, Any] = {}
        self.lines: list[Line] = []
        self.used: set[str] = set()  # names in the line that is being written
        self.said: dict[str, list[str]] = {}  # what constants gave, by its source
        self.flat: dict[str, str] = {}  # of results that are views of products (R, F), the product
        self.scalars: dict[tuple[str, torch.dtype], Tensor] = {}  # numbers as tensors
        self.roots: dict[int, Tensor] = {}  # what a view is a view of, by the view's id
        self.twins: dict[int, Tensor] = {}  # buffers that hold the same as an earlier one: layers share tables
        self.names: dict[int, str] = {}  # of the later step's tensors, by id
        self.earlier: dict[int, str] = {}  # of the earlier step's
        self.changed: set[int] = set()  # storages that are written to

    def program(self, was: Step, now: Step) -> Program | None:
        """The function that repeats ``now``, one token after ``was``; None with a reason left in ``watch``."""
        self._name(was.ids, now.ids, "ids")
        for i, stage in enumerate(now.remembered):
            for key, t in stage.items():
                self._name(was.remembered[i].get(key), t, f"stages[{i}][{key!r}]")
        if len(was.calls) != len(now.calls):
            self.watch.refuse("two steps do not make equally many calls")
        self.changed = {_storage(t) for call in now.calls for t in _written(call)}
        self.twins = _twins(t for t in self.buffers if _storage(t) not in self.changed)
        for before, call in zip(was.calls, now.calls, strict=False):
            if self.watch.fault:
                return None
            self._call(before, call)
        kept = [
            f"{{{', '.join(f'{key!r}: {self._text(was.kept[i].get(key), t)}' for key, t in stage.items())}}}"
            for i, stage in enumerate(now.kept)
        ]
        self.used = {self._text(was.logits, now.logits)}
        self.used |= {self.names.get(id(t), "") for t in tensors_in(now.kept)}
        if self.watch.fault:
            return None
        lines = wanted(side_by_side(self.lines, self._value), self.used)
        source = ["def step(further, ids, stages):", *map(str, lines)]
        source.append(f"return {self._text(was.logits, now.logits)}, [{', '.join(kept)}]")
        exec("\n    ".join(source), self.values)
        return self.values["step"]

    def _name(self, was: Tensor | None, now: Tensor, name: str) -> None:
        self.earlier[id(was)] = self.names[id(now)] = name

    def _call(self, was: Call, now: Call) -> None:
        """One line, or none where nothing is left to do: a constant, a line again, a view that is its first argument again."""
        self.used = set()
        words = [self._text(a, b) for a, b in _pairs(was.args, now.args, self.watch)]
        if _takes_a_scalar(now) and not self.as_recorded:
            words[1] = self._scalar(now)
        words += [f"{name}={self._text(was.kwargs.get(name), value)}" for name, value in now.kwargs.items()]
        results = tensors_in(now.result)
        if len(results) > 1 and len(results) != len(now.result):
            self.watch.refuse("a call returns tensors among other things")
        fixed = self._from_constants(now, results)
        if fixed and not _grows([now.args, now.kwargs]):
            self.constants |= {id(t): t for t in results}
            self.earlier |= {id(a): f"constant {id(b)}" for a, b in zip(tensors_in(was.result), results, strict=True)}
            return
        said, view, shows = f"{self._value(now.function)}({', '.join(words)})", _is_view(now), None
        names = [self.names.get(id(t)) or f"v{len(self.names)}_{i}" for i, t in enumerate(results)]
        if now.function is F.linear and (product := self._product(was, now)):
            said, view, shows = self._showing(product, now.result), True, tuple(now.result.shape)
            self.flat[names[0]] = product
        elif fixed and said in self.said:
            names, said = self.said[said], ""
        elif fixed:
            self.said[said] = names
        elif view and _is_its_argument(was) and _is_its_argument(now):
            names, said = [words[0]], ""
        elif view and (root := self._at_once(was, now)):
            said = self._showing(root, now.result)
            shows = tuple(now.result.shape) if root in self.flat.values() else None
        for a, b, name in zip(tensors_in(was.result), results, names, strict=True):
            self._name(a, b, name)
        if said:
            uses = frozenset(self.used)
            self.lines.append(Line(tuple(names), said, isinstance(now.result, Tensor), uses, view, shows=shows))

    def _at_once(self, was: Call, now: Call) -> str:
        """What a view of a view shows all of, in its own order, so that one view is enough; "" where there is no such thing."""
        for call in (was, now):
            self.roots[id(call.result)] = self.roots.get(id(call.args[0]), call.args[0])
        root, earlier = self.roots[id(now.result)], self.roots[id(was.result)]
        plain = all(_shows_all(t, r) for t, r in ((now.result, root), (was.result, earlier)))
        if not plain or was.result.shape != now.result.shape or id(root) not in self.names:
            return ""
        name = self._tensor(earlier, root)
        return self.flat.get(name, name)

    def _showing(self, name: str, result: Tensor) -> str:
        """All of what a name stands for, in the shape of a result."""
        self.used = {name}
        return showing(name, tuple(result.shape), self._value)

    def _product(self, was: Call, now: Call) -> str:
        """The name of a product (R, F) of rows and a constant weight, said in the fastest way; "": as it was recorded."""
        if self.as_recorded or now.kwargs or any(b is not None for b in now.args[2:]):
            return ""
        x, weight = now.args[:2]
        if id(weight) not in self.constants or was.args[0].shape != x.shape or not was.args[0].is_contiguous():
            return ""
        n = parts(x, weight)
        if n == AS_IT_IS:
            return ""
        rows = x.view(-1, x.shape[-1])
        product = Product(self._tensor(was.args[0], x), rows, weight, n)
        said, alone = product.said(self._value), rows.shape[0] == 1
        said = said if alone or n == ONCE else f"{self._value(joined)}({said})"
        name = f"w{len(self.lines)}"
        kept = product if alone and _storage(x) not in self.changed else None
        self.lines.append(Line((name,), said, True, frozenset([product.x]), view=False, product=kept))
        return name

    def _scalar(self, call: Call) -> str:
        """The number that a call is given, as a tensor: made once, where torch would make one in every call."""
        key = repr(call.args[1]), call.args[0].dtype
        return self._value(self.scalars.setdefault(key, call.args[0].new_tensor(call.args[1])))

    def _from_constants(self, call: Call, results: list[Tensor]) -> bool:
        """Whether parameters, and the number of tokens, decide the result alone, and nothing is written to it."""
        given = tensors_in([call.args, call.kwargs])
        if not given or any(id(t) not in self.constants or id(t) in self.names for t in given):
            return False
        return all(_storage(t) not in self.changed for t in results)

    def _text(self, was: Any, now: Any) -> str:
        """``now`` as source: a name, a literal, or a number that follows the tokens."""
        if isinstance(now, Tensor):
            return self._tensor(was, now)
        if isinstance(now, tuple | list):
            inner = "".join(f"{self._text(a, b)}, " for a, b in _pairs(was, now, self.watch))
            return f"[{inner}]" if isinstance(now, list) else f"({inner})"
        if isinstance(now, slice):
            return f"slice{self._text((was.start, was.stop, was.step), (now.start, now.stop, now.step))}"
        if isinstance(now, Growing):
            if int(now) - int(was) != now.slope:
                self.watch.refuse("a number grows otherwise than was thought")
            return f"{int(now)} + {now.slope} * further"
        if type(was) is not type(now) or was != now:
            self.watch.refuse("a number changes that was not followed")
        return repr(now) if isinstance(now, LITERALS) else self._value(now)

    def _tensor(self, was: Any, now: Tensor) -> str:
        if id(now) in self.names:
            if self.earlier.get(id(was)) != self.names[id(now)]:
                self.watch.refuse("two steps do not give the same to their calls")
            self.used.add(self.names[id(now)])
            return self.names[id(now)]
        if id(now) not in self.constants:
            self.watch.refuse("a tensor comes from nowhere that is known")
        elif was is not now and self.earlier.get(id(was)) != f"constant {id(now)}":
            self.watch.refuse("two steps use different constants")
        return self._value(self.twins.get(id(now), now))

    def _value(self, value: Any) -> str:
        """The name under which the function knows a value."""
        name = f"c{id(value)}"
        self.values[name] = value
        return name


def _pairs(was: Any, now: Any, watch: Watch) -> list[tuple[Any, Any]]:
    if not isinstance(was, tuple | list) or len(was) != len(now):
        watch.refuse("two steps do not give their calls equally much")
        return []
    return list(zip(was, now, strict=True))


def _grows(value: Any) -> bool:
    if isinstance(value, dict):
        return _grows(tuple(value.values()))
    if isinstance(value, slice):
        return _grows((value.start, value.stop, value.step))
    return any(map(_grows, value)) if isinstance(value, tuple | list) else isinstance(value, Growing)


def _storage(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _written(call: Call) -> list[Tensor]:
    """The tensors that a call writes to."""
    name = call.function.__name__
    found = tensors_in(call.kwargs.get("out"))
    in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")
    return found + (tensors_in(call.args[:1]) if in_place else [])


def _is_view(call: Call) -> bool:
    """Whether a call does nothing but show its first argument otherwise."""
    given, found = call.args[0] if call.args else None, call.result
    both = isinstance(given, Tensor) and isinstance(found, Tensor)
    return both and not _written(call) and _storage(given) == _storage(found)


def _is_its_argument(call: Call) -> bool:
    """Whether a view shows all of what it was made of, in the same order."""
    facts = [(t.data_ptr(), t.shape, t.stride(), t.dtype, t.device) for t in (call.args[0], call.result)]
    return facts[0] == facts[1] and not _grows([call.args, call.kwargs])


def _takes_a_scalar(call: Call) -> bool:
    """Whether a call is arithmetic of a tensor and a plain number that a tensor of the same dtype can stand for."""
    if call.function.__name__.removesuffix("_") not in ARITHMETIC or len(call.args) != 2 or call.kwargs:
        return False
    given, number = call.args
    plain = type(number) in (int, float) and isinstance(given, Tensor) and given.ndim > 0
    return plain and given.device.type == "cpu" and given.dtype in (torch.float32, torch.float64)


def _shows_all(view: Tensor, root: Tensor) -> bool:
    same = view.data_ptr() == root.data_ptr() and view.numel() == root.numel() and view.dtype == root.dtype
    return same and view.is_contiguous() and root.is_contiguous()


def _twins(buffers: Iterable[Tensor]) -> dict[int, Tensor]:
    """For each buffer that holds the same numbers as an earlier one, that one."""
    found: dict[int, Tensor] = {}
    firsts: dict[Any, list[Tensor]] = {}
    for t in buffers:
        alike = firsts.setdefault((t.shape, t.dtype, t.device), [])
        twin = next((other for other in alike if other.equal(t)), None)
        if twin is None:
            alike.append(t)
        else:
            found[id(t)] = twin
    return found

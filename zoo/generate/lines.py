"""The lines of a decoding step's source, once all are known: products of the same row side by side, and no unused views.

A product of one row takes longer to ask for than to multiply where the weight is small. The weights of several, such as
those for queries, keys and values, are laid one below the other in a copy, and multiplied at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.generate.products import ONCE, cut, multiplied

SIDE_BY_SIDE = 2**19  # elements of the weights that are worth a copy: larger ones take long enough by themselves


class Product(NamedTuple):
    """A product of rows with a weight."""

    x: str  # the name of the rows
    rows: Tensor  # (R, D)
    weight: Tensor  # (F, D)
    n: int  # parts

    def said(self, value: Callable[[Any], str]) -> str:
        """As source, (R, F) or its parts (n, R, F / n), which for one row are the same."""
        n_rows, width = self.rows.shape
        shape, strides = (n_rows, width), (width, 1)
        if self.n > ONCE:
            shape, strides = (self.n, *shape), (0, *strides)
        rows = f"{value(Tensor.as_strided)}({self.x}, {shape}, {strides})"
        return f"{value(torch.mm if self.n == ONCE else torch.bmm)}({rows}, {value(cut(self.weight, self.n))})"


class Line(NamedTuple):
    """``names = said``."""

    names: tuple[str, ...]
    said: str
    single: bool  # one tensor, not a tuple of them
    uses: frozenset[str]
    view: bool
    product: Product | None = None  # of one row that nothing changes
    shows: tuple[int, ...] | None = None  # the shape, of a view of all that ``uses`` names, in the order of its memory

    def __str__(self) -> str:
        left = ", ".join(self.names) + ("" if self.single else ",")
        return f"{left} = {self.said}" if self.names else self.said


def showing(name: str, shape: tuple[int, ...], value: Callable[[Any], str], offset: int | None = None) -> str:
    """As source, what a name stands for in another shape, in the order of its memory; faster to ask for than ``view``.

    Args:
        name: of a contiguous tensor.
        shape: of the result.
        value: the name under which the source knows a value.
        offset: elements from the beginning of the memory; None: from where the tensor begins.
    """
    strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    return f"{value(Tensor.as_strided)}({name}, {shape}, {strides}{'' if offset is None else f', {offset}'})"


def side_by_side(lines: list[Line], value: Callable[[Any], str]) -> list[Line]:
    """The lines with products of the same row made at once, where that is the same to the last bit.

    Args:
        lines: of a step.
        value: the name under which the source knows a value.
    """
    groups: dict[str, list[Line]] = {}
    for line in lines:
        if line.product is not None:
            groups.setdefault(line.product.x, []).append(line)
    known: dict[Any, bool] = {}
    firsts: dict[str, Line] = {}  # of each group that is made at once, by the first one's name
    places: dict[str, tuple[str, int]] = {}  # by each one's name: the first one's, and where in it
    for group in groups.values():
        together = _together([line.product for line in group], known)
        if together is None:
            continue
        (first,), offset = group[0].names, 0
        firsts[first] = group[0]._replace(said=together.said(value))
        for line in group:
            places[line.names[0]] = first, offset
            offset += line.product.weight.shape[0]
    gone = places.keys() - firsts.keys()
    kept = [line for line in lines if gone.isdisjoint(line.names)]
    return [_moved(firsts.get(line.names[0], line) if line.names else line, places, value) for line in kept]


def _together(products: list[Product], known: dict[Any, bool]) -> Product | None:
    """All of the products of one row at once; None where they had better be made by themselves.

    Args:
        products: with weights of one dtype.
        known: by the sizes, whether that gives the same bits; layers are alike, so few sizes are tried.
    """
    if len(products) == 1 or sum(p.weight.numel() for p in products) > SIDE_BY_SIDE:
        return None
    n, row = max(p.n for p in products), products[0].rows
    key = n, tuple((p.n, p.weight.shape, p.weight.dtype) for p in products)
    weight = torch.cat([p.weight for p in products]) if known.get(key, True) else None
    if weight is not None and key not in known:
        alone = torch.cat([multiplied(row, p.weight, p.n) for p in products], 1)
        known[key] = weight.shape[0] % n == 0 and multiplied(row, weight, n).equal(alone)
    return products[0]._replace(weight=weight, n=n) if known[key] else None


def _moved(line: Line, places: dict[str, tuple[str, int]], value: Callable[[Any], str]) -> Line:
    """A line that shows a product, showing the part of several where that product now is."""
    at = places.get(next(iter(line.uses))) if line.shows is not None else None
    if at is None:
        return line
    name, offset = at
    return line._replace(said=showing(name, line.shows, value, offset), uses=frozenset([name]))


def wanted(lines: Sequence[Line], used: set[str]) -> list[Line]:
    """The lines without views that nobody looks at.

    Args:
        lines: of a step.
        used: names that are looked at after the last line.
    """
    kept = []
    for line in reversed(lines):
        if not line.view or used & set(line.names):
            used |= line.uses
            kept.append(line)
    return kept[::-1]

"""Products of few rows with a weight: the fastest way of saying one on this machine that gives the same bits.

torch leaves a product of a few rows to one thread (with MKL, fp32, up to a dozen rows). A weight cut into as many parts as
there are threads is a batch of products, which all of them share, and every number is summed as before. Where that helps
depends on the library, the dtype and the size, so it is measured, once for each size.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

AS_IT_IS, ONCE = 0, 1  # numbers of parts: the call as it was recorded; one product, without what torch does around it
WORTH = 0.9  # of the time of one product, or it is not worth cutting
ROUNDS = 5  # of each way, by turns
COLD = 2**24  # bytes of weights in a round: as while text is made, each product finds its own out of the nearest caches
found: dict[tuple[torch.Size, torch.Size, torch.dtype, int], int] = {}


def parts(x: Tensor, weight: Tensor) -> int:
    """In how many parts F.linear(x, weight), x (..., D), weight (F, D), is best multiplied: AS_IT_IS, ONCE or more."""
    if x.device.type != "cpu" or not x.is_contiguous() or not weight.is_contiguous() or x.dtype != weight.dtype:
        return AS_IT_IS
    threads = torch.get_num_threads()
    key = x.shape, weight.shape, x.dtype, threads
    if key not in found:
        found[key] = _measured(x, weight, {ONCE, _divisor(weight.shape[0], threads)})
    return found[key]


def cut(weight: Tensor, n: int) -> Tensor:
    """What rows are multiplied with: (F, D) -> (D, F) for one product, (n, D, F / n) for more; a view."""
    return weight.T if n == ONCE else weight.unflatten(0, (n, -1)).mT


def multiplied(rows: Tensor, weight: Tensor, n: int) -> Tensor:
    """rows (R, D), weight (F, D) -> (R, F), in ``n`` parts."""
    products = _products(rows, [cut(weight, n)])
    return products if n == ONCE else joined(products)


def joined(products: Tensor) -> Tensor:
    """(n, R, F / n) -> (R, F)."""
    return products.transpose(0, 1).reshape(products.shape[1], -1)


def _divisor(n: int, most: int) -> int:
    """The largest number up to ``most`` that divides ``n``."""
    return next(k for k in range(max(1, most), 0, -1) if n % k == 0)


def _measured(x: Tensor, weight: Tensor, candidates: Iterable[int]) -> int:
    """The candidate that is fastest among those that give the bits of F.linear."""
    said, rows = F.linear(x, weight), x.view(-1, x.shape[-1])
    copies = weight.expand(max(1, COLD // weight.nbytes), *weight.shape).contiguous()
    equal = [n for n in sorted(candidates) if multiplied(rows, weight, n).view(said.shape).equal(said)]
    seconds = dict.fromkeys(equal, math.inf)
    for _ in range(ROUNDS):
        for n in equal:
            weights = [cut(copy, n) for copy in copies]
            began = time.perf_counter()
            _products(rows, weights)
            seconds[n] = min(seconds[n], time.perf_counter() - began)
    whole = seconds.get(ONCE, math.inf)
    return min(
        equal, key=lambda n: seconds[n] if n == ONCE or seconds[n] < WORTH * whole else math.inf, default=AS_IT_IS
    )


def _products(rows: Tensor, weights: list[Tensor]) -> Tensor:
    """The last of the products of rows (R, D) with weights as ``cut`` gives them."""
    multiply = torch.mm if weights[0].ndim == 2 else torch.bmm
    rows = rows.expand(*weights[0].shape[:-2], *rows.shape)
    for weight in weights:
        made = multiply(rows, weight)
    return made

"""Greedy decoding with a cache, one row, against transformers' generate on the same Llama-like weights.

Both, and every prefix computed again, must make the same tokens, which is asserted first; what a token costs without the
interpreter is the remark's floor: every weight is read once for each token.
"""

from __future__ import annotations

import torch

from benchmarks.generate import agreed, ways
from benchmarks.harness import (
    Figure,
    Settings,
    Wanted,
    alternate,
    median_ratio,
    spread,
    tokens_per_second,
)
from zoo.generate.products import ONCE, cut, parts

SIZES = ((256, 6), (512, 8))  # width, layers
TOKENS = 128
WANTED = Wanted("at least", 2.0)


def figures(settings: Settings) -> list[Figure]:
    """Tokens a second at each size."""
    rows = []
    for dim, layers in ((64, 2),) if settings.quick else SIZES:
        n = 16 if settings.quick else TOKENS
        found = ways(dim, layers, n, settings.device)
        agreed(found, n)
        contestants = {"ours": found["with the cache"], "theirs": found["transformers"]}
        timings = alternate(contestants, settings.rounds(15), 1, settings.device)
        mine, its = (tokens_per_second(n, timings.median(name)) for name in contestants)
        floor = read_once(dim, layers, settings.device) / timings.median("ours") * n
        remark = f"{spread(timings, 'theirs', 'ours')}; reading every weight once takes {floor:.0%} of our time"
        work = f"{n} tokens, width {dim}, {layers} layers, fp32"
        rows.append(Figure(work, mine, its, median_ratio(timings, "theirs", "ours"), WANTED, remark))
    return rows


def read_once(dim: int, layers: int, device: str) -> float:
    """Seconds for products of one row with matrices as large as the model's, and nothing else, asked for in the faster way."""
    shapes = [(dim, dim), (dim // 2, dim), (dim // 2, dim), (dim, dim), (3 * dim, dim), (3 * dim, dim), (dim, 3 * dim)]
    weights = [torch.randn(shape, device=device) for shape in shapes * layers]
    operands = []
    for weight in weights:
        row = torch.randn(1, 1, weight.shape[1], device=device)
        n = max(ONCE, parts(row, weight))
        operands.append((row.expand(n, 1, -1), cut(weight, n).expand(n, -1, -1)))

    def products() -> None:
        for row, weight in operands:
            torch.bmm(row, weight)

    return alternate({"products": products}, 15, 3, device).median("products")

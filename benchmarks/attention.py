"""Causal attention from 256 to 16,384 tokens: time and memory against SDPA and against transformers' eager attention.

Forward and backward of the attention alone, the same queries, keys and values; grouped heads, one row. Eager attention keeps
all scores, so it is left out where they would take more than a gigabyte.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import (
    Figure,
    Settings,
    alternate,
    median_ratio,
    megabytes,
    milliseconds,
    peak_allocated,
    same,
    spread,
)
from zoo.core.attend import attend
from zoo.core.wires import Bus

LENGTHS = (256, 1024, 4096, 16_384)
HEADS, GROUPS, WIDTH = 2, 1, 64
TOKENS = 8192  # in one call, so that short rows are many
SCORES = 2**30  # bytes up to which eager attention takes part

Way = Callable[[Tensor, Tensor, Tensor], Tensor]  # q (B, H, T, h), k and v (B, G, T, h) -> (B, H, T, h)


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, v, Bus(), WIDTH**-0.5)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from transformers.models.llama.modeling_llama import eager_attention_forward  # slow to import, and rarely needed

    n = q.shape[2]
    mask = torch.full((n, n), torch.finfo(q.dtype).min, dtype=q.dtype, device=q.device).triu_(1)[None, None]
    module = SimpleNamespace(num_key_value_groups=HEADS // GROUPS, training=True)
    return eager_attention_forward(module, q, k, v, mask, WIDTH**-0.5)[0].transpose(1, 2)


WAYS: dict[str, Way] = {"ours": ours, "sdpa": sdpa, "eager": eager}


def figures(settings: Settings) -> list[Figure]:
    """Time and memory at every length, against SDPA and, where it fits, against eager attention."""
    rows = []
    for n_tokens in LENGTHS[:1] if settings.quick else LENGTHS:
        batch = max(1, TOKENS // n_tokens)
        names = [n for n in WAYS if n != "eager" or 4 * batch * HEADS * n_tokens**2 <= SCORES]
        prove(names, batch, n_tokens, settings)
        steps = {name: step(name, batch, n_tokens, settings.device, settings.dtype) for name in names}
        timings = alternate(steps, settings.rounds(7 if n_tokens <= 1024 else 3), 1, settings.device)
        del steps
        arguments = (batch, n_tokens, settings.device, settings.dtype)
        peaks = {name: peak_allocated(step, (name, *arguments), settings) for name in names}
        for other in names[1:]:
            work = f"T = {n_tokens:,}, B = {batch}, against {other}"
            mine, its = (milliseconds(timings.median(name)) for name in ("ours", other))
            ratio = median_ratio(timings, other, "ours")
            rows.append(Figure(f"{work}: time", mine, its, ratio, None, spread(timings, other, "ours")))
            mine, its = (megabytes(peaks[name]) for name in ("ours", other))
            rows.append(Figure(f"{work}: memory", mine, its, peaks["ours"] / peaks[other]))
    return rows


def leaves(batch: int, n_tokens: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """q, k and v as a projection leaves them: heads cut out of (B, T, heads x h)."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(batch, n_tokens, n, WIDTH, generator=generator) for n in (HEADS, GROUPS, GROUPS)]
    return [t.to(device, dtype).transpose(1, 2).requires_grad_() for t in found]


def step(name: str, batch: int, n_tokens: int, device: str, dtype: torch.dtype) -> Callable[[], object]:
    """Forward and backward of one way."""
    given = leaves(batch, n_tokens, device, dtype)
    upstream = torch.randn_like(given[0])
    return lambda: torch.autograd.grad(WAYS[name](*given), given, upstream)


def prove(names: list[str], batch: int, n_tokens: int, settings: Settings) -> None:
    """All ways give the same result and gradients."""
    given = leaves(batch, n_tokens, settings.device, settings.dtype)
    upstream = torch.randn_like(given[0])
    found = {}
    for name in names:
        y = WAYS[name](*given)
        found[name] = [y, *torch.autograd.grad(y, given, upstream)]
    tolerance = 1e-5 if settings.dtype == torch.float32 else 3e-2
    for other in names[1:]:
        for what, mine, its in zip(("result", "dq", "dk", "dv"), found["ours"], found[other], strict=True):
            same(mine, its, f"{what} at T = {n_tokens} against {other}", tolerance)

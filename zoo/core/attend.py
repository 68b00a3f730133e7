"""What every attention shares: who may see whom, where a token stands in its document, and the choice of backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.wires import SEGMENTS, Bus

# Up to this many keys the CPU's flash attention loses to plain products, forward and backward together. Measured with
# 1 and 2 threads on an AMD EPYC with AVX512-BF16, torch 2.13; benchmarks/attend.py measures it again.
PLAIN_UP_TO = {torch.float32: 512, torch.bfloat16: 1024}
ROWS = 256  # queries per product: larger ones fall out of the cache, smaller ones are dominated by overhead


def segments_of(bus: Bus) -> Tensor | None:
    """Document numbers (B, S) of all positions so far, or None where a row is one document."""
    return bus[SEGMENTS] if SEGMENTS in bus else None


def positions(bus: Bus, n_tokens: int, device: torch.device) -> Tensor:
    """Where this call's tokens stand in their document: (T,), or (B, T) where rows hold several documents.

    Counting restarts with each document (and after left padding), so that an answer does not depend on what a row
    happened to hold before.
    """
    segments = segments_of(bus)
    if segments is None:
        return torch.arange(bus.offset, bus.offset + n_tokens, device=device)
    index = torch.arange(segments.shape[1], device=device).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    first = torch.where(starts, index, 0).cummax(1).values
    return (index - first)[:, -n_tokens:]


def previous(bus: Bus, name: str, t: Tensor, dim: int = -2) -> tuple[Tensor, Tensor]:
    """Each token's predecessor in ``t``, remembered over calls while decoding.

    Returns:
        the entries shifted by one along ``dim`` (zeros before the first token), and a bool (T,) or (B, T): whether the
        predecessor exists and belongs to the same document.
    """
    n_tokens = t.shape[dim]
    full = bus.extend(name, t, keep=1, dim=dim)
    if full.shape[dim] == n_tokens:
        full = torch.cat([torch.zeros_like(t.narrow(dim, 0, 1)), full], dim)
    segments = segments_of(bus)
    if segments is None:
        exists = torch.arange(bus.offset, bus.offset + n_tokens, device=t.device) > 0
    else:
        same = torch.zeros_like(segments, dtype=torch.bool)
        same[:, 1:] = segments[:, 1:] == segments[:, :-1]
        exists = same[:, -n_tokens:]
    return full.narrow(dim, 0, n_tokens), exists


def visible(n_queries: int, n_keys: int, n_prefix: int, segments: Tensor | None, device: torch.device) -> Tensor:
    """Which keys each query may see: bool (T, M + S), or (B, T, M + S) with documents.

    The T queries are the last of the S tokens; the M prefix keys ahead of them are seen by everybody.

    Args:
        n_queries: T.
        n_keys: M + S.
        n_prefix: M.
        segments: (B, S) document numbers, or None.
        device: where the mask is made.
    """
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril_(n_keys - n_queries)
    if segments is None:
        return mask
    same = segments[:, -n_queries:, None] == segments[:, None, :]  # (B, T, S)
    return mask & F.pad(same, (n_prefix, 0), value=True)


def split_heads(t: Tensor, width: int) -> Tensor:
    """(B, T, heads x width) -> (B, T, heads, width). A view: for a decoded token einops takes longer than the arithmetic."""
    return t.view(*t.shape[:-1], t.shape[-1] // width, width)


def join_heads(y: Tensor) -> Tensor:
    """(B, heads, T, width) -> (B, T, heads x width)."""
    return y.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, bus: Bus, scale: float, n_prefix: int = 0) -> Tensor:
    """Causal softmax attention of the current tokens over all keys so far, documents kept apart.

    Args:
        q: (B, H, T, h). Query head i reads key/value head i // (H / G).
        k, v: (B, G, M + S, h) and (B, G, M + S, any width): M prefix keys that everybody sees, then S tokens.
        scale: factor on the scores.
        n_prefix: M.

    Returns:
        (B, H, T, width of v), in the dtype of q.
    """
    segments = segments_of(bus)
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    if _products_pay(q, k, v) and not _is_decoded_at_once(q, v, segments):
        return plain(q, k, v, scale, n_prefix, segments)
    repeat = q.shape[1] // k.shape[1]
    if segments is None and (n_queries == 1 or n_queries == n_keys):
        causal = n_queries > 1
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=repeat > 1)
    mask = visible(n_queries, n_keys, n_prefix, segments, q.device)
    mask = mask if mask.ndim == 2 else mask[:, None]
    # with a mask and grouped heads together only SDPA's unfused fallback is left on CUDA: groups are written out instead
    k, v = (t.repeat_interleave(repeat, 1) if repeat > 1 else t for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def _products_pay(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether plain products are the better backend: on CPUs for few keys, one query, or where SDPA has no fused path."""
    if q.dtype == torch.float64:
        return True
    if q.device.type != "cpu":
        return False
    return q.shape[-2] == 1 or q.shape[-1] != v.shape[-1] or k.shape[-2] <= PLAIN_UP_TO.get(q.dtype, 0)


def _is_decoded_at_once(q: Tensor, v: Tensor, segments: Tensor | None) -> bool:
    """Whether a single query without a backward has a fused path: one call, where plain products are nine."""
    single = q.shape[-2] == 1 and segments is None and not torch.is_grad_enabled()
    return single and q.dtype != torch.float64 and q.shape[-1] == v.shape[-1]


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float, n_prefix: int = 0, segments: Tensor | None = None) -> Tensor:
    """The same attention as batched products, in blocks of rows so that keys which no row of a block sees are skipped.

    In bf16 the scores are rounded to bf16 ahead of the softmax (about 0.3 % on the result where SDPA has 0.2 %).
    """
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    if n_queries <= ROWS:
        return _rows(q, k, v, scale, n_prefix, segments)
    pieces = []
    for start in range(0, n_queries, ROWS):
        end = min(start + ROWS, n_queries)
        seen = n_keys - n_queries + end
        known = None if segments is None else segments[:, : seen - n_prefix]
        pieces.append(_rows(q[:, :, start:end], k[:, :, :seen], v[:, :, :seen], scale, n_prefix, known))
    return torch.cat(pieces, 2)


def _rows(q: Tensor, k: Tensor, v: Tensor, scale: float, n_prefix: int, segments: Tensor | None) -> Tensor:
    """``plain`` for one block: the R = H / G queries of a group are stacked along time, so that no key is copied."""
    batch, groups, n_keys = k.shape[:3]
    repeat, n_queries = q.shape[1] // groups, q.shape[2]
    stacked = q.reshape(batch * groups, repeat * n_queries, q.shape[3])  # (B G, R T, h)
    keys, values = k.flatten(0, 1).transpose(1, 2), v.flatten(0, 1)
    if segments is None and n_queries == 1:
        scores = torch.bmm(stacked, keys) * scale
    else:
        bias = _bias(q, n_keys, n_prefix, segments, groups)
        scores = torch.baddbmm(bias, stacked, keys, alpha=scale)  # (B G, R T, M + S)
    return torch.bmm(scores.softmax(-1), values).view(batch, groups * repeat, n_queries, v.shape[3])


def _bias(q: Tensor, n_keys: int, n_prefix: int, segments: Tensor | None, groups: int) -> Tensor:
    """0 where a query may look and -inf elsewhere: (R T, M + S), or (B G, R T, M + S) with documents."""
    repeat, n_queries = q.shape[1] // groups, q.shape[2]
    if segments is None:
        bias = torch.full((n_queries, n_keys), -torch.inf, dtype=q.dtype, device=q.device)
        return bias.triu_(n_keys - n_queries + 1).repeat(repeat, 1)
    hidden = ~visible(n_queries, n_keys, n_prefix, segments, q.device)
    bias = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, -torch.inf)
    return bias[:, None].repeat(1, groups, repeat, 1).flatten(0, 1)

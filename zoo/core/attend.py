"""What every attention shares: who may see whom, where a token stands in its document, and the choice of backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from zoo.core.wires import SEGMENTS, Bus

# Up to this many keys the CPU's flash attention loses to plain batched products once the backward is counted.
PLAIN_UP_TO = 1024


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

    The last T of the S keys belong to the queries; the M prefix keys ahead of them are seen by everybody.
    """
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_queries)
    if segments is not None:
        mask = mask & (segments[:, -n_queries:, None] == segments[:, None, :])
    if n_prefix:
        mask = torch.cat([mask.new_ones(*mask.shape[:-1], n_prefix), mask], -1)
    return mask


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
    n_queries, n_keys = q.shape[-2], k.shape[-2] - n_prefix
    segments = segments_of(bus)
    if (q.device.type == "cpu" and k.shape[-2] <= PLAIN_UP_TO) or q.dtype == torch.float64:
        everything = n_queries == 1 and segments is None
        mask = None if everything else visible(n_queries, n_keys, n_prefix, segments, q.device)
        return plain(q, k, v, mask, scale)
    grouped = q.shape[1] != k.shape[1]
    if segments is None and (n_queries == 1 or (n_prefix == 0 and n_queries == n_keys)):
        causal = n_queries > 1
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=grouped)
    mask = visible(n_queries, n_keys, n_prefix, segments, q.device)
    mask = mask if mask.ndim == 2 else mask[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The same attention as two batched products, the R = H / G queries of a group stacked along time."""
    batch, groups = k.shape[:2]
    repeat = q.shape[1] // groups
    stacked = rearrange(q, "b (g r) t h -> (b g) (r t) h", g=groups)
    keys, values = k.flatten(0, 1), v.flatten(0, 1)
    if mask is None:
        scores = torch.bmm(stacked, keys.transpose(1, 2)) * scale
    else:
        bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -torch.inf)
        if mask.ndim == 2:
            bias = bias.repeat(repeat, 1)  # (R T, S)
        else:
            bias = bias.repeat(1, repeat, 1).repeat_interleave(groups, 0)  # (B G, R T, S)
        scores = torch.baddbmm(bias, stacked, keys.transpose(1, 2), alpha=scale)
    mixed = torch.bmm(scores.softmax(-1), values)  # (B G, R T, h)
    return rearrange(mixed, "(b g) (r t) h -> b (g r) t h", b=batch, r=repeat)

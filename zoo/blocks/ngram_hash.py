"""Stem: embeddings of the hashed n-grams that end at each token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from zoo.core.attend import segments_of
from zoo.core.params import Constant, Embedding, Linear, Role
from zoo.core.slots import Site, Stem
from zoo.core.wires import SEGMENTS, TOKENS, Bus

BASE, MODULUS = 1_000_003, 2**31 - 1  # their product stays below 2^63

Order = Annotated[int, Field(ge=2)]


class NgramHash(Stem, kind="ngram_hash"):
    """Adds the sum of an embedding for each n-gram that ends at a token, looked up in hashed tables and projected to D.

    What the last few tokens say of the next one is then a lookup, of no matrix products beside the projection's. Each of
    ``orders`` has a table of its own, whose last row is kept for tokens with fewer than n - 1 tokens before them in their
    document. The tables start at zero, so the block does nothing at first. Long n-grams learn a small text by heart the second
    time they see it; ``dropout`` keeps the layers above from leaning on that.

    Source: hashed n-gram embeddings of the Byte Latent Transformer, arXiv:2412.09871, section 3.2.1; the shape is that of
    bigram_hash.
    """

    roles = {"scale": Role.CONTROL}
    reads = (TOKENS, SEGMENTS)

    class Config(Stem.Config):
        orders: tuple[Order, ...] = Field((2, 3, 4), min_length=1)  # n of the n-grams
        n_buckets: Annotated[int, Field(ge=2)] = 4096  # rows of each table
        table_dim: PositiveInt = 128  # their width
        scale: float = 1.0  # first value of the learned factor on what is added
        dropout: float = Field(0.0, ge=0, lt=1)  # share of the n-grams left out while training, each on its own

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        self.orders, self.n_buckets, self.dropout = cfg.orders, cfg.n_buckets, cfg.dropout
        self.table = Embedding(len(cfg.orders) * cfg.n_buckets, cfg.table_dim, Constant(0.0))
        self.projection = Linear(cfg.table_dim, site.dim)
        self.scale = nn.Parameter(torch.empty(()))
        self.inits = {"scale": Constant(cfg.scale)}

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        tokens = bus[TOKENS]  # (B, T)
        rows = [
            torch.where(exists, key % (self.n_buckets - 1), self.n_buckets - 1) + i * self.n_buckets
            for i, (key, exists) in enumerate(self._grams(tokens, bus))
        ]
        found = self.table(torch.stack(rows, -1))  # (B, T, n orders, table)
        if self.training and self.dropout:
            kept = bus.noise("dropout", found.shape[:-1]) >= self.dropout
            found = found * (kept[..., None].to(found.dtype) / (1.0 - self.dropout))
        return x + self.scale.to(x.dtype) * self.projection(found.sum(-2).to(x.dtype))

    def _grams(self, tokens: Tensor, bus: Bus) -> Iterator[tuple[Tensor, Tensor]]:
        """For each order the key (B, T) of the n-gram that ends at a token, and whether there is one: (T,) or (B, T)."""
        reach, n_tokens = max(self.orders) - 1, tokens.shape[1]
        seen = bus.extend("token", tokens, keep=reach, dim=-1)
        seen = F.pad(seen, (max(0, reach + n_tokens - seen.shape[1]), 0))[:, -(reach + n_tokens) :].long()
        keys, key = {}, torch.zeros_like(seen[:, reach:])
        for back in range(reach + 1):
            key = (key * BASE + seen[:, reach - back : reach - back + n_tokens] + 1) % MODULUS
            keys[back + 1] = key
        for n in self.orders:
            yield keys[n], _reaches(bus, n - 1, n_tokens, tokens.device)


def _reaches(bus: Bus, back: int, n_tokens: int, device: torch.device) -> Tensor:
    """Whether the token ``back`` places before each of this call's is there and of the same document: (T,) or (B, T)."""
    segments = segments_of(bus)
    if segments is None:
        return torch.arange(bus.offset, bus.offset + n_tokens, device=device) >= back
    same = torch.zeros_like(segments, dtype=torch.bool)
    same[:, back:] = segments[:, back:] == segments[:, :-back]
    return same[:, -n_tokens:]

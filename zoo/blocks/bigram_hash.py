"""Stem: an embedding of hashed pairs of tokens."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from zoo.core.attend import previous
from zoo.core.params import Constant, Embedding, Linear, Orthogonal, Role, Use
from zoo.core.slots import Site, Stem
from zoo.core.wires import SEGMENTS, TOKENS, Bus


class BigramHash(Stem, kind="bigram_hash"):
    """Adds a small embedding of the pair (previous token, token), looked up in a hashed table and projected to D.

    The last row of the table is kept for tokens without a predecessor: the first of a row, and the first of a document where
    documents are kept apart. The table starts at zero, so the block does nothing at first. ``projection = "orthogonal"``
    draws the projection orthonormal over sqrt(2 L), as the published run did; "recipe" leaves it to the recipe's init.

    Source: openai/parameter-golf#828; the hash is also that of KellerJordan/modded-nanogpt.
    """

    roles = {"scale": Role.CONTROL}
    reads = (TOKENS, SEGMENTS)

    class Config(Stem.Config):
        n_buckets: Annotated[int, Field(ge=2)] = 4096  # rows of the table
        table_dim: PositiveInt = 128  # its width
        scale: float = 0.05  # first value of the learned factor on what is added
        projection: Literal["recipe", "orthogonal"] = "recipe"

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        self.n_buckets = cfg.n_buckets
        orthogonal = Orthogonal(1 / math.sqrt(2 * site.n_layers))
        self.table = Embedding(cfg.n_buckets, cfg.table_dim, Constant(0.0))
        self.projection = Linear(
            cfg.table_dim, site.dim, init=orthogonal if cfg.projection == "orthogonal" else Use.INPUT
        )
        self.scale = nn.Parameter(torch.empty(()))
        self.inits = {"scale": Constant(cfg.scale)}

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        tokens = bus[TOKENS]  # (B, T)
        before, exists = previous(bus, "token", tokens, dim=-1)
        rows = torch.where(exists, bucket(before, tokens, self.n_buckets), self.n_buckets - 1)
        pairs = self.projection(self.table(rows).to(x.dtype))  # (B, T, D)
        return x + self.scale.to(x.dtype) * pairs


def bucket(before: Tensor, token: Tensor, n_buckets: int) -> Tensor:
    """The row of a pair of token ids, in [0, n_buckets - 1): the last row is never drawn."""
    return torch.bitwise_xor(36313 * token.long(), 27191 * before.long()) % (n_buckets - 1)

"""Attention with a learned prefix: latent tokens ahead of the sequence's keys and values."""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from pydantic import NonNegativeInt
from torch import Tensor, nn

from zoo.core.attend import attend
from zoo.core.grouped import Grouped
from zoo.core.params import Normal, Role
from zoo.core.slots import Site
from zoo.core.wires import Bus


class LatentTokens(Grouped, kind="latent_tokens"):
    """Grouped-query attention with M learned tokens that every query sees ahead of the sequence (not DeepSeek's MLA).

    ``source = "embed"``: M vectors of width D, turned into keys and values by the layer's own projections.
    ``source = "kv"``: M keys and values per group, learned as they are. The latents are parameters of the layer, shared by
    the rows of a batch: they see nothing, so nothing passes through them. They get the keys' QK-norm, but no pre-norm of the
    layer, no rotation and no value residual, and tokens still count their positions from 0.

    ``latent_position``: an unrotated key is one at position 0 to a rotated query ("zero"), so its score changes with
    distance; "nope" scores it by the query before the rotation, at twice the width of the scores.

    Source: keys and values after Sukhbaatar et al., arXiv:1907.01470, and the memory keys and values of x-transformers;
    embedded latents as in the published 24-layer model that recipes/deepseek_24L.toml reproduces.
    """

    roles = {**Grouped.roles, "latents": Role.CONTROL, "latent_keys": Role.CONTROL, "latent_values": Role.CONTROL}
    inits = {"latents": Normal(0.02), "latent_keys": Normal(1.0), "latent_values": Normal(1.0)}

    class Config(Grouped.Config):
        n_latents: NonNegativeInt = 8  # M; 0 is plain grouped-query attention
        source: Literal["embed", "kv"] = "embed"
        latent_position: Literal["zero", "nope"] = "zero"

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__(cfg, site)
        self.n_latents, self.latent_position = cfg.n_latents, cfg.latent_position
        self.latents = self.latent_keys = self.latent_values = None
        if cfg.n_latents and cfg.source == "embed":
            self.latents = nn.Parameter(torch.empty(cfg.n_latents, site.dim))
        elif cfg.n_latents:
            shape = (self.groups, cfg.n_latents, self.head_dim)
            self.latent_keys, self.latent_values = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))

    def mix(self, unturned: Tensor, q: Tensor, k: Tensor, v: Tensor, bus: Bus) -> Tensor:
        if not self.n_latents:
            return super().mix(unturned, q, k, v, bus)
        latent_k, latent_v = (t.expand(k.shape[0], -1, -1, -1) for t in self.prefix(k.dtype))  # (B, G, M, h)
        if self.latent_position == "nope":
            # [turned | unturned] . [k | 0] is the tokens' score, . [0 | latent k] the latents'
            q = torch.cat([q, self.gained(unturned)], -1)
            latent_k = torch.cat([torch.zeros_like(latent_k), latent_k], -1)
            k = torch.cat([k, torch.zeros_like(k)], -1)
        k, v = torch.cat([latent_k, k], 2), torch.cat([latent_v, v], 2)
        return attend(q, k, v, bus, self.head_dim**-0.5, self.n_latents)

    def prefix(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The latents' keys and values, (1, G, M, h) each: constants, so that decoding need not remember them."""
        if self.latents is not None:
            latents = self.latents.to(dtype)  # (M, D)
            keys, values = self.key(latents)[None], self.value_projection(latents)[None]
            return self.split_and_norm(keys, self.k_norm), self.split(values)
        keys = rearrange(self.latent_keys.to(dtype), "g m h -> 1 m (g h)")
        return self.split_and_norm(keys, self.k_norm), self.latent_values.to(dtype)[None]

    def extra_flops(self, context: int) -> float:
        """With the prefix's columns. Projecting the latents is once per call, not per token, and is not counted."""
        if not self.n_latents:
            return super().extra_flops(context)
        # products of width h: one for the values, one for the scores, which "nope" makes twice as wide
        products = 3 if self.latent_position == "nope" else 2
        return 2.0 * products * (context + self.n_latents) * self.heads * self.head_dim

"""Multi-head latent attention: keys and values of all heads from one small latent per token."""

from __future__ import annotations

import torch
from einops import einsum
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from zoo.core.attend import attend, join_heads, split_heads
from zoo.core.grouped import width_of_heads
from zoo.core.params import Linear, Use
from zoo.core.slots import Attention, HeadSite, Norm, Position, Site, Value
from zoo.core.wires import Bus


class MLA(Attention, kind="mla"):
    """Multi-head latent attention: a normed latent per token holds all heads' keys and values; one rotary key is shared.

    Queries and keys are [nope | rope]: d_n entries without position, made per head, and d_r that carry it, whose key is one
    for all heads. Scores are scaled by (d_n + d_r)^-1/2. Training and prompts expand the latent into keys and values per
    head; decoding scores against the latent itself, the expansion's weights absorbed into query and result, and remembers
    ``kv_lora_rank + qk_rope_head_dim`` elements per token. Where the value kind changes values, decoding is expanded too.

    Source: DeepSeek-V2, arXiv:2405.04434; DeepSeek-V3, arXiv:2412.19437. DeepSeek's own layout of the rotation is
    ``position = { kind = "rope", layout = "interleaved" }``.
    """

    class Config(Attention.Config):
        """Names follow DeepSeek's. ``head_dim`` is where the widths that are not given come from."""

        q_lora_rank: PositiveInt | None = (
            None  # width of the queries' own latent; None: queries straight from the stream
        )
        kv_lora_rank: PositiveInt | None = None  # r; None: 4 x qk_nope_head_dim, as DeepSeek-V3
        qk_nope_head_dim: PositiveInt | None = None  # d_n; None: head_dim
        qk_rope_head_dim: PositiveInt | None = Field(None, multiple_of=2)  # d_r; None: half of head_dim, made even
        v_head_dim: PositiveInt | None = None  # d_v; None: head_dim
        latent_norm: Norm.Config = Norm.pick("rms_norm")  # over each latent; DeepSeek's eps is 1e-6 everywhere

        def notes(self) -> tuple[str, ...]:
            found = []
            if self.position.is_partial():
                found.append("mla: position.dims counts within the rotary part of each head, not within the whole head")
            if not self.value.part.identity:
                found.append(
                    f"mla: value = {self.value.part.kind!r} makes decoding expanded: the cache holds every head"
                )
            return tuple(found)

    def __init__(self, cfg: Config, site: Site) -> None:
        super().__init__()
        self.heads = heads = cfg.n_heads
        self.nope, self.rope, self.wide, self.rank = _widths(cfg, site.dim)
        self.scale = (self.nope + self.rope) ** -0.5
        self.query_down, self.query_norm = None, None
        if cfg.q_lora_rank is not None:
            self.query_down = Linear(site.dim, cfg.q_lora_rank)
            self.query_norm = cfg.child("latent_norm", site.at(cfg.q_lora_rank))
        self.query = Linear(cfg.q_lora_rank or site.dim, heads * (self.nope + self.rope))
        self.latent = Linear(site.dim, self.rank + self.rope)
        self.latent_norm: Norm = cfg.child("latent_norm", site.at(self.rank))
        self.expansion = Linear(self.rank, heads * (self.nope + self.wide))
        self.projection = Linear(heads * self.wide, site.dim, init=Use.OUTPUT)
        self.position: Position = cfg.child("position", site.at(self.rope))
        self.value: Value = cfg.child("value", site.at(self.wide))
        self.output = nn.ModuleList(cfg.child("output", HeadSite.within(site, heads, self.wide)))

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        low = x if self.query_down is None else self.query_norm(self.query_down(x))
        q = split_heads(self.query(low), self.nope + self.rope).transpose(1, 2)
        q_nope, q_rope = q.split([self.nope, self.rope], -1)  # (B, H, T, d_n), (B, H, T, d_r)
        q_rope = self.position(q_rope, bus)
        latent, key = self.latent(x)[:, None].split([self.rank, self.rope], -1)
        latent, key = self.latent_norm(latent), self.position(key, bus)  # (B, 1, T, r), (B, 1, T, d_r)
        if bus.decoding and self.value.identity:
            y, v = self._from_latents(q_nope, q_rope, latent, key, bus)
        else:
            k, v = self._expanded(latent, key)
            v = self.value(v, bus)
            q = torch.cat([q_nope, q_rope], -1)
            y = attend(q, bus.extend("k", k), bus.extend("v", v), bus, self.scale)
        for piece in self.output:
            y = piece(y, x, v, bus)
        return self.projection(join_heads(y))

    def _expanded(self, latent: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (B, H, S, d_n + d_r) and values (B, H, S, d_v) from latents (B, 1, S, r) and shared keys (B, 1, S, d_r)."""
        both = split_heads(self.expansion(latent[:, 0]), self.nope + self.wide).transpose(1, 2)
        k, v = both.split([self.nope, self.wide], -1)
        return torch.cat([k, key.expand(-1, self.heads, -1, -1)], -1), v

    def _from_latents(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, key: Tensor, bus: Bus
    ) -> tuple[Tensor, Tensor]:
        """Decoding from remembered latents: the result (B, H, T, d_v), and the values of this call's tokens."""
        n_new = latent.shape[2]
        seen = bus.extend("latent", torch.cat([latent, key], -1))  # (B, 1, S, r + d_r)
        if self._absorbing_pays(n_new, seen.shape[2]):
            return self._absorbed(q_nope, q_rope, seen, bus), self._expanded(latent, key)[1]
        k, v = self._expanded(*seen.split([self.rank, self.rope], -1))
        return attend(torch.cat([q_nope, q_rope], -1), k, v, bus, self.scale), v[:, :, -n_new:]

    def _absorbing_pays(self, n_new: int, n_seen: int) -> bool:
        """Whether scoring T new tokens against S latents takes fewer products than expanding the latents first."""
        width = self.nope + self.wide
        return n_new * n_seen * (2 * self.rank - width) < (n_seen - n_new) * self.rank * width

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, seen: Tensor, bus: Bus) -> Tensor:
        """Attention over latents as keys and values of a single group: (q W_UK) . c in place of q . (W_UK c)."""
        weight = self.expansion.weight.to(seen.dtype).view(self.heads, -1, self.rank)
        for_keys, for_values = weight.split([self.nope, self.wide], 1)  # (H, d_n, r), (H, d_v, r)
        q = torch.cat([einsum(q_nope, for_keys, "b n t e, n e r -> b n t r"), q_rope], -1)
        mixed = attend(q, seen, seen[..., : self.rank], bus, self.scale)  # (B, H, T, r)
        return einsum(mixed, for_values, "b n t r, n e r -> b n t e")

    def extra_flops(self, context: int) -> float:
        return 2.0 * context * self.heads * (self.nope + self.rope + self.wide)

    def cache_elements(self) -> int:
        if self.value.identity:
            return self.rank + self.rope
        return self.heads * (self.nope + self.rope + self.wide)


def _widths(cfg: MLA.Config, dim: int) -> tuple[int, int, int, int]:
    """d_n, d_r, d_v and r, those that are not given from the width of a head."""
    given = (cfg.qk_nope_head_dim, cfg.qk_rope_head_dim, cfg.v_head_dim)
    head = width_of_heads(cfg.n_heads, cfg.head_dim, dim) if None in given else 0
    nope = cfg.qk_nope_head_dim or head
    return nope, cfg.qk_rope_head_dim or max(2, head // 4 * 2), cfg.v_head_dim or head, cfg.kv_lora_rank or 4 * nope

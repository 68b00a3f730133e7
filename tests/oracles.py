"""Independent attentions to compare with: transformers' own classes with our weights copied over.

Each oracle says where its parameters lie in ours, as views, so that weights go one way and gradients come the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    GPTNeoXConfig,
    LlamaConfig,
    OlmoeConfig,
    Qwen3Config,
    Qwen3NextConfig,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.olmoe.modeling_olmoe import OlmoeAttention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.core.slots import Attention, Site
from zoo.core.wires import SEGMENTS, Bus, Past

DIM, HEADS, GROUPS, WIDTH, THETA = 48, 4, 2, 12, 10_000.0
SITE = Site(dim=DIM, context=64)
Pick = Callable[[nn.Parameter], Tensor]  # a parameter, or its gradient
Views = Callable[[nn.Module, Pick], dict[str, Tensor]]


@dataclass(frozen=True)
class Oracle:
    """What to build here, what it is there, and how the two hang together."""

    ours: dict[str, Any]  # an attention's table
    theirs: Callable[[], nn.Module]
    views: Views  # our parameter's name -> the same numbers inside theirs
    rotary: int = WIDTH  # entries of each head that turn
    norms: tuple[str, ...] = ()  # their norms, which compute in fp32 whatever they are given
    fp64: float = 1e-12  # how near they come in fp64: not nearer than this where they turn or norm in fp32


def build(table: dict[str, Any], site: Site = SITE, seed: int = 0) -> Attention:
    """An attention with every parameter random, in fp32."""
    block = Attention.parse(table).build(site)
    randomise(block, seed)
    return block


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Matrices as large as keeps a unit stream a unit stream; everything else around 1."""
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        drawn = torch.randn(p.shape, generator=generator)
        p.copy_(drawn * p.shape[-1] ** -0.5 if p.ndim > 1 else 1 + 0.3 * drawn)
    for name, part in module.named_modules():
        part.scope = name


def angles(n_entries: int, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (B, T, n_entries) as transformers' rotary modules make them, from positions (B, T)."""
    frequency = 1.0 / THETA ** (torch.arange(0, n_entries, 2, dtype=torch.int64).float() / n_entries)
    angle = positions[..., None].float() * frequency
    return tuple(torch.cat([f, f], -1).to(dtype) for f in (angle.cos(), angle.sin()))


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask that eager attention adds to its scores, from allowed (B, T, S): (B, 1, T, S)."""
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def run_ours(block: Attention, x: Tensor, segments: Tensor | None = None) -> Tensor:
    """The block on x (B, T, D), alone."""
    return block(x, Bus({} if segments is None else {SEGMENTS: segments}))


def run_theirs(oracle: Oracle, module: nn.Module, x: Tensor, segments: Tensor | None = None) -> Tensor:
    """The oracle on x (B, T, D); documents by a mask written out and by positions that begin again."""
    batch, n_tokens = x.shape[:2]
    segments = torch.zeros(batch, n_tokens, dtype=torch.long) if segments is None else segments
    position = torch.stack(
        [torch.cat([torch.arange(n) for n in row.unique_consecutive(return_counts=True)[1]]) for row in segments]
    )
    allowed = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril() & (segments[:, :, None] == segments[:, None, :])
    cos, sin = angles(oracle.rotary, position, x.dtype)
    turns = (cos, sin)
    if isinstance(module, DeepseekV2Attention):
        half = oracle.rotary // 2
        turns = torch.complex(cos[..., :half], sin[..., :half])
    return module(hidden_states=x, position_embeddings=turns, attention_mask=additive(allowed, x.dtype))[0]


def prepared(oracle: Oracle, dtype: torch.dtype, seed: int = 0) -> tuple[Attention, nn.Module]:
    """Both blocks with the same weights, in ``dtype``; in fp64 theirs attends by SDPA and norms by torch's RMSNorm."""
    ours, theirs = build(oracle.ours, seed=seed), oracle.theirs()
    if dtype == torch.float64:
        theirs.config._attn_implementation = "sdpa"
        for name in oracle.norms:
            old = theirs.get_submodule(name)
            setattr(theirs, name, nn.RMSNorm(old.weight.shape[0], eps=old.variance_epsilon))
    named = dict(ours.named_parameters())
    with torch.no_grad():
        for name, view in oracle.views(theirs, lambda p: p.data).items():
            view.copy_(named[name])
    for module in (ours, theirs):
        module.to(dtype).eval()
    if dtype == torch.float64:  # the fp32 angles of either side agree in fp32 only: here both take theirs
        _take_angles(ours, oracle.rotary)
    return ours, theirs


def _take_angles(block: Attention, n_entries: int) -> None:
    rope = block.position
    cos, sin = (t[0] for t in angles(n_entries, torch.arange(SITE.context)[None], torch.float64))
    half = n_entries // 2
    if rope.layout == "half":
        rope.cos, rope.sin = cos, torch.cat([-sin[:, :half], sin[:, half:]], -1)
    else:
        rope.cos = cos[:, :half].repeat_interleave(2, -1)
        rope.sin = torch.stack([-sin[:, :half], sin[:, :half]], -1).flatten(-2)


def _renamed(names: dict[str, str]) -> Views:
    return lambda module, pick: {ours: pick(module.get_parameter(theirs)) for ours, theirs in names.items()}


PROJECTIONS = {
    "query.weight": "q_proj.weight",
    "key.weight": "k_proj.weight",
    "value_projection.weight": "v_proj.weight",
    "projection.weight": "o_proj.weight",
}
QK_NORMS = {"q_norm.weight": "q_norm.weight", "k_norm.weight": "k_norm.weight"}
SIZES = {"hidden_size": DIM, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS}
GROUPED = {"kind": "gqa", "n_heads": HEADS, "n_kv_heads": GROUPS, "head_dim": WIDTH}
RMS = {"kind": "rms_norm", "eps": 1e-5}
LATENTS = {"kv_lora_rank": 20, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 14}


def _eager(module: nn.Module) -> nn.Module:
    module.config._attn_implementation = "eager"
    return module


def _neox_views(module: nn.Module, pick: Pick) -> dict[str, Tensor]:
    """One fused matrix, per head [query | key | value]."""
    fused = pick(module.query_key_value.weight).view(HEADS, 3, WIDTH, DIM)
    flat = {name: fused[:, i] for i, name in enumerate(("query", "key", "value_projection"))}
    views = {f"{name}.weight": _Heads(view) for name, view in flat.items()}
    return {**views, "projection.weight": pick(module.dense.weight)}


def _gated_views(module: nn.Module, pick: Pick) -> dict[str, Tensor]:
    """One fused matrix for queries and gates, per head [query | gate]."""
    fused = pick(module.q_proj.weight).view(HEADS, 2, WIDTH, DIM)
    names = {ours: theirs for ours, theirs in (PROJECTIONS | QK_NORMS).items() if ours != "query.weight"}
    views = _renamed(names)(module, pick)
    return {**views, "query.weight": _Heads(fused[:, 0]), "output.0.open.weight": _Heads(fused[:, 1])}


class _Heads:
    """(heads, width, D) seen as (heads x width, D), which no view can be when heads lie apart."""

    def __init__(self, view: Tensor) -> None:
        self.view = view

    def copy_(self, t: Tensor) -> None:
        self.view.copy_(t.view_as(self.view))

    def plain(self) -> Tensor:
        return self.view.flatten(0, 1)


def gradients(oracle: Oracle, theirs: nn.Module) -> dict[str, Tensor]:
    """Their gradients under our parameters' names."""
    found = oracle.views(theirs, lambda p: p.grad)
    return {name: g.plain() if isinstance(g, _Heads) else g for name, g in found.items()}


def compare(name: str, dtype: torch.dtype, segments: Tensor | None = None) -> None:
    """Output, the input's gradient and every parameter's gradient: within 1e-5 in fp32, ``Oracle.fp64`` in fp64."""
    oracle = ORACLES[name]
    ours, theirs = prepared(oracle, dtype)
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(2, 17, DIM, generator=generator).to(dtype) for _ in range(2))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [run_ours(ours, inputs[0], segments), run_theirs(oracle, theirs, inputs[1], segments)]
    for output in outputs:
        (output * weight).sum().backward()
    theirs_by_name = gradients(oracle, theirs)
    pairs = {"output": outputs, "gradient of x": [t.grad for t in inputs]}
    assert set(theirs_by_name) == {n for n, _ in ours.named_parameters()}
    pairs |= {n: [p.grad, theirs_by_name[n]] for n, p in ours.named_parameters()}
    bound = 1e-5 if dtype == torch.float32 else oracle.fp64
    far = {n: error for n, (a, b) in pairs.items() if not (error := relative(a, b)) < bound}
    assert not far, far


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return float((a - b).detach().norm() / b.detach().norm())


def decode(block: Attention, x: Tensor, pieces: list[int], segments: Tensor | None = None) -> tuple[Tensor, int]:
    """The block on x (B, T, D) given piece by piece with a memory; also how many elements it remembers per token."""
    buffers: dict[str, Tensor] = {}
    outputs, start, capacity = [], 0, x.shape[1] + 3
    for n in pieces:
        inbox = {} if segments is None else {SEGMENTS: segments[:, : start + n]}
        bus = Bus(inbox, Past(buffers, start, capacity))
        with torch.no_grad():
            outputs.append(block(x[:, start : start + n], bus))
        buffers = bus.close()[2]
        start += n
    return torch.cat(outputs, 1), sum(t.numel() for t in buffers.values()) // (x.shape[0] * capacity)


def _neox() -> nn.Module:
    rope = {"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.5}
    config = GPTNeoXConfig(
        hidden_size=DIM, num_attention_heads=HEADS, rope_parameters=rope, attention_bias=False, attention_dropout=0.0
    )
    return _eager(GPTNeoXAttention(config, 0))


def _deepseek(config: type, module: type, q_rank: int | None) -> nn.Module:
    made = config(**SIZES | {"num_key_value_heads": HEADS}, **LATENTS, q_lora_rank=q_rank)
    return _eager(module(made, 0))


def _mla(q_rank: int | None) -> dict[str, Any]:
    return {
        "kind": "mla",
        "n_heads": HEADS,
        "position": {"kind": "rope", "layout": "interleaved"},
        **LATENTS,
        "q_lora_rank": q_rank,
    }


LATENT = {
    "latent.weight": "kv_a_proj_with_mqa.weight",
    "latent_norm.weight": "kv_a_layernorm.weight",
    "expansion.weight": "kv_b_proj.weight",
    "projection.weight": "o_proj.weight",
}
DIRECT = LATENT | {"query.weight": "q_proj.weight"}
COMPRESSED = LATENT | {
    "query_down.weight": "q_a_proj.weight",
    "query_norm.weight": "q_a_layernorm.weight",
    "query.weight": "q_b_proj.weight",
}

ORACLES = {
    "llama": Oracle(
        GROUPED, lambda: _eager(LlamaAttention(LlamaConfig(**SIZES, head_dim=WIDTH), 0)), _renamed(PROJECTIONS)
    ),
    "qwen3": Oracle(
        GROUPED | {"qk_norm": RMS},
        lambda: _eager(Qwen3Attention(Qwen3Config(**SIZES, head_dim=WIDTH, rms_norm_eps=1e-5), 0)),
        _renamed(PROJECTIONS | QK_NORMS),
        norms=("q_norm", "k_norm"),
    ),
    "olmoe": Oracle(
        GROUPED | {"qk_norm": RMS, "qk_norm_over": "projection"},
        lambda: _eager(OlmoeAttention(OlmoeConfig(**SIZES, rms_norm_eps=1e-5), 0)),
        _renamed(PROJECTIONS | QK_NORMS),
        norms=("q_norm", "k_norm"),
    ),
    "gpt_neox": Oracle(
        {"kind": "gqa", "n_heads": HEADS, "position": {"kind": "rope", "dims": WIDTH // 2}},
        _neox,
        _neox_views,
        rotary=WIDTH // 2,
    ),
    "qwen3_next": Oracle(
        GROUPED
        | {
            "qk_norm": RMS | {"weight": "unit_offset"},
            "output": [{"kind": "gate", "per": "elementwise"}],
        },
        lambda: _eager(Qwen3NextAttention(Qwen3NextConfig(**SIZES, head_dim=WIDTH, rms_norm_eps=1e-5), 0)),
        _gated_views,
        fp64=1e-6,
    ),
    "deepseek_v3": Oracle(
        _mla(None),
        lambda: _deepseek(DeepseekV3Config, DeepseekV3Attention, None),
        _renamed(DIRECT),
        rotary=6,
        norms=("kv_a_layernorm",),
    ),
    "deepseek_v3_compressed": Oracle(
        _mla(24),
        lambda: _deepseek(DeepseekV3Config, DeepseekV3Attention, 24),
        _renamed(COMPRESSED),
        rotary=6,
        norms=("kv_a_layernorm", "q_a_layernorm"),
    ),
    "deepseek_v2": Oracle(
        _mla(24),
        lambda: _deepseek(DeepseekV2Config, DeepseekV2Attention, 24),
        _renamed(COMPRESSED),
        rotary=6,
        norms=("kv_a_layernorm", "q_a_layernorm"),
        fp64=1e-6,
    ),
}

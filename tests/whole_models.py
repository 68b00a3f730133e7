"""Whole language models of transformers with our weights copied over: what they are there, what they are here.

In fp64 both run inside ``EverythingInFp64``: transformers turns to fp32 inside norms, routers, softmax and rotary angles
whatever it is given, and so do we for angles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from oracles import COMPRESSED, DIRECT, LATENTS, PROJECTIONS, QK_NORMS, _gated_views, _Heads, _neox_views
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo.blocks.rope import RoPE
from zoo.model import Model, ModelConfig

VOCAB, DIM, HEADS, GROUPS, WIDTH, LAYERS, HIDDEN, EXPERTS, CHOSEN, NARROW = 61, 48, 4, 2, 12, 2, 40, 6, 2, 20
EPS = 1e-5
Table = dict[str, Any]
Pick = Callable[[nn.Parameter], Tensor]


class EverythingInFp64(TorchFunctionMode):
    """Whoever asks for fp32 in here gets fp64."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        wide = [torch.float64 if a is torch.float32 else a for a in args]
        return func(*wide, **{k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()})


@dataclass(frozen=True)
class Whole:
    """One model: its table here, its maker there, and where each of our parameters lies in it."""

    layer: Table
    make: Callable[[], nn.Module]
    names: dict[str, str]  # our name -> theirs, within a layer
    norm: Table = field(default_factory=lambda: {"kind": "rms_norm", "eps": EPS})
    knobs: Table = field(default_factory=lambda: {"head": "untied"})
    outer: dict[str, str] = field(
        default_factory=lambda: {
            "embedding.weight": "model.embed_tokens.weight",
            "norm.weight": "model.norm.weight",
            "head.out.weight": "lm_head.weight",
        }
    )
    layers: str = "model.layers"
    attention_views: Callable[[nn.Module, Pick], dict[str, Any]] | None = None
    attention: str = "self_attn"


def build_ours(whole: Whole) -> Model:
    """Our model with random parameters, those that start at one or zero moved as well."""
    layer = {"kind": "pre_norm", "norm": whole.norm, **whole.layer}
    sizes = {"vocab_size": VOCAB, "context": 32, "dim": DIM, "n_layers": LAYERS}
    model = Model(ModelConfig.model_validate({**sizes, "layer": layer, "norm": whole.norm, **whole.knobs}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def build_theirs(whole: Whole) -> nn.Module:
    """Their model, attending by SDPA and looping over experts, which fp64 allows."""
    model = whole.make()
    model.config._attn_implementation, model.config._experts_implementation = "sdpa", "eager"
    return model


def widen(model: Model) -> None:
    """Within ``EverythingInFp64``: our model to fp64, its angles worked out anew."""
    model.double()
    for rope in (module for module in model.modules() if isinstance(module, RoPE)):
        rope.cos, rope.sin = rope._tables(torch.arange(32))


def views(whole: Whole, ours: Model, theirs: nn.Module, pick: Pick) -> dict[str, Any]:
    """Our parameters' names, and what stands for them over there."""
    wanted = {name for name, _ in ours.named_parameters()}
    found = {mine: pick(theirs.get_parameter(name)) for mine, name in whole.outer.items() if mine in wanted}
    for i in range(LAYERS):
        block = theirs.get_submodule(f"{whole.layers}.{i}")
        inner = {mine: pick(block.get_parameter(name)) for mine, name in whole.names.items() if _has(block, name)}
        if whole.attention_views is not None:
            attention = whole.attention_views(block.get_submodule(whole.attention), pick)
            inner |= {f"attention.{mine}": view for mine, view in attention.items()}
        if hasattr(block, "mlp") and hasattr(block.mlp, "experts"):
            inner |= _mixture(block.mlp, pick)
        found |= {f"layer.{i}.{mine}": view for mine, view in inner.items() if f"layer.{i}.{mine}" in wanted}
    return found


def _has(module: nn.Module, name: str) -> bool:
    return name in {n for n, _ in module.named_parameters()}


def _mixture(block: nn.Module, pick: Pick) -> dict[str, Tensor]:
    """A mixture's router, stacked experts (gate and up in one matrix) and shared experts."""
    fused = pick(block.experts.gate_up_proj)
    found = {
        "ffn.router.weight": pick(block.gate.weight),
        "ffn.experts.gate": fused[:, :NARROW],
        "ffn.experts.up": fused[:, NARROW:],
        "ffn.experts.down": pick(block.experts.down_proj),
    }
    if hasattr(block, "shared_experts"):
        for mine in ("gate", "up", "down"):
            found[f"ffn.shared.{mine}.weight"] = pick(block.shared_experts.get_submodule(f"{mine}_proj").weight)
    return found


@torch.no_grad()
def copy_over(whole: Whole, ours: Model, theirs: nn.Module) -> None:
    """Our parameters into theirs, and our selection biases."""
    named = dict(ours.named_parameters())
    found = views(whole, ours, theirs, lambda p: p.data)
    assert set(found) == set(named)
    for name, view in found.items():
        view.copy_(named[name])
    for i, layer in enumerate(ours.layer):
        bias = getattr(getattr(layer.ffn, "balance", None), "bias", None)
        gate = getattr(getattr(theirs.get_submodule(f"{whole.layers}.{i}"), "mlp", None), "gate", None)
        if bias is not None and hasattr(gate, "e_score_correction_bias"):
            bias.copy_(torch.linspace(-0.3, 0.3, EXPERTS).roll(i))
            gate.e_score_correction_bias.copy_(bias)


def gradients(whole: Whole, ours: Model, theirs: nn.Module) -> dict[str, Tensor]:
    """Their gradients under our names."""
    found = views(whole, ours, theirs, lambda p: p.grad)
    return {name: g.plain() if isinstance(g, _Heads) else g for name, g in found.items()}


# --- the models -------------------------------------------------------------------------------------------------------

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": DIM,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "intermediate_size": HIDDEN,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
NORMS = {"attention_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "post_attention_layernorm.weight"}
DENSE = {f"ffn.{mine}.weight": f"mlp.{mine}_proj.weight" for mine in ("gate", "up", "down")}
GROUPED = {"kind": "gqa", "n_heads": HEADS, "n_kv_heads": GROUPS, "head_dim": WIDTH}
QK = {"kind": "rms_norm", "eps": EPS}
SWIGLU = {"kind": "swiglu", "hidden_dim": HIDDEN}
MOE = {"kind": "moe", "n_experts": EXPERTS, "top_k": CHOSEN, "hidden_dim": NARROW, "activation": "swiglu"}
AUX = {"kind": "aux_loss", "weight": 0.02, "at_balance": "k"}


def _attention(names: dict[str, str]) -> dict[str, str]:
    return {f"attention.{mine}": f"self_attn.{theirs}" for mine, theirs in names.items()}


def _mla(q_rank: int | None) -> Table:
    turned = {"kind": "rope", "layout": "interleaved"}
    return {"kind": "mla", "n_heads": HEADS, "position": turned, **LATENTS, "q_lora_rank": q_rank}


def _deepseek(config: type, model: type, **knobs: Any) -> nn.Module:
    mixture = {"moe_intermediate_size": NARROW, "num_experts_per_tok": CHOSEN, "n_shared_experts": 2}
    experts = {"n_routed_experts": EXPERTS, "first_k_dense_replace": 1}
    sizes = SIZES | {"num_key_value_heads": HEADS}
    return model(config(**sizes, **mixture, **experts, **LATENTS, rms_norm_eps=EPS, **knobs))


def _gemma2() -> nn.Module:
    """Without the parts that have no counterpart: the norms after each branch, scaled embeddings, capped scores."""
    knobs = {"head_dim": WIDTH, "query_pre_attn_scalar": WIDTH, "final_logit_softcapping": 2.0}
    plain = {"attn_logit_softcapping": None, "layer_types": ["full_attention"] * LAYERS, "hidden_activation": "silu"}
    model = hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**SIZES | {"tie_word_embeddings": True}, **knobs, **plain, rms_norm_eps=EPS)
    )
    for layer in model.model.layers:
        layer.post_attention_layernorm, layer.post_feedforward_layernorm = nn.Identity(), nn.Identity()
    model.model.embed_tokens.embed_scale.fill_(1.0)
    model.model.embed_tokens.scalar_embed_scale = 1.0
    return model


def _neox() -> nn.Module:
    turned = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    sizes = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    plain = {"use_parallel_residual": False, "attention_bias": False, "rope_parameters": turned}
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**sizes, **plain, layer_norm_eps=EPS))


def _qwen3_next() -> nn.Module:
    turned = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    kinds = {"layer_types": ["full_attention"] * LAYERS, "mlp_only_layers": list(range(LAYERS))}
    config = hf.Qwen3NextConfig(**SIZES, **kinds, head_dim=WIDTH, rope_parameters=turned, rms_norm_eps=EPS)
    return hf.Qwen3NextForCausalLM(config)


def _mixture_config(config: type, **knobs: Any) -> Any:
    return config(**SIZES | {"intermediate_size": NARROW}, num_experts_per_tok=CHOSEN, rms_norm_eps=EPS, **knobs)


FIRST_DENSE = [{"layers": "0", "ffn": SWIGLU}]
UNTIED = {"head": "untied"}
SHARED = {"n_shared_experts": 2, "balance": "none"}
SIGMOID = MOE | {"score": "sigmoid", "route_scale": 2.5, "n_shared_experts": 2, "n_groups": 3, "topk_groups": 2}
UNIT = {"kind": "rms_norm", "eps": EPS, "weight": "unit_offset"}
V3 = {"routed_scaling_factor": 2.5, "n_group": 3, "topk_group": 2, "norm_topk_prob": True}

WHOLE = {
    "llama": Whole(
        {"attention": GROUPED, "ffn": SWIGLU},
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, head_dim=WIDTH, rms_norm_eps=EPS)),
        NORMS | _attention(PROJECTIONS) | DENSE,
    ),
    "qwen3": Whole(
        {"attention": GROUPED | {"qk_norm": QK}, "ffn": SWIGLU},
        lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SIZES, head_dim=WIDTH, rms_norm_eps=EPS)),
        NORMS | _attention(PROJECTIONS | QK_NORMS) | DENSE,
    ),
    "mixtral": Whole(
        {"attention": GROUPED | {"position": {"kind": "rope", "theta": 1e6}}, "ffn": MOE | {"balance": AUX}},
        lambda: hf.MixtralForCausalLM(_mixture_config(hf.MixtralConfig, num_local_experts=EXPERTS, head_dim=WIDTH)),
        NORMS | _attention(PROJECTIONS),
    ),
    "olmoe": Whole(
        {
            "attention": GROUPED | {"qk_norm": QK, "qk_norm_over": "projection"},
            "ffn": MOE | {"renormalise": "none", "balance": AUX},
        },
        lambda: hf.OlmoeForCausalLM(_mixture_config(hf.OlmoeConfig, num_experts=EXPERTS, norm_topk_prob=False)),
        NORMS | _attention(PROJECTIONS | QK_NORMS),
    ),
    "deepseek_v2": Whole(
        {"attention": _mla(24), "ffn": MOE | SHARED | {"renormalise": "none"}},
        lambda: _deepseek(hf.DeepseekV2Config, hf.DeepseekV2ForCausalLM, q_lora_rank=24),
        NORMS | _attention(COMPRESSED) | DENSE,
        knobs={**UNTIED, "where": FIRST_DENSE},
    ),
    "deepseek_v2_direct": Whole(
        {"attention": _mla(None), "ffn": MOE | SHARED | {"renormalise": "none", "route_scale": 1.5}},
        lambda: _deepseek(hf.DeepseekV2Config, hf.DeepseekV2ForCausalLM, q_lora_rank=None, routed_scaling_factor=1.5),
        NORMS | _attention(DIRECT) | DENSE,
        knobs={**UNTIED, "where": FIRST_DENSE},
    ),
    "deepseek_v3": Whole(
        {"attention": _mla(24), "ffn": SIGMOID},
        lambda: _deepseek(hf.DeepseekV3Config, hf.DeepseekV3ForCausalLM, q_lora_rank=24, **V3),
        NORMS | _attention(COMPRESSED) | DENSE,
        knobs={**UNTIED, "where": FIRST_DENSE},
    ),
    "deepseek_v3_direct": Whole(
        {"attention": _mla(None), "ffn": SIGMOID},
        lambda: _deepseek(hf.DeepseekV3Config, hf.DeepseekV3ForCausalLM, q_lora_rank=None, **V3),
        NORMS | _attention(DIRECT) | DENSE,
        knobs={**UNTIED, "where": FIRST_DENSE},
    ),
    "gpt_neox": Whole(
        {
            "attention": {"kind": "gqa", "n_heads": HEADS, "position": {"kind": "rope", "dims": WIDTH // 2}},
            "ffn": {"kind": "gelu", "hidden_dim": HIDDEN, "bias": 0.0},
        },
        _neox,
        {
            f"{mine}.{kind}": f"{theirs}.{kind}"
            for kind in ("weight", "bias")
            for mine, theirs in {
                "attention_norm": "input_layernorm",
                "ffn_norm": "post_attention_layernorm",
                "ffn.up": "mlp.dense_h_to_4h",
                "ffn.down": "mlp.dense_4h_to_h",
            }.items()
        },
        norm={"kind": "layer_norm", "eps": EPS},
        outer={
            "embedding.weight": "gpt_neox.embed_in.weight",
            "norm.weight": "gpt_neox.final_layer_norm.weight",
            "norm.bias": "gpt_neox.final_layer_norm.bias",
            "head.out.weight": "lm_head.weight",
        },
        layers="gpt_neox.layers",
        attention_views=_neox_views,
        attention="attention",
    ),
    "gemma2": Whole(
        {"attention": GROUPED, "ffn": SWIGLU},
        _gemma2,
        _attention(PROJECTIONS)
        | DENSE
        | {"attention_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "pre_feedforward_layernorm.weight"},
        norm=UNIT,
        knobs={"head": {"kind": "tied", "softcap": 2.0}},
    ),
    "qwen3_next": Whole(
        {
            "attention": GROUPED
            | {
                "qk_norm": UNIT,
                "position": {"kind": "rope", "dims": WIDTH // 2},
                "output": [{"kind": "gate", "per": "elementwise"}],
            },
            "ffn": SWIGLU,
        },
        _qwen3_next,
        NORMS | DENSE,
        norm=UNIT,
        attention_views=_gated_views,
    ),
}

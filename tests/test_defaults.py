"""What a knob means that a recipe leaves out. A change here changes what every such recipe trains: make it knowingly."""

from __future__ import annotations

from typing import Any

import pytest

import zoo.blocks
import zoo.optim  # noqa: F401  (the kinds register themselves)
from zoo.core.part import Part, PartConfig
from zoo.core.slots import HeadSite

DEFAULTS = {
    "init.normal": {"draw": 0, "std": 0.02, "output": "scaled", "embedding_std": None, "head_std": None},
    "init.orthogonal": {"draw": 0, "gain": 1.0, "embedding_std": 0.005},
    "init.fan_in": {"draw": 0, "embedding_std": 0.02},
    "norm.rms_norm": {"eps": 1e-06, "weight": "scale"},
    "norm.layer_norm": {"eps": 1e-05},
    "norm.none": {},
    "norm.ln_scale": {"norm": "rms_norm"},
    "position.rope": {"dims": None, "theta": 10000.0, "layout": "half"},
    "position.none": {},
    "value.plain": {},
    "value.residual": {"mix": "half"},
    "output.gate": {"per": "headwise", "bias": None},
    "output.xsa": {},
    "output.xsa_bug828": {},
    "attention.gqa": {
        "n_heads": 4,
        "head_dim": None,
        "position": "rope",
        "value": "plain",
        "output": (),
        "n_kv_heads": None,
        "qk_norm": "none",
        "qk_norm_over": "head",
        "qk_gain": None,
    },
    "attention.latent_tokens": {
        "n_heads": 4,
        "head_dim": None,
        "position": "rope",
        "value": "plain",
        "output": (),
        "n_kv_heads": None,
        "qk_norm": "none",
        "qk_norm_over": "head",
        "qk_gain": None,
        "n_latents": 8,
        "source": "embed",
        "latent_position": "zero",
    },
    "attention.mla": {
        "n_heads": 4,
        "head_dim": None,
        "position": "rope",
        "value": "plain",
        "output": (),
        "q_lora_rank": None,
        "kv_lora_rank": None,
        "qk_nope_head_dim": None,
        "qk_rope_head_dim": None,
        "v_head_dim": None,
        "latent_norm": "rms_norm",
    },
    "balance.none": {},
    "balance.aux_loss": {"weight": 0.01, "at_balance": "one"},
    "balance.loss_free": {"rate": 0.001, "update": "sign", "decay": 0.9, "centre": "none"},
    "ffn.relu2": {"hidden_dim": None, "bias": None},
    "ffn.leaky_relu2": {"hidden_dim": None, "bias": None, "slope": 0.5},
    "ffn.silu": {"hidden_dim": None, "bias": None},
    "ffn.gelu": {"hidden_dim": None, "bias": None, "approximate": "none"},
    "ffn.swiglu": {"hidden_dim": None, "bias": None},
    "ffn.moe": {
        "hidden_dim": None,
        "n_experts": 8,
        "top_k": 2,
        "n_shared_experts": 0,
        "activation": "silu",
        "expert_bias": None,
        "router_bias": None,
        "score": "softmax",
        "renormalise": "chosen",
        "route_scale": 1.0,
        "n_groups": 1,
        "topk_groups": 1,
        "jitter": 0.0,
        "dropout": 0.0,
        "z_loss": 0.0,
        "balance": "loss_free",
    },
    "stem.bigram_hash": {"n_buckets": 4096, "table_dim": 128, "scale": 0.05, "projection": "recipe"},
    "stem.ngram_hash": {"orders": (2, 3, 4), "n_buckets": 4096, "table_dim": 128, "scale": 1.0, "dropout": 0.0},
    "stem.smear_gate": {"form": "convex", "start": "keep", "channels": 12},
    "stem.x0_mix": {},
    "layer.pre_norm": {"stem": (), "norm": "rms_norm", "attention": "gqa", "ffn": "swiglu", "branch_scale": "none"},
    "trunk.plain": {},
    "trunk.unet": {},
    "head.tied": {"softcap": None, "chunk_elements": 16777216},
    "head.untied": {"softcap": None, "chunk_elements": 16777216},
    "optimizer.adamw": {"lr": 0.001, "weight_decay": 0.0, "betas": (0.9, 0.95), "eps": 1e-08},
    "optimizer.muon": {
        "lr": 0.02,
        "weight_decay": 0.0,
        "momentum": 0.95,
        "momentum_warmup_from": None,
        "momentum_warmup_steps": 1500,
        "accumulate": "heavy_ball",
        "form": "nesterov",
        "ns_steps": 5,
        "coefficients": "keller",
        "adjust": "original",
        "ns_dtype": "auto",
    },
    "schedule.constant": {"warmup": 0},
    "schedule.linear": {"warmup": 0, "final": 0.0},
    "schedule.cosine": {"warmup": 0, "final": 0.0},
    "schedule.warmdown": {"warmup": 0, "warmdown": 0.5, "floor": 0.0},
    "average.none": {},
    "average.ema": {"decay": 0.997, "every": 1},
    "average.swa": {"every": 50, "below": 0.4},
}


def plain(value: Any) -> Any:
    """A part by its kind alone: its own defaults stand in its own row."""
    return value.part.kind if isinstance(value, PartConfig) else value


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_kind_means_what_it_meant(name: str) -> None:
    slot, kind = name.split(".")
    config = Part.slots[slot].kinds[kind].Config()
    assert {knob: plain(getattr(config, knob)) for knob in type(config).model_fields} == DEFAULTS[name]


def test_a_site_within_an_attention_has_one_head_of_one_entry_until_it_is_told():
    assert HeadSite(dim=8) == HeadSite(dim=8, n_heads=1, head_dim=1)

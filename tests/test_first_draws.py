"""How every kind draws its own parameters, and what they are. A change here changes old recipes: make it knowingly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zoo.core.params import entries
from zoo.core.slots import Block, HeadSite, Site
from zoo.model import Model, ModelConfig
from zoo.testing.hosts import find, subjects

FIRST_DRAWS = [
    ("norm.rms_norm", {}, {"weight": "scalar, Constant(value=1.0)"}),
    ("norm.rms_norm", {"weight": "unit_offset"}, {"weight": "scalar, Constant(value=0.0)"}),
    ("norm.layer_norm", {}, {"weight": "scalar, Constant(value=1.0)", "bias": "scalar, Constant(value=0.0)"}),
    ("value.residual", {"mix": "learned"}, {"mix": "control, Constant(value=0.5)"}),
    ("output.gate", {}, {"open.weight": "control, Constant(value=0.0)"}),
    (
        "output.gate",
        {"per": "elementwise", "bias": 4.0},
        {"open.weight": "control, Constant(value=0.0)", "open.bias": "scalar, Constant(value=4.0)"},
    ),
    (
        "attention.gqa",
        {},
        {
            "query.weight": "matrix, input",
            "key.weight": "matrix, input",
            "value_projection.weight": "matrix, input",
            "projection.weight": "matrix, output",
        },
    ),
    (
        "attention.gqa",
        {"qk_gain": 1.5, "qk_norm": {"kind": "rms_norm"}},
        {
            "gain": "control, Constant(value=1.5)",
            "query.weight": "matrix, input",
            "key.weight": "matrix, input",
            "value_projection.weight": "matrix, input",
            "projection.weight": "matrix, output",
        },
    ),
    (
        "attention.latent_tokens",
        {},
        {
            "latents": "control, Normal(std=0.02)",
            "query.weight": "matrix, input",
            "key.weight": "matrix, input",
            "value_projection.weight": "matrix, input",
            "projection.weight": "matrix, output",
        },
    ),
    (
        "attention.latent_tokens",
        {"source": "kv"},
        {
            "latent_keys": "control, Normal(std=1.0)",
            "latent_values": "control, Normal(std=1.0)",
            "query.weight": "matrix, input",
            "key.weight": "matrix, input",
            "value_projection.weight": "matrix, input",
            "projection.weight": "matrix, output",
        },
    ),
    (
        "attention.mla",
        {},
        {
            "query.weight": "matrix, input",
            "latent.weight": "matrix, input",
            "expansion.weight": "matrix, input",
            "projection.weight": "matrix, output",
        },
    ),
    (
        "attention.mla",
        {"q_lora_rank": 9},
        {
            "query_down.weight": "matrix, input",
            "query.weight": "matrix, input",
            "latent.weight": "matrix, input",
            "expansion.weight": "matrix, input",
            "projection.weight": "matrix, output",
        },
    ),
    ("ffn.relu2", {}, {"up.weight": "matrix, input", "down.weight": "matrix, output"}),
    ("ffn.leaky_relu2", {}, {"up.weight": "matrix, input", "down.weight": "matrix, output"}),
    ("ffn.silu", {}, {"up.weight": "matrix, input", "down.weight": "matrix, output"}),
    ("ffn.gelu", {}, {"up.weight": "matrix, input", "down.weight": "matrix, output"}),
    (
        "ffn.gelu",
        {"bias": 0.5},
        {
            "up.weight": "matrix, input",
            "up.bias": "scalar, Constant(value=0.5)",
            "down.weight": "matrix, output",
            "down.bias": "scalar, Constant(value=0.5)",
        },
    ),
    ("ffn.swiglu", {}, {"up.weight": "matrix, input", "down.weight": "matrix, output", "gate.weight": "matrix, input"}),
    (
        "ffn.swiglu",
        {"bias": 0.0},
        {
            "up.weight": "matrix, input",
            "up.bias": "scalar, Constant(value=0.0)",
            "down.weight": "matrix, output",
            "down.bias": "scalar, Constant(value=0.0)",
            "gate.weight": "matrix, input",
            "gate.bias": "scalar, Constant(value=0.0)",
        },
    ),
    (
        "ffn.moe",
        {},
        {"router.weight": "control, Normal(std=0.02)", "experts.up": "matrix, input", "experts.down": "matrix, output"},
    ),
    (
        "ffn.moe",
        {"activation": "swiglu", "expert_bias": 0.5, "router_bias": 0.25, "n_shared_experts": 1},
        {
            "router.weight": "control, Normal(std=0.02)",
            "router.bias": "scalar, Constant(value=0.25)",
            "experts.gate": "matrix, input",
            "experts.gate_bias": "scalar, Constant(value=0.5)",
            "experts.up": "matrix, input",
            "experts.up_bias": "scalar, Constant(value=0.5)",
            "experts.down": "matrix, output",
            "experts.down_bias": "scalar, Constant(value=0.5)",
        },
    ),
    (
        "stem.bigram_hash",
        {},
        {
            "scale": "control, Constant(value=0.05)",
            "table.weight": "embedding, Constant(value=0.0)",
            "projection.weight": "matrix, input",
        },
    ),
    (
        "stem.bigram_hash",
        {"projection": "orthogonal"},
        {
            "scale": "control, Constant(value=0.05)",
            "table.weight": "embedding, Constant(value=0.0)",
            "projection.weight": "matrix, Orthogonal(gain=0.5)",
        },
    ),
    (
        "stem.ngram_hash",
        {"scale": 0.5},
        {
            "scale": "control, Constant(value=0.5)",
            "table.weight": "embedding, Constant(value=0.0)",
            "projection.weight": "matrix, input",
        },
    ),
    ("stem.smear_gate", {}, {"gate": "control, Constant(value=0.0)"}),
    (
        "stem.smear_gate",
        {"form": "additive"},
        {"gate": "control, Constant(value=0.0)", "scale": "control, Constant(value=0.0)"},
    ),
    ("stem.smear_gate", {"start": "halve"}, {"gate": "control, Constant(value=0.0)"}),
    ("stem.x0_mix", {}, {"mix": "control, Rows(values=(1.0, 0.0))"}),
    (
        "layer.pre_norm",
        {"branch_scale": "learned"},
        {"attention_scale": "control, Constant(value=1.0)", "ffn_scale": "control, Constant(value=1.0)"},
    ),
    ("trunk.unet", {}, {"skip": "control, Constant(value=1.0)"}),
    ("head.untied", {}, {"out.weight": "head, head"}),
]


@pytest.mark.parametrize(
    ("name", "knobs", "wanted"), FIRST_DRAWS, ids=lambda item: item if isinstance(item, str) else ""
)
def test_a_kind_draws_its_parameters_as_it_did(name: str, knobs: dict[str, Any], wanted: dict[str, str]) -> None:
    part = find(name)
    with torch.device("meta"):
        model = Model(subjects(part, knobs)[0][0].config, seed=None)
    scope = next(n for n, module in model.named_modules() if type(module) is part) + "."
    guests = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, Block) and n.startswith(scope))
    own = [entry for entry in entries(model) if entry.name.startswith(scope) and not entry.name.startswith(guests)]
    assert {entry.name.removeprefix(scope): f"{entry.role}, {entry.init}" for entry in own} == wanted


def test_a_site_and_a_model_mean_what_they_meant() -> None:
    assert Site(8) == Site(dim=8, n_layers=1, vocab_size=256, context=1024, index=-1)
    assert HeadSite(8) == HeadSite(dim=8, n_heads=1, head_dim=1)
    config = ModelConfig()
    assert (config.vocab_size, config.context, config.dim, config.n_layers) == (None, 256, 128, 4)
    kinds = (config.init, config.trunk, config.layer, config.norm, config.head)
    assert [knob.part.kind for knob in kinds] == ["normal", "plain", "pre_norm", "rms_norm", "tied"]
    assert (config.stem, config.where) == ((), ())

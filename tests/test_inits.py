"""First draws have their size, and published models their number of parameters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pieces import small
from torch import Tensor

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.core.experts import Experts
from zoo.core.params import Init, Use, initialise
from zoo.model import Model, ModelConfig


def test_the_first_loss_is_near_the_logarithm_of_the_vocabulary():
    tokens = torch.randint(0, 1024, (4, 32), generator=torch.Generator().manual_seed(0))
    for init in ("normal", "orthogonal", "fan_in"):
        loss = small(2, vocab=1024, init=init)(tokens, tokens.roll(-1, 1)).nll.mean().item()
        assert loss == pytest.approx(math.log(1024), abs=0.1), init


def test_a_tied_normal_head_starts_as_much_above_it_as_its_logits_vary():
    """Logits of variance dim x std^2 cost half of that: ln V + dim std^2 / 2."""
    tokens = torch.randint(0, 2048, (4, 32), generator=torch.Generator().manual_seed(0))
    model = small(2, dim=512, vocab=2048, init={"kind": "normal", "embedding_std": 0.03})
    loss = model(tokens, tokens.flip(1)).nll.mean().item()
    assert loss == pytest.approx(math.log(2048) + 512 * 0.03**2 / 2, abs=0.03)


def drawn(init: Any, use: Use, *shape: int, n_layers: int = 8) -> Tensor:
    t = torch.empty(shape)
    Init.parse(init).build().rule(use, shape, n_layers)(t, torch.Generator().manual_seed(0))
    return t


@pytest.mark.parametrize(
    ("init", "use", "std"),
    [
        ("normal", Use.INPUT, 0.02),
        ("normal", Use.OUTPUT, 0.02 / 4),
        ({"kind": "normal", "output": "same"}, Use.OUTPUT, 0.02),
        ({"kind": "normal", "output": "zero"}, Use.OUTPUT, 0.0),
        ({"kind": "normal", "embedding_std": 0.1}, Use.EMBEDDING, 0.1),
        ({"kind": "normal", "head_std": 0.3}, Use.HEAD, 0.3),
        ("orthogonal", Use.INPUT, 300**-0.5),
        ("orthogonal", Use.OUTPUT, 0.0),
        ("orthogonal", Use.EMBEDDING, 0.005),
        ("fan_in", Use.INPUT, 200**-0.5),
        ("fan_in", Use.OUTPUT, 0.0),
        ("fan_in", Use.EMBEDDING, 0.02),
    ],
)
def test_first_draws_have_their_size(init: Any, use: Use, std: float):
    t = drawn(init, use, 300, 200)
    assert t.square().mean().sqrt().item() == pytest.approx(std, rel=0.02)


def test_orthogonal_draws_are_orthogonal_and_so_is_every_expert():
    torch.testing.assert_close(
        drawn("orthogonal", Use.INPUT, 9, 30) @ drawn("orthogonal", Use.INPUT, 9, 30).T, torch.eye(9), rtol=0, atol=1e-5
    )
    experts = Experts(3, 8, 20, "silu", None)
    initialise(experts, 0, Init.parse("orthogonal").build(), 4)
    torch.testing.assert_close(experts.up.mT @ experts.up, torch.eye(8).expand(3, 8, 8), rtol=0, atol=1e-5)
    assert not torch.allclose(experts.up[0], experts.up[1])
    assert experts.down.abs().max() == 0


def test_experts_are_drawn_as_large_as_a_dense_mlp():
    experts = Experts(4, 64, 256, "silu", None)
    initialise(experts, 0, Init.parse("normal").build(), 8)
    assert experts.up.std().item() == pytest.approx(0.02, rel=0.02)
    assert experts.down.std().item() == pytest.approx(0.02 / 4, rel=0.02)


# --- published counts -------------------------------------------------------------------------------------------------

PLAIN_RMS = {"kind": "rms_norm", "weight": "none"}
MOE = {"kind": "moe", "hidden_dim": 2048}
LATENTS = {"kind": "latent_tokens", "n_heads": 12, "n_kv_heads": 4}
PUBLISHED = {
    "12 layers, 4 experts": (
        159_019_568,
        {"vocab_size": 49152, "dim": 512, "n_layers": 12, "head": "untied"},
        {
            "attention": {"kind": "gqa", "n_heads": 8, "n_kv_heads": 2},
            "ffn": {**MOE, "n_experts": 4, "expert_bias": 0.0, "router_bias": 0.0},
        },
    ),
    "24 layers, 8 experts": (
        679_809_792,
        {"vocab_size": 49152, "dim": 768, "n_layers": 24},
        {"attention": LATENTS, "ffn": MOE},
    ),
    "24 layers, 8 experts with biases": (
        680_350_464,
        {"vocab_size": 49152, "dim": 768, "n_layers": 24},
        {"attention": LATENTS, "ffn": {**MOE, "expert_bias": 0.0}},
    ),
    "10 layers, compact": (
        24_730_705,
        {
            "vocab_size": 1024,
            "dim": 512,
            "n_layers": 10,
            "stem": ("bigram_hash", PLAIN_RMS, "smear_gate"),
            "trunk": "unet",
            "norm": PLAIN_RMS,
        },
        {
            "stem": ("x0_mix",),
            "norm": {"kind": "ln_scale", "norm": PLAIN_RMS},
            "branch_scale": "learned",
            "attention": {"kind": "gqa", "n_heads": 8, "n_kv_heads": 4, "qk_norm": PLAIN_RMS, "qk_gain": 1.5},
            "ffn": {"kind": "leaky_relu2", "hidden_dim": 1536},
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_parameters(name: str):
    total, sizes, layer = PUBLISHED[name]
    with torch.device("meta"):
        model = Model(ModelConfig.model_validate({**sizes, "layer": {"kind": "pre_norm", **layer}}), seed=None)
    assert sum(p.numel() for p in model.parameters()) == total

"""Parameters that are cast once: the same bits, in fewer casts, and the model as it was afterwards."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

import zoo.blocks
import zoo.scoring
import zoo.scoring.rolling
from zoo.model import Model, ModelConfig
from zoo.scoring.casts import cast_once
from zoo.scoring.slots import Scorer

assert zoo.blocks and zoo.scoring  # imported for the kinds they register

V = 11
LAYERS = {
    "gqa": {"attention": {"kind": "gqa", "n_heads": 2}},
    "mla": {"attention": {"kind": "mla", "n_heads": 2, "kv_lora_rank": 8, "qk_rope_head_dim": 4}},
    "latent_tokens": {"attention": {"kind": "latent_tokens", "n_heads": 2}},
    "moe": {"ffn": {"kind": "moe", "n_experts": 3, "hidden_dim": 16}},  # its router reads in fp32
}


def model_of(layer: str, head: str = "tied") -> Model:
    config = {"vocab_size": V, "dim": 16, "n_layers": 2, "context": 8, "head": head}
    model = Model(ModelConfig(**config, layer={"kind": "pre_norm", **LAYERS[layer]}), stream=torch.bfloat16, seed=1)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return model.eval()


def rolled(model: Model) -> float:
    tokens = np.random.default_rng(0).integers(0, V, 60)
    return Scorer.parse({"kind": "rolling", "stride": 4}).build().score(model, tokens, tokens, 8, 1).nats


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("head", ["tied", "untied"])
def test_rolling_scores_the_same_bits_with_and_without(layer: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, casts = model_of(layer, head), []
    own = torch.Tensor.to

    def counted(t: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        if isinstance(t, torch.nn.Parameter):
            casts.append(t)
        return own(t, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", counted)
    once, n_once = rolled(model), len(casts)
    monkeypatch.setattr(zoo.scoring.rolling, "cast_once", nullcontext)
    assert rolled(model) == once, "the same numbers"
    assert 0 < n_once <= 2 * len(list(model.parameters())) < len(casts) - n_once


def test_a_parameter_is_cast_once_to_each_dtype_and_other_requests_pass() -> None:
    model = model_of("gqa")
    weight = model.layer[0].attention.query.weight
    with cast_once(model):
        kept = model.layer[0].attention.query.weight
        assert kept.to(torch.bfloat16) is kept.to(torch.bfloat16) and kept.to(torch.float64) is kept.to(torch.float64)
        assert torch.equal(kept.to(torch.bfloat16), weight.to(torch.bfloat16)) and kept.data_ptr() == weight.data_ptr()
        assert kept.to("meta").is_meta and kept.to(dtype=torch.float64).dtype == torch.float64
        assert model.head.matrix() is model.embedding.weight, "tied ones stay one"
        assert [name for name, _ in model.named_parameters()] == list(model.state_dict())


def test_the_model_is_as_it_was_afterwards_even_when_scoring_fails() -> None:
    model = model_of("gqa")
    before = dict(model.named_parameters())
    with pytest.raises(ZeroDivisionError), cast_once(model):
        assert all(type(p) is not torch.nn.Parameter for p in model.parameters())
        raise ZeroDivisionError
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert all(type(p) is torch.nn.Parameter and p.requires_grad for p in after.values())

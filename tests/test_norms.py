"""Norms against torch's and transformers' own, and by depth."""

from __future__ import annotations

import math

import pytest
import torch
from pieces import DIM, copied, randomise, same, small, stream
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.core.params import Init, initialise
from zoo.core.slots import Norm, Site
from zoo.core.wires import Bus

RTOL = {torch.float32: 1e-6, torch.float64: 1e-13}


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm"])
def test_norms_equal_torchs(kind: str, dtype: torch.dtype):
    ours = randomise(Norm.parse({"kind": kind, "eps": 0.01}).build(Site(DIM))).to(dtype)
    theirs = {"rms_norm": nn.RMSNorm, "layer_norm": nn.LayerNorm}[kind](DIM, eps=0.01)
    same(ours, copied(ours, theirs), stream(2, 5, DIM, dtype=dtype), RTOL[dtype])


@pytest.mark.parametrize(("weight", "theirs"), [("scale", LlamaRMSNorm), ("unit_offset", Gemma2RMSNorm)])
def test_rms_norm_equals_transformers(weight: str, theirs: type[nn.Module]):
    ours = randomise(Norm.parse({"kind": "rms_norm", "eps": 0.01, "weight": weight}).build(Site(DIM)))
    same(ours, copied(ours, theirs(DIM, eps=0.01)), stream(2, 5, DIM, dtype=torch.float32), 1e-6)


@pytest.mark.parametrize("weight", ["scale", "unit_offset", "none"])
def test_every_rms_norm_starts_as_the_plain_one(weight: str):
    norm = Norm.parse({"kind": "rms_norm", "weight": weight}).build(Site(DIM))
    initialise(norm, 0, Init.parse("normal").build(), 1)
    x = stream(2, 5, DIM, dtype=torch.float32)
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt())
    assert sum(p.numel() for p in norm.parameters()) == (0 if weight == "none" else DIM)


@pytest.mark.parametrize("kind", ["rms_norm", "layer_norm"])
def test_norms_of_a_bf16_stream_compute_in_fp32(kind: str):
    """Squares of 300 stay 90000, and the mean over many entries is not a bf16 sum: one rounding at the end."""
    norm = Norm.parse(kind).build(Site(4096))
    initialise(norm, 0, Init.parse("normal").build(), 1)
    x = (300 * stream(4, 4096, dtype=torch.float64)).to(torch.bfloat16)
    torch.testing.assert_close(norm(x), norm(x.double()).to(torch.bfloat16), rtol=2**-8, atol=0)


def test_the_absent_norm_is_the_identity():
    x = stream(2, 5, DIM)
    assert Norm.parse("none").build(Site(DIM))(x) is x


@pytest.mark.parametrize("index", [0, 1, 8])
def test_ln_scale_divides_by_the_root_of_the_layers_number(index: int):
    scaled = randomise(Norm.parse("ln_scale").build(Site(DIM, n_layers=9, index=index))).double()
    x = stream(2, 5, DIM)
    torch.testing.assert_close(scaled(x), scaled.norm(x) / math.sqrt(index + 1), rtol=1e-7, atol=1e-7)


def test_ln_scale_leaves_the_final_norm_and_acts_squared_on_a_squared_relu():
    layer = {"kind": "pre_norm", "norm": {"kind": "ln_scale", "norm": "none"}, "ffn": "relu2"}
    model = small(4, layer=layer, norm="ln_scale").double()
    x = stream(2, 5, DIM)
    torch.testing.assert_close(model.norm(x), model.norm.norm(x))
    for number, block in enumerate(model.layer, 1):
        plain, scaled = block.ffn(x, Bus()), block.ffn(block.ffn_norm(x), Bus())
        torch.testing.assert_close(scaled, plain / number, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("weight", ["scale", "unit_offset", "none"])
def test_rms_norms_backward_is_that_of_its_formula(weight: str):
    norm = randomise(Norm.parse({"kind": "rms_norm", "weight": weight, "eps": 0.01}).build(Site(DIM))).double()
    x = stream(3, 5, DIM)
    assert torch.autograd.gradcheck(norm, [x.detach()[:1, :2].requires_grad_()])
    factor = 1.0 if norm.weight is None else norm.weight + norm.offset
    given, leaves = stream(3, 5, DIM, seed=7).detach(), [x, *norm.parameters()]
    wanted = torch.autograd.grad(x / (x.square().mean(-1, keepdim=True) + 0.01).sqrt() * factor, leaves, given)
    for ours, theirs in zip(torch.autograd.grad(norm(x), leaves, given), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

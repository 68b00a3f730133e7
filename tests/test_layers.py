"""Layers and trunks against their formulas, and in the order that they promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pieces import DIM, randomise, small, stream
from torch import nn

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.core.params import Role, roles
from zoo.core.slots import Site, Trunk
from zoo.core.wires import Bus


def test_pre_norm_is_its_formula():
    block = randomise(small(1, layer={"branch_scale": "learned"}).layer[0]).double()
    x = stream(2, 5, DIM)
    middle = x + block.attention_scale * block.attention(block.attention_norm(x), Bus())
    expected = middle + block.ffn_scale * block.ffn(block.ffn_norm(middle), Bus())
    torch.testing.assert_close(block(x, Bus()), expected)
    assert roles(block)["attention_scale"] is roles(block)["ffn_scale"] is Role.CONTROL


def test_learned_branch_scales_start_as_plain_branches():
    tokens = torch.arange(10).view(2, 5)
    plain, scaled = small(2), small(2, layer={"branch_scale": "learned"})
    torch.testing.assert_close(plain(tokens).logits, scaled(tokens).logits)
    count = [sum(p.numel() for p in model.parameters()) for model in (plain, scaled)]
    assert count[1] - count[0] == 2 * 2 * DIM


def affine(numbers: list[float]) -> list[Any]:
    """Layers that each multiply by 10 and add a number, so that the result spells the order."""
    return [lambda x, n=n: 10 * x + n for n in numbers]


@pytest.mark.parametrize("n_layers", [1, 2, 3, 4, 5, 8])
def test_unet_takes_skips_last_first(n_layers: int):
    trunk = Trunk.parse("unet").build(Site(1, n_layers=n_layers))
    half = n_layers // 2
    weights = [100.0 * (i + 1) for i in range(half)]
    if half:
        with torch.no_grad():
            trunk.skip.copy_(torch.tensor(weights)[:, None])
    steps = affine([float(i + 1) for i in range(n_layers)])
    x, kept = 1.0, []
    for i in range(n_layers):
        if i >= half and kept:
            x += weights[i - half] * kept.pop()
        x = 10 * x + (i + 1)
        if i < half:
            kept.append(x)
    found = trunk.double()(torch.ones(1, 1, 1, dtype=torch.float64), steps)
    assert found.item() == pytest.approx(x, rel=1e-12)
    assert sum(p.numel() for p in trunk.parameters()) == half
    assert set(roles(trunk).values()) == ({Role.CONTROL} if half else set())


def test_unet_with_closed_skips_is_the_plain_trunk():
    unet = Trunk.parse("unet").build(Site(DIM, n_layers=5))
    nn.init.zeros_(unet.skip)
    steps, x = affine([1.0, 2.0, 3.0, 4.0, 5.0]), stream(1, 2, DIM)
    assert torch.equal(unet(x, steps), Trunk.parse("plain").build(Site(DIM))(x, steps))


def test_the_published_compact_body_returns_six_times_x0_at_first():
    """Zero outputs, five open skips: the fifth and later layers add what the first five left as it was."""
    layer = {"norm": "ln_scale", "stem": ("x0_mix",), "branch_scale": "learned"}
    model = small(10, trunk="unet", layer=layer, init="orthogonal", stem=("rms_norm", "smear_gate"), norm="none")
    tokens = torch.arange(10).view(2, 5)
    x0 = model.stem(model.embedding(tokens), Bus())
    torch.testing.assert_close(model(tokens).logits, 6 * x0 @ model.embedding.weight.T)

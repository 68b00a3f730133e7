"""Latent tokens: a learned prefix that everybody sees, and that sees nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import DIM, GROUPS, HEADS, WIDTH, build, run_ours
from torch import Tensor

from zoo.core.params import Role, roles
from zoo.core.slots import Attention
from zoo.core.wires import SEGMENTS, Bus
from zoo.model import Model, ModelConfig

GROUPED: dict[str, Any] = {"n_heads": HEADS, "n_kv_heads": GROUPS}
LATENT = {"kind": "latent_tokens", **GROUPED}
RMS = {"kind": "rms_norm", "eps": 1e-12}
SOURCES = ("embed", "kv")


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def keep_last(block: Attention) -> None:
    """The output projection as the identity, so that heads can be seen."""
    with torch.no_grad():
        block.projection.weight.copy_(torch.eye(DIM))


@pytest.mark.parametrize("source", SOURCES)
def test_no_latents_is_plain_attention(source: str) -> None:
    plain, none = (
        build({"kind": "gqa", **GROUPED}).double(),
        build({**LATENT, "n_latents": 0, "source": source}).double(),
    )
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in none.named_parameters()]
    x = rand(2, 9, DIM)
    assert torch.equal(run_ours(plain, x), run_ours(none, x))
    assert plain.extra_flops(16) == none.extra_flops(16)


@pytest.mark.parametrize("source", SOURCES)
def test_their_order_is_nothing(source: str) -> None:
    block, x = build({**LATENT, "source": source, "n_latents": 5}).double(), rand(2, 9, DIM)
    before = run_ours(block, x)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        for p in (block.latents, block.latent_keys, block.latent_values):
            if p is not None:
                p.copy_(p.index_select(-2, order))
    assert torch.allclose(run_ours(block, x), before, atol=1e-12)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("position", ["zero", "nope"])
def test_the_twin_without_a_mask(source: str, position: str) -> None:
    """Per query: softmax over the latents' scores and those of the tokens up to it, written out."""
    knobs = {"source": source, "latent_position": position, "n_latents": 3, "qk_norm": RMS, "qk_gain": 1.5}
    block, x, n_tokens = build({**LATENT, **knobs}).double(), rand(1, 6, DIM), 6
    keep_last(block)
    q = block.q_norm(block.split(block.query(x)))[0] * block.gain[:, None, None]
    k = block.position(block.k_norm(block.split(block.key(x))), Bus())[0]
    v = block.split(block.value_projection(x))[0]
    turned = block.position(q[None], Bus())[0]
    if source == "embed":
        latent_k = block.k_norm(block.split(block.key(block.latents)[None]))[0]
        latent_v = block.split(block.value_projection(block.latents)[None])[0]
    else:
        latent_k, latent_v = block.k_norm(block.latent_keys), block.latent_values
    got = run_ours(block, x)[0].view(n_tokens, HEADS, WIDTH)
    for t in range(n_tokens):
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            asks = turned[head, t] if position == "zero" else q[head, t]
            scores = torch.cat([latent_k[group] @ asks, k[group, : t + 1] @ turned[head, t]]) * WIDTH**-0.5
            values = torch.cat([latent_v[group], v[group, : t + 1]])
            assert torch.allclose(got[t, head], scores.softmax(0) @ values, atol=1e-12)


def test_embedded_latents_are_keys_and_values() -> None:
    """With K = A W_k and V = A W_v put in by hand, ``kv`` is ``embed``; weighted QK-norm and gain included."""
    knobs = {"qk_norm": RMS, "qk_gain": 1.5, "n_latents": 5}
    embed, kv = (build({**LATENT, **knobs, "source": source}).double() for source in SOURCES)
    state = {n: t for n, t in embed.state_dict().items() if n != "latents"}
    state["latent_keys"] = embed.split(embed.key(embed.latents)[None])[0]
    state["latent_values"] = embed.split(embed.value_projection(embed.latents)[None])[0]
    kv.load_state_dict(state)
    x = rand(2, 9, DIM)
    assert torch.allclose(run_ours(embed, x), run_ours(kv, x), atol=1e-12)


def test_the_first_token_shares_with_the_latents() -> None:
    """With latent values of 0 and keys of 0, M latents take M / (M + Z) of each result: a sink."""
    block, x = build({**LATENT, "source": "kv", "n_latents": 4, "position": "none"}).double(), rand(1, 5, DIM)
    keep_last(block)
    with torch.no_grad():
        block.latent_keys.zero_()
        block.latent_values.zero_()
    q, k, v = (block.split(p(x)) for p in (block.query, block.key, block.value_projection))
    k, v = (t.repeat_interleave(HEADS // GROUPS, 1) for t in (k, v))
    z = (q[:, :, 0] * k[:, :, 0]).sum(-1).mul(WIDTH**-0.5).exp()  # (1, H)
    want = v[:, :, 0] * (z / (z + 4))[..., None]
    got = run_ours(block, x)[:, 0].view(1, HEADS, WIDTH)
    assert torch.allclose(got, want, atol=1e-12)
    assert bool(((z / (z + 4) > 0) & (z / (z + 4) < 1)).all())
    assert not torch.allclose(got, v[:, :, 0], atol=1e-2)


@pytest.mark.parametrize("source", SOURCES)
def test_the_future_is_unseen_to_the_bit(source: str) -> None:
    block, x = build({**LATENT, "source": source}).double(), rand(2, 9, DIM)
    before = run_ours(block, x)
    changed = x.clone()
    changed[:, 5:] += 1.0
    after = run_ours(block, changed)
    assert torch.equal(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:], atol=1e-2)


def test_every_document_sees_them() -> None:
    block, x = build(LATENT).double(), rand(1, 9, DIM)
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2]])
    whole = run_ours(block, x, segments)
    for span in (slice(0, 4), slice(4, 7), slice(7, 9)):
        assert torch.allclose(whole[:, span], run_ours(block, x[:, span]), atol=1e-12)


def test_they_take_no_value_residual() -> None:
    """The wire carries the tokens' values alone, (B, G, T, h)."""
    block, x = build({**LATENT, "value": "residual"}).double(), rand(2, 9, DIM)
    bus = Bus({SEGMENTS: torch.zeros(2, 9, dtype=torch.long)})
    block(x, bus)
    (said,) = bus.close()[0].values()
    assert torch.equal(said, block.split(block.value_projection(x)))


@pytest.mark.parametrize(("source", "extra"), [("embed", 8 * DIM), ("kv", 2 * GROUPS * 8 * WIDTH)])
def test_their_parameters(source: str, extra: int) -> None:
    """M D, or 2 G M h, per layer: control parameters, drawn as stated."""
    plain, block = build({"kind": "gqa", **GROUPED}), build({**LATENT, "source": source})
    assert sum(p.numel() for p in block.parameters()) - sum(p.numel() for p in plain.parameters()) == extra
    model = Model(
        ModelConfig(vocab_size=64, dim=DIM, n_layers=2, layer={"kind": "pre_norm", "attention": block_table(source)})
    )
    latents = {n: p for n, p in model.named_parameters() if "latent" in n}
    assert {roles(model)[name] for name in latents} == {Role.CONTROL}
    std = 0.02 if source == "embed" else 1.0
    assert all(abs(float(p.detach().std()) / std - 1) < 0.2 for p in latents.values())


def block_table(source: str) -> dict[str, Any]:
    """A latent attention that also has a gain, whose role and first value must not hide the latents'."""
    return {**LATENT, "source": source, "qk_gain": 1.5}

"""Jitter and dropout of a mixture: where they act, how they are drawn, and when not at all."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixtures import DIM, build, notebook, run, stream

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.core.slots import FeedForward
from zoo.core.wires import Bus, mix, mix32


def test_jitter_reaches_the_router_and_not_the_experts():
    calm, jittered = build(), build(jitter=0.5)
    x = stream(2, 5, DIM)
    assert (run(calm, x)[0] - run(jittered, x)[0]).abs().max() > 1e-3
    with torch.no_grad():
        for block in (calm, jittered):
            for p in block.experts.parameters():
                p.copy_(p[:1].expand_as(p))
    torch.testing.assert_close(run(calm, x)[0], run(jittered, x)[0], rtol=1e-12, atol=1e-12)


def test_jitter_is_uniform_around_one():
    block, x = build(jitter=0.25), torch.ones(8, 64, DIM, dtype=torch.float64)
    seen = []
    block.router.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    run(block, x)
    low, mean, high = seen[0].min().item(), seen[0].mean().item(), seen[0].max().item()
    assert 0.75 <= low < 0.751
    assert 1.249 < high <= 1.25
    assert mean == pytest.approx(1, abs=5 * 0.25 / (3 * seen[0].numel()) ** 0.5)


def test_dropout_zeroes_entries_of_expert_outputs_and_keeps_their_mean():
    block, whole = build(n_experts=1, top_k=1, dropout=0.3), build(n_experts=1, top_k=1)
    x = stream(8, 128, DIM)
    y, full = run(block, x)[0], run(whole, x)[0]
    dropped = y == 0
    torch.testing.assert_close(y[~dropped], full[~dropped] / 0.7)
    assert dropped.double().mean().item() == pytest.approx(0.3, abs=5 * (0.21 / y.numel()) ** 0.5)


def test_dropout_of_two_experts_is_drawn_for_each():
    block = build(n_experts=2, top_k=2, dropout=0.5)
    with torch.no_grad():
        for p in block.experts.parameters():
            p.copy_(p[:1].expand_as(p))
        block.router.weight.zero_()
    x = stream(4, 64, DIM)
    kept = run(block, x)[0] / run(build_like(block), x)[0]
    assert {round(v, 6) for v in kept.flatten().tolist()} == {0.0, 1.0, 2.0}  # none, one or both of two equal halves


def build_like(block: FeedForward) -> FeedForward:
    """The same without dropout."""
    other = copy.deepcopy(block)
    other.dropout = 0.0
    return other


def test_nothing_is_noisy_or_reported_in_evaluation():
    block, x = build(jitter=0.5, dropout=0.5, z_loss=1.0, balance="aux_loss"), stream(2, 5, DIM)
    calm = build(balance="aux_loss").eval()
    bus = Bus()
    torch.testing.assert_close(block.eval()(x, bus), calm(x, Bus()), rtol=0, atol=0)
    assert bus.close()[1] == ({}, {})


def test_noise_depends_on_the_step_and_is_replayed():
    block, x = build(jitter=0.3, dropout=0.3), stream(2, 5, DIM)
    first, again, other = (block(x, notebook(step)) for step in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@given(st.integers(-(2**31), 2**31 - 1))
def test_the_fast_hash_of_noise_equals_the_slow_one(bits: int):
    fast = mix32(torch.tensor([bits], dtype=torch.int32))
    assert int(fast) & 0xFFFFFFFF == int(mix(torch.tensor(bits)))

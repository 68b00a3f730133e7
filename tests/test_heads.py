"""Heads: the loss token by token, in chunks, capped, tied and untied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pieces import DIM, VOCAB, randomise, small, stream
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma2Config, Gemma2ForCausalLM

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.core.cross_entropy import linear_cross_entropy
from zoo.core.params import Embedding, Role, roles
from zoo.core.slots import IGNORE, Head, Site


def head(kind: str = "untied", dtype: torch.dtype = torch.float64, dim: int = DIM, **knobs: Any) -> Head:
    embedding = randomise(Embedding(VOCAB, dim)).to(dtype)
    return randomise(Head.parse({"kind": kind, **knobs}).build(Site(dim, vocab_size=VOCAB), embedding)).to(dtype)


def some_targets(rows: int, n: int) -> Tensor:
    targets = torch.randint(0, VOCAB, (rows, n), generator=torch.Generator().manual_seed(2))
    targets[0, 1] = targets[1, n - 1] = IGNORE
    return targets


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_nll_is_minus_the_log_probability_of_the_target(kind: str):
    block, x, targets = head(kind), stream(2, 7, DIM), some_targets(2, 7)
    z = x @ block.matrix().T
    torch.testing.assert_close(block.logits(x), z)
    nll = block.nll(x, targets)
    for b in range(2):
        for t in range(7):
            wanted = targets[b, t].item()
            expected = 0.0 if wanted == IGNORE else z[b, t].logsumexp(0) - z[b, t, wanted]
            torch.testing.assert_close(nll[b, t], torch.as_tensor(expected, dtype=nll.dtype), rtol=1e-12, atol=1e-12)


def test_ignored_targets_give_no_gradient():
    block, x, targets = head(), stream(2, 7, DIM), some_targets(2, 7)
    (grad,) = torch.autograd.grad(block.nll(x, targets).sum(), x)
    assert grad[targets == IGNORE].abs().max() == 0
    assert (grad[targets != IGNORE].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_chunks_change_neither_values_nor_gradients(kind: str, softcap: float | None, dtype: torch.dtype):
    found = []
    for rows in (1, 4, 5, 100):
        block = head(kind, dtype, softcap=softcap, chunk_elements=rows * VOCAB)
        x, targets = stream(2, 7, DIM, dtype=dtype), some_targets(2, 7)
        nll = block.nll(x, targets)
        upstream = torch.linspace(0.5, 1.5, 14, dtype=dtype).view(2, 7)
        found.append([nll, *torch.autograd.grad(nll, [x, block.matrix()], upstream)])
    for pieces in found[:-1]:
        for part, whole in zip(pieces, found[-1], strict=True):
            rtol = 1e-12 if dtype == torch.float64 else 2e-5
            torch.testing.assert_close(part, whole, rtol=rtol, atol=rtol)


def test_no_logits_are_kept_for_the_backward():
    def largest_kept(chunk_elements: int) -> int:
        block, sizes = head(chunk_elements=chunk_elements), [0]
        weights = {p.untyped_storage().data_ptr() for p in block.parameters()}

        def pack(t: Tensor) -> Tensor:
            if t.untyped_storage().data_ptr() not in weights:
                sizes.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            block.nll(stream(4, 40, DIM), torch.zeros(4, 40, dtype=torch.long))
        return max(sizes)

    assert head(chunk_elements=1).chunk == head(chunk_elements=2 * VOCAB - 1).chunk == 1
    assert largest_kept(160 * VOCAB) <= 160 * DIM < 160 * VOCAB
    assert largest_kept(10 * VOCAB) <= 160 * DIM


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_gradient_is_that_of_torchs_own_cross_entropy(softcap: float | None, ahead: bool):
    """``ahead``: one upstream gradient for all tokens, which a CPU has prepared for; else one for each."""
    x, targets, cap = stream(2, 7, DIM), some_targets(2, 7), softcap
    weight = randomise(Embedding(VOCAB, DIM)).double().weight
    upstream = torch.full((14,), 0.3) if ahead else torch.linspace(-1, 2, 14)
    z = x.flatten(0, 1) @ weight.T
    z = z if cap is None else cap * torch.tanh(z / cap)
    wanted = F.cross_entropy(z, targets.flatten(), ignore_index=IGNORE, reduction="none")
    found = linear_cross_entropy(x.flatten(0, 1), weight, targets.flatten(), IGNORE, 5, cap)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    for again in (False, True):  # what was prepared serves once; a second backward computes
        theirs = torch.autograd.grad(wanted, [x, weight], upstream.double(), retain_graph=True)
        ours = torch.autograd.grad(found, [x, weight], upstream.double(), retain_graph=True)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13, msg=lambda m, again=again: f"{again}: {m}")


def test_a_frozen_stream_or_matrix_gets_no_gradient_and_the_other_does():
    x, targets = stream(2, 7, DIM).flatten(0, 1), some_targets(2, 7).flatten()
    weight = randomise(Embedding(VOCAB, DIM)).double().weight
    both = torch.autograd.grad(linear_cross_entropy(x, weight, targets, IGNORE, 5).sum(), [x, weight])
    (for_x,) = torch.autograd.grad(linear_cross_entropy(x, weight.detach(), targets, IGNORE, 5).sum(), x)
    (for_weight,) = torch.autograd.grad(linear_cross_entropy(x.detach(), weight, targets, IGNORE, 5).sum(), weight)
    assert torch.equal(for_x, both[0]) and torch.equal(for_weight, both[1])
    assert not linear_cross_entropy(x.detach(), weight.detach(), targets, IGNORE, 5).requires_grad


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_logits_and_loss_of_a_bf16_stream_are_fp32(kind: str):
    block, x = head(kind, torch.float32, softcap=30.0), stream(2, 7, DIM, dtype=torch.bfloat16)
    assert block.logits(x).dtype == block.nll(x, some_targets(2, 7)).dtype == torch.float32
    assert head(kind).logits(stream(2, 7, DIM)).dtype == torch.float64
    assert block.logits(x).to(torch.bfloat16).ne(block.logits(x)).any()  # the cap itself is not rounded to bf16


def test_softcap_equals_gemma_2():
    config = Gemma2Config(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=3.0,
    )
    torch.manual_seed(0)
    theirs = Gemma2ForCausalLM(config).double().eval()
    nn.init.normal_(theirs.model.embed_tokens.weight)
    tokens = torch.arange(14).view(2, 7)
    hidden = theirs.model(tokens).last_hidden_state
    ours = head("tied", softcap=3.0)
    with torch.no_grad():
        ours.matrix().copy_(theirs.lm_head.weight)
    logits = ours.logits(hidden)
    torch.testing.assert_close(logits, theirs(tokens).logits, rtol=1e-12, atol=1e-12)
    assert 2.5 < logits.abs().max() <= 3
    assert (hidden @ theirs.lm_head.weight.T).abs().max() > 4  # so the cap is at work


@given(st.floats(0.5, 50), st.floats(-1e4, 1e4))
def test_softcap_is_bounded_odd_and_the_identity_near_zero(cap: float, z: float):
    block = head(dim=1, softcap=cap)
    with torch.no_grad():
        block.matrix().fill_(1.0)

    def capped(value: float) -> float:
        return block.logits(torch.tensor([[[value]]], dtype=torch.float64))[0, 0, 0].item()

    assert abs(capped(z)) <= cap
    assert capped(-z) == -capped(z)
    assert capped(1e-4 * cap) == pytest.approx(1e-4 * cap, rel=1e-6)


def test_a_tied_head_has_no_parameter_of_its_own_and_an_untied_one_has_its_role():
    assert sum(p.numel() for p in head("tied").parameters()) == 0
    assert roles(head("untied")) == {"out.weight": Role.HEAD}
    found = roles(small(1))
    assert found["embedding.weight"] is Role.EMBEDDING
    assert not [name for name in found if name.startswith("head")]


def test_a_tied_matrix_learns_from_both_ends():
    model = small(1, init="orthogonal").double()
    tokens = torch.arange(5)[None]
    out = model(tokens, tokens + 10)
    (grad,) = torch.autograd.grad(out.nll.sum(), model.embedding.weight)
    assert (grad.abs().amax(-1) > 0).all()  # every row through the softmax
    assert grad[:5].norm() > 5 * grad[20:].norm()  # and the tokens that were read through the body


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_flops_of_the_head_equal_a_counter(kind: str):
    block = head(kind)
    with FlopCounterMode(display=False) as counter:
        block.logits(stream(2, 7, DIM))
    linear = 2 * VOCAB * DIM if kind == "untied" else 0
    assert 14 * (block.extra_flops(7) + linear) == counter.get_total_flops()

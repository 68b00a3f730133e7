"""Whole models against transformers: logits, loss and the gradient of every parameter, auxiliary losses included."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from oracles import relative
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from whole_models import (
    AUX,
    CHOSEN,
    EXPERTS,
    VOCAB,
    WHOLE,
    EverythingInFp64,
    build_ours,
    build_theirs,
    copy_over,
    widen,
)
from whole_models import gradients as theirs_by_our_names

BOUND = {torch.float32: 1e-5, torch.float64: 1e-13}
TOKENS = torch.randint(VOCAB, (3, 21), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", BOUND, ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_model_agrees_with_transformers(name: str, dtype: torch.dtype) -> None:
    whole, mixture = WHOLE[name], name in ("mixtral", "olmoe")
    ours = build_ours(whole)
    with EverythingInFp64() if dtype == torch.float64 else contextlib.nullcontext():
        theirs = build_theirs(whole).to(dtype).eval()
        if dtype == torch.float64:
            widen(ours)
        copy_over(whole, ours, theirs)
        said = theirs(TOKENS[:, :-1], output_router_logits=True) if mixture else theirs(TOKENS[:, :-1])
        loss = F.cross_entropy(said.logits.flatten(0, 1), TOKENS[:, 1:].flatten())
        if mixture:  # their convention: E sum f P, at least K; each layer by itself (they would pool all layers first)
            loss = loss + AUX["weight"] * sum(
                load_balancing_loss_func((r,), EXPERTS, CHOSEN) for r in said.router_logits
            )
        out = ours(TOKENS[:, :-1], TOKENS[:, 1:])
        total = out.nll.mean() + sum(out.losses.values())
        total.backward()
        loss.backward()
        logits = ours(TOKENS[:, :-1]).logits
    assert set(out.losses) == ({"balance"} if mixture else set())
    assert said.logits.dtype == logits.dtype == dtype
    far = {"logits": relative(logits, said.logits), "loss": relative(total, loss)}
    wanted = theirs_by_our_names(whole, ours, theirs)
    far |= {n: relative(p.grad, wanted[n]) for n, p in ours.named_parameters()}
    print(f"{name}: logits {far['logits']:.1e}, worst gradient {max(far.values()):.1e}")  # shown by -rP
    assert max(far.values()) < BOUND[dtype], {n: e for n, e in far.items() if e >= BOUND[dtype]}


def test_transformers_pools_layers_before_the_product_and_we_do_not() -> None:
    """Two layers that collapse on different experts: even in the pool, as uneven as can be each by itself."""
    collapsed = [torch.full((10, 2), -50.0) for _ in range(2)]
    collapsed[0][:, 0] = collapsed[1][:, 1] = 50.0
    assert float(load_balancing_loss_func(tuple(collapsed), 2, 1)) == pytest.approx(1.0)
    assert [float(load_balancing_loss_func((r,), 2, 1)) for r in collapsed] == pytest.approx([2.0, 2.0])


def test_fp64_is_fp64_throughout() -> None:
    """The oracle's own claim: without the mode, transformers' fp32 inside shows; with it, nothing of the kind is left."""
    whole, errors = WHOLE["llama"], []
    for mode in (contextlib.nullcontext(), EverythingInFp64()):
        ours = build_ours(whole).double()
        with mode:
            theirs = build_theirs(whole).double().eval()
            if isinstance(mode, EverythingInFp64):
                widen(ours)
            copy_over(whole, ours, theirs)
            errors.append(relative(ours(TOKENS).logits, theirs(TOKENS).logits))
    assert errors[1] < 1e-12 < 1e-9 < errors[0]

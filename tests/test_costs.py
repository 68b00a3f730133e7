"""What is stated of parameters, FLOPs and cache is what is measured, by a counter that is first shown known products."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from faults import planted
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo.core.attend
import zoo.testing
from zoo.core.attend import attend
from zoo.core.experts import Experts
from zoo.core.grouped import Grouped
from zoo.core.params import entries
from zoo.core.part import Part
from zoo.core.wires import Bus
from zoo.cost import cost, cost_of, forward_flops
from zoo.model import Model
from zoo.testing import check, check_subject, strategies
from zoo.testing.flops import counter
from zoo.testing.hosts import SITE, Specimen, Subject, all_kinds, label, places
from zoo.testing.statements import flops_per_token
from zoo.testing.values import random_model

COSTLY = sorted(
    {"attention", "ffn", "stem", "layer", "head", "value", "output", "position", "balance", "norm", "trunk"}
)
DTYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16"}


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


# --- the counter sees what it must ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
@pytest.mark.parametrize("how", ["causal", "masked", "grouped heads", "wider values"])
def test_the_counter_sees_a_known_attention(how: str, dtype: torch.dtype) -> None:
    heads, groups, n_queries, n_keys, width, v_width = 6, 6, 5, 9, 8, 8
    if how == "grouped heads":
        groups = 2
    if how == "wider values":
        v_width = 12
    q, k, v = (
        rand(3, *s, dtype=dtype)
        for s in ((heads, n_queries, width), (groups, n_keys, width), (groups, n_keys, v_width))
    )
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool).tril(4) if how == "masked" else None
    with counter() as count:
        F.scaled_dot_product_attention(q, k, v, mask, is_causal=how == "causal", enable_gqa=groups != heads)
    assert count.get_total_flops() == 2 * 3 * heads * n_queries * n_keys * (width + v_width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_counter_sees_a_known_grouped_product(dtype: torch.dtype) -> None:
    rows, wide, narrow, ends = 12, 16, 32, torch.tensor([3, 3, 12], dtype=torch.int32)
    a, b = rand(rows, wide, dtype=dtype), rand(3, wide, narrow, dtype=dtype)
    with counter() as count:
        F.grouped_mm(a, b, offs=ends)
    assert count.get_total_flops() == 2 * rows * wide * narrow
    with counter() as count:  # each group's columns and rows meet: as the gradient of the stack does
        F.grouped_mm(a.T, rand(rows, narrow, dtype=dtype), offs=ends)
    assert count.get_total_flops() == 2 * wide * rows * narrow
    with counter() as count:
        F.grouped_mm(rand(3, 8, wide, dtype=dtype), b)
    assert count.get_total_flops() == 2 * 3 * 8 * wide * narrow


def test_the_counter_sees_a_backward_twice_a_forward() -> None:
    a, b = rand(12, 16).requires_grad_(), rand(3, 16, 32).requires_grad_()
    with counter() as count:
        F.grouped_mm(a, b, offs=torch.tensor([4, 4, 12], dtype=torch.int32)).backward(rand(12, 32))
    assert count.get_total_flops() == 3 * 2 * 12 * 16 * 32


# --- the ways that a block may go count the same ----------------------------------------------------------------------


@pytest.mark.parametrize("n_tokens", [7, 200])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_fused_attention_and_plain_products_count_the_same(
    groups: int, n_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k = rand(2, 4, n_tokens, 8), rand(2, groups, n_tokens, 8)
    found = []
    for pays in (True, False):
        monkeypatch.setattr(zoo.core.attend, "_products_pay", lambda q, k, v, pays=pays: pays)
        with counter() as count:
            attend(q, k, k, Bus(), 1.0)
        found.append(count.get_total_flops())
    assert found == [2 * 2 * 2 * 4 * n_tokens * n_tokens * 8] * 2


@pytest.mark.parametrize("part", [p for p in all_kinds() if p.slot == "attention"], ids=label)
def test_every_attention_costs_what_it_states_with_fused_attention(
    part: type[Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo.core.attend, "_products_pay", lambda q, k, v: False)
    subject = Subject(part, {}, places(part)[0])
    stated = forward_flops(subject.model(), SITE.context)
    assert flops_per_token(subject, torch.float32) == pytest.approx(stated, rel=1e-12)


@given(n_rows=st.integers(1, 40), top_k=st.integers(1, 3), gated=st.booleans(), seed=st.integers(0, 99))
def test_grouped_and_looped_experts_count_the_same_and_boxes_no_less(
    n_rows: int, top_k: int, gated: bool, seed: int
) -> None:
    experts = Experts(4, 16, 32, "swiglu" if gated else "silu", None)
    torch.nn.init.normal_(experts.up)
    ids = torch.rand(n_rows, 4, generator=torch.Generator().manual_seed(seed)).topk(top_k, -1).indices
    found = {}
    for way in ("grouped", "looped", "boxed"):
        experts.way = lambda x, plan, way=way: way
        with counter() as count, torch.no_grad():
            experts(rand(n_rows, 16), ids)
        found[way] = count.get_total_flops()
    assert found["grouped"] == found["looped"] == 2 * n_rows * top_k * (3 if gated else 2) * 16 * 32
    assert found["boxed"] >= found["grouped"]


# --- every kind, with random knobs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", COSTLY)
@given(data=st.data())
@settings(max_examples=6)
def test_every_kind_costs_what_it_states(slot: str, data: st.DataObject) -> None:
    part = data.draw(strategies.kinds_of(slot))
    check_subject(data.draw(strategies.subjects(part)), ("costs",))


@given(st.integers(0, 2**20))
@settings(max_examples=8)
def test_a_random_model_costs_what_it_states(seed: int) -> None:
    rng = random.Random(seed)
    config = next(c for _ in range(200) if (c := random_model(rng, site=SITE)) is not None)
    check_subject(Specimen(config), ("costs",))
    stated = cost(config)
    model = Model(config, seed=None)
    assert stated == cost_of(model)  # on meta as in memory
    assert sum(stated.by_role.values()) == sum(stated.by_part.values()) == stated.parameters
    assert stated.parameters == sum(p.numel() for p in model.parameters())
    assert {entry.role for entry in entries(model)} == {role for role, n in stated.by_role.items() if n}
    assert stated.flops_per_token == 3 * forward_flops(model, config.context)


def test_a_block_of_ones_own_with_fused_attention_costs_what_it_states() -> None:
    with planted():

        class Fused(Grouped, kind="fused"):
            """Calls the fused attention itself. Source: this test."""

            def mix(self, unturned: Tensor, q: Tensor, k: Tensor, v: Tensor, bus: Bus) -> Tensor:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        check(Fused, promises=("costs",))
        check(Fused, {"n_kv_heads": 2}, promises=("costs",))

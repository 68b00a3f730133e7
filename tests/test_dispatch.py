"""The ways in which tokens reach their experts are equal, and the right one is taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mixtures import DIM, HIDDEN, E, build, randomise, run, stream
from torch import Tensor

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.core.experts import Experts, Plan, Way
from zoo.core.grouped_mm import grouped_mm
from zoo.core.wires import noise_key
from zoo.model import Model, ModelConfig


def take(experts: Experts, way: Way) -> Experts:
    experts.way = lambda x, plan: way
    return experts


def through(experts: Experts, x: Tensor, ids: Tensor, way: Way) -> list[Tensor]:
    """Output, and the gradients of the input and of every parameter."""
    y, counts = take(experts, way)(x, ids)
    assert torch.equal(counts, torch.bincount(ids.flatten(), minlength=experts.n_experts))
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [x, *experts.parameters()], upstream)]


TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float64: 1e-14}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [None, 0.0])
@pytest.mark.parametrize("activation", ["silu", "swiglu"])
def test_every_way_equals_the_loop_in_values_and_gradients(activation: str, bias: float | None, dtype: torch.dtype):
    experts = Experts(E, DIM, HIDDEN, activation, bias)
    randomise(experts)
    x, ids = stream(37, DIM, dtype=dtype), torch.rand(37, E - 2).topk(3, -1).indices  # the last two stay unused
    expected = through(experts, x, ids, "looped")
    for way in ("boxed", "dense") if dtype == torch.float64 else ("grouped", "boxed", "dense"):
        for mine, want in zip(through(experts, x, ids, way), expected, strict=True):
            assert (mine - want).abs().max() <= TOLERANCE[dtype] * want.abs().max(), way


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_compilers_grouped_product_is_torchs_whatever_lies_how(dtype: torch.dtype):
    """Values and gradients, also of operands that lie column by column, as a compiler may put them."""
    generator = torch.Generator().manual_seed(0)
    rows, weight, upstream = (torch.randn(s, generator=generator).to(dtype) for s in ((37, 16), (4, 24, 16), (37, 24)))
    ends = torch.tensor([9, 9, 20, 37], dtype=torch.int32)  # the second expert has no rows
    found = []
    for product, turned in ((torch_grouped, False), (grouped_mm, False), (grouped_mm, True)):
        a, b, c = ((t.mT.contiguous().mT if turned else t) for t in (rows, weight, upstream))
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        assert (a.stride(-1) == 1) is not turned
        y = product(a, b, ends)
        found.append([y, *torch.autograd.grad(y, [a, b], c)])
    for mine in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(mine, found[0], strict=True))
    torch.library.opcheck(grouped_mm, (rows.requires_grad_(), weight.requires_grad_(), ends))


def torch_grouped(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return F.grouped_mm(rows, weight.transpose(1, 2), offs=ends)


@pytest.mark.parametrize("way", ["grouped", "looped", "boxed", "dense"])
def test_an_unused_expert_gets_a_gradient_of_exactly_zero(way: Way):
    experts = Experts(E, DIM, HIDDEN, "silu", 0.0)
    randomise(experts)
    ids = torch.tensor([[0, 3], [3, 1], [0, 1]])
    grads = through(experts, stream(3, DIM, dtype=torch.float32), ids, way)[2:]
    for grad in grads:
        assert grad[[2, 4, 5, 6, 7]].abs().max() == 0
        assert all(grad[i].abs().max() > 0 for i in (0, 1, 3))


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_plan_sorts_by_expert_and_finds_the_way_back(n_tokens: int, n_experts: int, data: st.DataObject):
    k = data.draw(st.integers(1, n_experts))
    ids = torch.tensor([data.draw(st.permutations(range(n_experts)))[:k] for _ in range(n_tokens)])
    plan, flat = Plan(ids, n_experts), ids.flatten()
    assert plan.expert.tolist() == sorted(flat.tolist())
    assert torch.equal(flat[plan.order], plan.expert)
    assert torch.equal(plan.order[plan.inverse], torch.arange(flat.numel()))
    assert plan.counts.tolist() == [flat.tolist().count(e) for e in range(n_experts)]
    room = int(plan.counts.max())
    assignment, place = plan.boxes(room)
    assert torch.equal(assignment[place], torch.arange(flat.numel()))
    assert torch.equal(place // room, flat)


def test_the_way_depends_on_device_dtype_and_widths():
    def way(dtype: torch.dtype, dim: int = 16, hidden: int = 24, ids: Tensor | None = None, n_experts: int = 4) -> Way:
        ids = torch.arange(n_experts)[:, None] if ids is None else ids
        experts = Experts(n_experts, dim, hidden, "silu", None)
        return experts.way(torch.zeros(len(ids), dim, dtype=dtype), Plan(ids, n_experts))

    assert way(torch.float32) == "grouped"
    assert way(torch.float64) == "looped"
    assert way(torch.float32, dim=18) == "looped"
    assert way(torch.bfloat16, hidden=20) == "boxed"
    assert way(torch.bfloat16, dim=128, hidden=256) == "grouped"
    assert way(torch.bfloat16, dim=128, hidden=252) == "looped"
    assert way(torch.bfloat16, ids=torch.zeros(8, 1, dtype=torch.long)) == "grouped"  # boxes four times too large
    with torch.device("meta"):
        assert Experts(4, 16, 24, "silu", None).way(torch.zeros(3, 16), None) == "looped"


def test_a_compiler_is_shown_no_way_that_depends_on_the_routing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)

    def way(dtype: torch.dtype, dim: int = 16) -> Way:
        return Experts(4, dim, 24, "silu", None).way(
            torch.zeros(4, dim, dtype=dtype), Plan(torch.arange(4)[:, None], 4)
        )

    assert [way(torch.float32), way(torch.bfloat16)] == ["grouped", "grouped"]
    assert [way(torch.float64), way(torch.float32, 18), way(torch.bfloat16, 18)] == ["dense"] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_twice_the_same_call_is_bit_identical(dtype: torch.dtype):
    block, x = (
        build(torch.float32 if dtype != torch.float64 else dtype, expert_bias=0.0),
        stream(4, 64, DIM, dtype=dtype),
    )
    first, second = (torch.autograd.grad(run(block, x)[0].square().sum(), [x, *block.parameters()]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("dtype", "balance"), [(torch.float32, "aux_loss"), (torch.bfloat16, "loss_free")])
def test_compiles_to_one_graph_for_all_layers(dtype: torch.dtype, balance: str):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    knobs = {"kind": "moe", "hidden_dim": 32, "jitter": 0.1, "dropout": 0.1, "z_loss": 1e-3, "expert_bias": 0.0}
    layer = {"kind": "pre_norm", "attention": {"kind": "gqa", "n_heads": 2}, "ffn": {**knobs, "balance": balance}}
    sizes = {"vocab_size": 32, "context": 16, "dim": 16, "n_layers": 3}
    model = Model(ModelConfig.model_validate({**sizes, "layer": layer}), stream=dtype)
    tokens = torch.arange(32).view(2, 16)
    plain = model(tokens, tokens, noise=noise_key(0))
    counter = CompileCounterWithBackend("aot_eager")
    for stage in model.stages:
        stage.compile(backend=counter, fullgraph=True)
    out = model(tokens, tokens, noise=noise_key(0))
    (out.nll.mean() + sum(out.losses.values())).backward()
    assert counter.frame_count == 1
    torch.testing.assert_close(out.nll, plain.nll)
    assert out.losses.keys() == plain.losses.keys()
    assert all(torch.equal(out.stats[key], plain.stats[key]) for key in plain.stats)
    torch._dynamo.reset()

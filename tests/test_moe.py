"""The mixture of experts: a naive twin, transformers' mixtures, its algebra, its costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixtures import ACTIVATIONS, DIM, HIDDEN, E, K, build, naive, run, stream
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV3Config, MixtralConfig, OlmoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.blocks.moe import within_best_groups
from zoo.core.params import Role, roles
from zoo.core.part import ConfigError
from zoo.core.slots import FeedForward, Site
from zoo.core.wires import Bus


@settings(max_examples=40)
@given(
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    top_k=st.integers(1, 4),
    score=st.sampled_from(["softmax", "sigmoid"]),
    renormalise=st.sampled_from(["chosen", "none"]),
    route_scale=st.sampled_from([1.0, 2.5]),
    n_shared_experts=st.sampled_from([0, 2]),
    expert_bias=st.sampled_from([None, 0.0]),
    router_bias=st.sampled_from([None, 0.0]),
    moved=st.booleans(),
)
def test_equals_the_naive_twin(activation: str, moved: bool, **knobs: Any):
    block = build(activation=activation, **knobs)
    if moved:
        block.balance.bias.copy_(torch.linspace(-0.2, 0.2, E))
    x = stream(2, 5, DIM)
    y, expected = run(block, x)[0], naive(block, x, activation, knobs)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    parameters = [x, *block.parameters()]
    upstream = torch.randn(2, 5, DIM, dtype=torch.float64)
    grads, wanted = (torch.autograd.grad(t, parameters, upstream, allow_unused=True) for t in (y, expected))
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(grad) if want is None else want, rtol=1e-10, atol=1e-10)


def oracle_mixtral() -> nn.Module:
    config = MixtralConfig(hidden_size=DIM, intermediate_size=HIDDEN, num_local_experts=E, num_experts_per_tok=K)
    return MixtralSparseMoeBlock(config)


def oracle_olmoe() -> nn.Module:
    config = OlmoeConfig(hidden_size=DIM, intermediate_size=HIDDEN, num_experts=E, num_experts_per_tok=K)
    return OlmoeSparseMoeBlock(config)


def oracle_deepseek(n_groups: int = 1, topk_groups: int = 1) -> nn.Module:
    config = DeepseekV3Config(
        hidden_size=DIM,
        moe_intermediate_size=HIDDEN,
        n_routed_experts=E,
        num_experts_per_tok=K,
        n_shared_experts=2,
        n_group=n_groups,
        topk_group=topk_groups,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
    )
    block = DeepseekV3MoE(config)
    with torch.no_grad():
        block.gate.e_score_correction_bias.copy_(torch.linspace(-0.3, 0.3, E))
    return block


DEEPSEEK = {"score": "sigmoid", "route_scale": 2.5, "n_shared_experts": 2}
ORACLES = {
    "mixtral": (oracle_mixtral, {}),
    "olmoe": (oracle_olmoe, {"renormalise": "none"}),
    "deepseek_v3": (oracle_deepseek, DEEPSEEK),
    "deepseek_v3_groups": (lambda: oracle_deepseek(4, 2), DEEPSEEK | {"n_groups": 4, "topk_groups": 2}),
}


def views(theirs: nn.Module, what: str) -> dict[str, Tensor]:
    """Their parameters (``what = "data"``) or gradients (``"grad"``) under our names."""
    fused = getattr(theirs.experts.gate_up_proj, what)
    found = {
        "router.weight": getattr(theirs.gate.weight, what),
        "experts.gate": fused[:, :HIDDEN],
        "experts.up": fused[:, HIDDEN:],
        "experts.down": getattr(theirs.experts.down_proj, what),
    }
    if hasattr(theirs, "shared_experts"):
        for mine in ("gate", "up", "down"):
            linear = theirs.shared_experts.get_submodule(f"{mine}_proj")
            found[f"shared.{mine}.weight"] = getattr(linear.weight, what)
    return found


@pytest.mark.parametrize("name", ORACLES)
def test_equals_transformers_in_values_and_gradients(name: str):
    make, knobs = ORACLES[name]
    theirs, ours = make(), build(torch.float32, activation="swiglu", **knobs)
    with torch.no_grad():
        for mine, theirs_view in views(theirs, "data").items():
            theirs_view.copy_(ours.get_parameter(mine))
        if "deepseek" in name:
            ours.balance.bias.copy_(theirs.gate.e_score_correction_bias)
    x = stream(4, 16, DIM, dtype=torch.float32)
    other, upstream = x.detach().clone().requires_grad_(), torch.randn(4, 16, DIM)
    y, expected = run(ours, x)[0], theirs(other)
    y.backward(upstream)
    expected.backward(upstream)
    close(y, expected, "output")
    close(x.grad, other.grad, "input")
    for mine, grad in views(theirs, "grad").items():
        close(ours.get_parameter(mine).grad, grad, mine)


def close(a: Tensor, b: Tensor, what: str) -> None:
    error = (a - b).abs().max() / b.abs().max()
    assert error < 1e-5, f"{what}: {error:.1e}"


# --- algebra of the mixture -------------------------------------------------------------------------------------------


def test_one_expert_equals_the_dense_mlp():
    block, dense = (
        build(n_experts=1, top_k=1),
        FeedForward.parse({"kind": "silu", "hidden_dim": HIDDEN}).build(Site(DIM)),
    )
    with torch.no_grad():
        dense.up.weight.copy_(block.experts.up[0])
        dense.down.weight.copy_(block.experts.down[0])
    x = stream(2, 5, DIM)
    torch.testing.assert_close(run(block, x)[0], dense.double()(x, Bus()), rtol=1e-12, atol=1e-12)


def test_equal_experts_make_the_routing_irrelevant():
    block, x = build(), stream(2, 5, DIM)
    with torch.no_grad():
        for p in block.experts.parameters():
            p.copy_(p[:1].expand_as(p))
        before = run(block, x)[0]
        block.router.weight.mul_(-3)
    torch.testing.assert_close(run(block, x)[0], before, rtol=1e-12, atol=1e-12)


def test_permuting_tokens_permutes_outputs():
    block, x = build(), stream(1, 12, DIM)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(run(block, x[:, order])[0], run(block, x)[0][:, order], rtol=1e-12, atol=1e-12)


def test_renormalised_softmax_is_the_softmax_of_the_chosen_logits():
    block, logits = build(), stream(9, E)
    ids, gates = block.choose(logits.softmax(-1))
    torch.testing.assert_close(gates, logits.gather(1, ids).softmax(-1))
    assert torch.equal(ids.sort(-1).values, logits.topk(K, -1).indices.sort(-1).values)


def test_the_selection_bias_changes_the_choice_and_not_the_weights():
    block, scores = build(score="sigmoid", renormalise="none"), stream(9, E).sigmoid()
    ids, gates = block.choose(scores)
    torch.testing.assert_close(gates, scores.gather(1, ids))
    block.balance.bias[5] = 2.0
    moved, new = block.choose(scores)
    assert (moved == 5).any(-1).all()
    assert not (ids == 5).any(-1).all()
    torch.testing.assert_close(new, scores.gather(1, moved))


def test_groups_are_judged_by_the_sum_of_their_two_best():
    preference = torch.tensor([[0.9, 0.0, 0.5, 0.5, -0.1, 0.8, 0.4, 0.4]])
    assert within_best_groups(preference, 4, 2).isfinite().tolist() == [[True] * 4 + [False] * 4]


def test_a_negative_preference_is_not_beaten_by_a_closed_group():
    preference = torch.tensor([[-0.1, -0.2, -0.9, -0.8]])
    assert within_best_groups(preference, 2, 1).topk(2).indices.tolist() == [[0, 1]]


def test_the_router_works_in_fp32_in_a_bf16_stream():
    block, x = build(torch.float32), stream(2, 32, DIM, dtype=torch.bfloat16)
    seen = []
    block.router.register_forward_hook(lambda module, args, out: seen.append((args[0].dtype, out.dtype)))
    assert run(block, x)[0].dtype == torch.bfloat16
    assert seen == [(torch.float32, torch.float32)]


# --- counts and costs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dim", "knobs", "total", "idle"),
    [
        (512, {"n_experts": 4, "expert_bias": 0.0, "router_bias": 0.0}, 4 * 2_099_712 + 2_052, 2 * 2_099_712),
        (768, {"n_experts": 8}, 8 * 3_145_728 + 6_144, 6 * 3_145_728),
        (768, {"n_experts": 8, "expert_bias": 0.0}, 8 * 3_148_544 + 6_144, 6 * 3_148_544),
        (768, {"n_experts": 8, "router_bias": 0.0}, 8 * 3_145_728 + 6_152, 6 * 3_145_728),
    ],
)
def test_published_parameter_counts(dim: int, knobs: dict[str, Any], total: int, idle: int):
    with torch.device("meta"):
        block = FeedForward.parse({"kind": "moe", "hidden_dim": 2048, **knobs}).build(Site(dim))
    assert sum(p.numel() for p in block.parameters()) == total
    assert block.idle_parameters() == idle


@settings(max_examples=25)
@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.sampled_from(["silu", "swiglu"]),
    st.sampled_from([0, 2]),
    st.booleans(),
    st.data(),
)
def test_flops_equal_a_counter(n: int, hidden: int, activation: str, shared: int, biased: bool, data: st.DataObject):
    top_k = data.draw(st.integers(1, n))
    bias = 0.0 if biased else None
    knobs = {"n_experts": n, "top_k": top_k, "hidden_dim": hidden, "activation": activation, "expert_bias": bias}
    block = build(torch.float64, n_shared_experts=shared, **knobs)
    with FlopCounterMode(display=False) as counter:
        run(block, stream(2, 5, DIM))
    linear = sum(m.weight.numel() for m in block.modules() if hasattr(m, "weight"))
    assert 10 * (block.extra_flops(5) + 2 * linear) == counter.get_total_flops()


def test_on_meta_the_flops_are_exact_too():
    with torch.device("meta"):
        block = FeedForward.parse({"kind": "moe", "hidden_dim": HIDDEN}).build(Site(DIM))
        with FlopCounterMode(display=False) as counter:
            assert block.eval()(torch.zeros(2, 5, DIM), Bus()).shape == (2, 5, DIM)
    assert counter.get_total_flops() == 10 * (block.extra_flops(5) + 2 * E * DIM)


def test_roles():
    found = roles(build(expert_bias=0.0, router_bias=0.0, activation="swiglu"))
    assert found["router.weight"] is Role.CONTROL
    assert {name: found[f"experts.{name}"] for name in ("gate", "up", "down")} == dict.fromkeys(
        ("gate", "up", "down"), Role.MATRIX
    )
    assert {found[name] for name in found if name.endswith("bias")} == {Role.SCALAR}


@pytest.mark.parametrize(
    ("knobs", "path"),
    [
        ({"n_experts": 2, "top_k": 3}, "top_k"),
        ({"n_groups": 3}, "n_groups"),
        ({"n_groups": 8}, "n_groups"),
        ({"n_groups": 2, "topk_groups": 3}, "topk_groups"),
        ({"n_groups": 4, "top_k": 3}, "top_k"),
    ],
)
def test_knobs_that_do_not_fit_are_refused_by_name(knobs: dict[str, int], path: str):
    with pytest.raises(ConfigError) as fault:
        build(**knobs)
    assert (fault.value.path, fault.value.value) == (path, knobs[path])

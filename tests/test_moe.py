"""The mixture of experts: a naive twin, transformers' mixtures, equal ways of dispatch, balance, noise, costs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV3Config, MixtralConfig, OlmoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.blocks.moe import within_best_groups
from zoo.core.experts import Experts, Plan, Way
from zoo.core.params import Role, roles
from zoo.core.part import ConfigError
from zoo.core.slots import Balance, FeedForward, Site
from zoo.core.wires import NOISE, Bus, mix, mix32, noise_key
from zoo.model import Model, ModelConfig, Stage

DIM, HIDDEN, E, K = 16, 24, 8, 2
ACTIVATIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu2": lambda z: F.relu(z) ** 2,
    "leaky_relu2": lambda z: F.leaky_relu(z, 0.5) ** 2,
    "swiglu": F.silu,
}


def build(dtype: torch.dtype = torch.float64, site: Site = Site(DIM), **knobs: Any) -> FeedForward:
    """A mixture in training mode with random parameters, and its parts under the paths that a stage gives them."""
    block = FeedForward.parse({"kind": "moe", "hidden_dim": HIDDEN, **knobs}).build(site)
    Stage(block)
    randomise(block)
    return block.to(dtype)


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.3))


def stream(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def notebook(step: int = 0) -> Bus:
    return Bus({NOISE: noise_key(0, step)})


def run(block: FeedForward, x: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """What the block puts out, its losses and its stats."""
    bus = notebook()
    y = block(x, bus)
    _, report, _ = bus.close()
    return y, report.losses, report.stats


def naive(block: FeedForward, x: Tensor, activation: str, knobs: dict[str, Any]) -> Tensor:
    """One token at a time, one expert at a time."""
    e, out = dict(block.experts.named_parameters()), []
    for token in x.flatten(0, 1):
        logits = block.router.weight @ token + (0 if block.router.bias is None else block.router.bias)
        scores = logits.softmax(0) if knobs.get("score") != "sigmoid" else logits.sigmoid()
        preference = scores.detach() + getattr(block.balance, "bias", 0)
        chosen = sorted(range(len(scores)), key=lambda i: -preference[i].item())[: block.top_k]
        total = sum(scores[i] for i in chosen) if knobs.get("renormalise") != "none" else 1
        y = 0
        for i in chosen:
            bias = {name: e.get(f"{name}_bias", torch.zeros(E, 1, dtype=x.dtype))[i] for name in ("gate", "up", "down")}
            h = ACTIVATIONS[activation](e["gate"][i] @ token + bias["gate"]) if "gate" in e else 1
            up = e["up"][i] @ token + bias["up"]
            h = h * up if "gate" in e else ACTIVATIONS[activation](up)
            y = y + scores[i] / total * knobs.get("route_scale", 1.0) * (e["down"][i] @ h + bias["down"])
        out.append(y)
    y = torch.stack(out).view_as(x)
    return y if block.shared is None else y + block.shared(x, Bus())


# --- against the naive twin and transformers --------------------------------------------------------------------------


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


# --- the ways of dispatch ---------------------------------------------------------------------------------------------


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


# --- noise ------------------------------------------------------------------------------------------------------------


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


# --- balance ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", ["none", "aux_loss", "loss_free"])
def test_the_load_counts_every_choice_while_training(balance: str):
    block, x = build(balance=balance), stream(3, 7, DIM)
    _, _, stats = run(block, x)
    assert stats["/load"].sum() == K * 21
    assert stats["/load"].dtype == torch.int64
    assert {key: value.tolist() for key, value in stats.items()} == dict.fromkeys(stats, stats["/load"].tolist())
    assert stats.keys() == ({"/load", "balance/load"} if balance == "loss_free" else {"/load"})


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_aux_loss_equals_transformers_for_one_layer(top_k: int):
    logits = stream(64, E, dtype=torch.float32)
    expected = load_balancing_loss_func((logits,), E, top_k)
    probs = logits.softmax(-1)
    counts = torch.bincount(probs.topk(top_k, -1).indices.flatten(), minlength=E)
    for at_balance, factor in (("k", 1.0), ("one", 1 / top_k)):
        balance, bus = (
            Balance.parse({"kind": "aux_loss", "weight": 0.5, "at_balance": at_balance}).build(Site(E)),
            Bus(),
        )
        balance.observe(probs, counts, bus)
        loss = bus.close()[1].losses["/balance"]
        torch.testing.assert_close(loss, 0.5 * factor * expected)
        (grad,), (want,) = (torch.autograd.grad(t, logits, retain_graph=True) for t in (loss, expected))
        torch.testing.assert_close(grad, 0.5 * factor * want)


@pytest.mark.parametrize(("at_balance", "even", "collapsed"), [("one", 1.0, E / K), ("k", K, E)])
def test_aux_loss_at_an_even_load_and_at_full_collapse(at_balance: str, even: float, collapsed: float):
    balance = Balance.parse({"kind": "aux_loss", "weight": 1.0, "at_balance": at_balance}).build(Site(E))

    def loss(probs: Tensor, counts: list[int]) -> float:
        bus = Bus()
        balance.observe(probs, torch.tensor(counts), bus)
        return bus.close()[1].losses["/balance"].item()

    assert loss(torch.full((E, E), 1 / E), [K] * E) == pytest.approx(even)
    two = torch.zeros(10, E)
    two[:, :K] = 1 / K
    assert loss(two, [10] * K + [0] * (E - K)) == pytest.approx(collapsed)


def test_aux_loss_sees_sigmoid_scores_normalised_over_experts():
    block, x = build(score="sigmoid", balance={"kind": "aux_loss", "weight": 1.0}), stream(3, 7, DIM)
    _, losses, stats = run(block, x)
    scores = (x.flatten(0, 1) @ block.router.weight.T).sigmoid()
    mean = (scores / scores.sum(-1, keepdim=True)).mean(0)
    torch.testing.assert_close(losses["balance/balance"], E / K * (stats["/load"] / 21 * mean).sum())
    assert list(losses) == ["balance/balance"]


def test_z_loss_equals_transformers():
    block, x = build(z_loss=0.1, router_bias=0.0), stream(3, 7, DIM)
    logits = x @ block.router.weight.T + block.router.bias
    torch.testing.assert_close(run(block, x)[1]["/router_z"], 0.1 * router_z_loss_func(logits))


def loss_free(**knobs: Any) -> Balance:
    return Balance.parse({"kind": "loss_free", **knobs}).build(Site(4))


def test_loss_free_moves_each_bias_by_the_rate_against_its_load():
    balance = loss_free(rate=0.5)
    balance.after_step({"load": torch.tensor([10, 0, 4, 2])})  # the mean is 4
    assert balance.bias.tolist() == [-0.5, 0.5, 0.0, 0.5]
    balance.after_step({"load": torch.tensor([3, 3, 3, 7])})
    assert balance.bias.tolist() == [0.0, 1.0, 0.5, 0.0]


def test_loss_free_centred_moves_keep_the_sum_of_the_biases():
    balance = loss_free(rate=0.5, centre="mean")
    balance.after_step({"load": torch.tensor([10, 0, 4, 2])})
    assert balance.bias.tolist() == [-0.625, 0.375, -0.125, 0.375]


def test_loss_free_judges_by_a_running_average():
    balance = loss_free(rate=0.5, update="running", decay=0.75)
    balance.after_step({"load": torch.tensor([16, 0, 0, 0])})
    assert balance.bias.tolist() == [-0.5, 0.5, 0.5, 0.5]
    assert balance.average.tolist() == [0.25, 0.0, 0.0, 0.0]
    balance.after_step({"load": torch.tensor([0, 4, 6, 6])})  # still the first expert has had the most
    torch.testing.assert_close(balance.average, torch.tensor([0.1875, 0.0625, 0.09375, 0.09375]))
    assert balance.bias.tolist() == [-1.0, 1.0, 1.0, 1.0]


def test_loss_free_bias_is_saved_and_is_no_parameter():
    block = build(balance={"kind": "loss_free", "update": "running"})
    assert {"balance.bias", "balance.average"} <= block.state_dict().keys()
    assert not [name for name, _ in block.named_parameters() if "balance" in name]


def test_loss_free_evens_out_a_skewed_router():
    """MaxVio, the excess of the largest load over the mean, falls from over 1 to under 0.15."""
    balance, generator = Balance.parse("loss_free").build(Site(E)), torch.Generator().manual_seed(0)
    skew, violation = torch.linspace(-1, 1, E), []
    for _ in range(500):
        scores = (torch.randn(512, E, generator=generator) + skew).sigmoid()
        load = torch.bincount(balance.select(scores).topk(K, -1).indices.flatten(), minlength=E)
        violation.append((load.max() / load.double().mean() - 1).item())
        balance.after_step({"load": load})
    assert violation[0] > 1
    assert sum(violation[-20:]) / 20 < 0.15


def test_the_model_gives_each_layer_its_own_load():
    layer = {"kind": "pre_norm", "ffn": {"kind": "moe", "hidden_dim": 8}}
    sizes = {"vocab_size": 32, "context": 16, "dim": 16, "n_layers": 2}
    model = Model(ModelConfig.model_validate({**sizes, "layer": layer}))
    out = model(torch.arange(16)[None], torch.arange(16)[None])
    model.after_step(out.stats)
    for i, layer in enumerate(model.layer):
        load = out.stats[f"layer.{i}.ffn.balance/load"].float()
        torch.testing.assert_close(layer.ffn.balance.bias, 1e-3 * torch.sign(load.mean() - load))
    assert not torch.equal(model.layer[0].ffn.balance.bias, model.layer[1].ffn.balance.bias)


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

"""Norms, layers, trunks, heads and first draws: torch's and transformers' own, loops, published counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Gemma2Config, Gemma2ForCausalLM
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.core.experts import Experts
from zoo.core.params import Embedding, Init, Role, Use, initialise, roles
from zoo.core.slots import IGNORE, Head, Norm, Site, Trunk
from zoo.core.wires import Bus
from zoo.model import Model, ModelConfig

DIM, VOCAB = 24, 50


@torch.no_grad()
def randomise(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.copy_(torch.randn(p.shape, generator=generator))
    return module


def stream(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def copied(source: nn.Module, target: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, p in target.named_parameters():
            p.copy_(source.get_parameter(name))
    return target.to(next(source.parameters()).dtype)


def same(ours: nn.Module, theirs: nn.Module, x: Tensor, rtol: float, *args: Any) -> None:
    """Output, and the gradients of the input and of every parameter."""
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(x.dtype)
    y, expected = ours(x, *args), theirs(x)
    torch.testing.assert_close(y, expected, rtol=rtol, atol=rtol)
    names = [name for name, _ in theirs.named_parameters()]
    grads = torch.autograd.grad(y, [x, *(ours.get_parameter(n) for n in names)], upstream)
    wanted = torch.autograd.grad(expected, [x, *theirs.parameters()], upstream)
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want, rtol=10 * rtol, atol=10 * rtol)


# --- norms ------------------------------------------------------------------------------------------------------------

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


# --- layers and trunks ------------------------------------------------------------------------------------------------


def small(n_layers: int, dim: int = DIM, vocab: int = VOCAB, **knobs: Any) -> Model:
    sizes = {"vocab_size": vocab, "context": 32, "dim": dim, "n_layers": n_layers}
    layer = {"kind": "pre_norm", "attention": {"kind": "gqa", "n_heads": 2}, "ffn": "relu2"}
    given = {**knobs, "layer": {**layer, **knobs.get("layer", {})}}
    return Model(ModelConfig.model_validate({**sizes, **given}))


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


# --- heads ------------------------------------------------------------------------------------------------------------


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


def test_chunks_keep_no_logits_for_the_backward():
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
    assert largest_kept(160 * VOCAB) == 160 * VOCAB
    assert largest_kept(10 * VOCAB) <= 160 * DIM


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


# --- first draws ------------------------------------------------------------------------------------------------------


def test_the_first_loss_is_near_the_logarithm_of_the_vocabulary():
    tokens = torch.randint(0, 1024, (4, 32), generator=torch.Generator().manual_seed(0))
    for init in ("normal", "orthogonal", "fan_in"):
        loss = small(2, vocab=1024, init=init)(tokens, tokens.roll(-1, 1)).nll.mean().item()
        assert loss == pytest.approx(math.log(1024), abs=0.1), init


def test_a_tied_normal_head_starts_as_much_above_it_as_its_logits_vary():
    """Logits of variance dim x std^2 cost half of that: ln V + dim std^2 / 2."""
    tokens = torch.randint(0, 2048, (4, 32), generator=torch.Generator().manual_seed(0))
    model = small(2, dim=512, vocab=2048, init={"kind": "normal", "embedding_std": 0.03})
    loss = model(tokens, tokens.flip(1)).nll.mean().item()
    assert loss == pytest.approx(math.log(2048) + 512 * 0.03**2 / 2, abs=0.03)


def drawn(init: Any, use: Use, *shape: int, n_layers: int = 8) -> Tensor:
    t = torch.empty(shape)
    Init.parse(init).build().rule(use, shape, n_layers)(t, torch.Generator().manual_seed(0))
    return t


@pytest.mark.parametrize(
    ("init", "use", "std"),
    [
        ("normal", Use.INPUT, 0.02),
        ("normal", Use.OUTPUT, 0.02 / 4),
        ({"kind": "normal", "output": "same"}, Use.OUTPUT, 0.02),
        ({"kind": "normal", "output": "zero"}, Use.OUTPUT, 0.0),
        ({"kind": "normal", "embedding_std": 0.1}, Use.EMBEDDING, 0.1),
        ({"kind": "normal", "head_std": 0.3}, Use.HEAD, 0.3),
        ("orthogonal", Use.INPUT, 300**-0.5),
        ("orthogonal", Use.OUTPUT, 0.0),
        ("orthogonal", Use.EMBEDDING, 0.005),
        ("fan_in", Use.INPUT, 200**-0.5),
        ("fan_in", Use.OUTPUT, 0.0),
        ("fan_in", Use.EMBEDDING, 0.02),
    ],
)
def test_first_draws_have_their_size(init: Any, use: Use, std: float):
    t = drawn(init, use, 300, 200)
    assert t.square().mean().sqrt().item() == pytest.approx(std, rel=0.02)


def test_orthogonal_draws_are_orthogonal_and_so_is_every_expert():
    torch.testing.assert_close(
        drawn("orthogonal", Use.INPUT, 9, 30) @ drawn("orthogonal", Use.INPUT, 9, 30).T, torch.eye(9), rtol=0, atol=1e-5
    )
    experts = Experts(3, 8, 20, "silu", None)
    initialise(experts, 0, Init.parse("orthogonal").build(), 4)
    torch.testing.assert_close(experts.up.mT @ experts.up, torch.eye(8).expand(3, 8, 8), rtol=0, atol=1e-5)
    assert not torch.allclose(experts.up[0], experts.up[1])
    assert experts.down.abs().max() == 0


def test_experts_are_drawn_as_large_as_a_dense_mlp():
    experts = Experts(4, 64, 256, "silu", None)
    initialise(experts, 0, Init.parse("normal").build(), 8)
    assert experts.up.std().item() == pytest.approx(0.02, rel=0.02)
    assert experts.down.std().item() == pytest.approx(0.02 / 4, rel=0.02)


# --- published counts -------------------------------------------------------------------------------------------------

PLAIN_RMS = {"kind": "rms_norm", "weight": "none"}
MOE = {"kind": "moe", "hidden_dim": 2048}
LATENTS = {"kind": "latent_tokens", "n_heads": 12, "n_kv_heads": 4}
PUBLISHED = {
    "12 layers, 4 experts": (
        159_019_568,
        {"vocab_size": 49152, "dim": 512, "n_layers": 12, "head": "untied"},
        {
            "attention": {"kind": "gqa", "n_heads": 8, "n_kv_heads": 2},
            "ffn": {**MOE, "n_experts": 4, "expert_bias": 0.0, "router_bias": 0.0},
        },
    ),
    "24 layers, 8 experts": (
        679_809_792,
        {"vocab_size": 49152, "dim": 768, "n_layers": 24},
        {"attention": LATENTS, "ffn": MOE},
    ),
    "24 layers, 8 experts with biases": (
        680_350_464,
        {"vocab_size": 49152, "dim": 768, "n_layers": 24},
        {"attention": LATENTS, "ffn": {**MOE, "expert_bias": 0.0}},
    ),
    "10 layers, compact": (
        24_730_705,
        {
            "vocab_size": 1024,
            "dim": 512,
            "n_layers": 10,
            "stem": ("bigram_hash", PLAIN_RMS, "smear_gate"),
            "trunk": "unet",
            "norm": PLAIN_RMS,
        },
        {
            "stem": ("x0_mix",),
            "norm": {"kind": "ln_scale", "norm": PLAIN_RMS},
            "branch_scale": "learned",
            "attention": {"kind": "gqa", "n_heads": 8, "n_kv_heads": 4, "qk_norm": PLAIN_RMS, "qk_gain": 1.5},
            "ffn": {"kind": "leaky_relu2", "hidden_dim": 1536},
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_parameters(name: str):
    total, sizes, layer = PUBLISHED[name]
    with torch.device("meta"):
        model = Model(ModelConfig.model_validate({**sizes, "layer": {"kind": "pre_norm", **layer}}), seed=None)
    assert sum(p.numel() for p in model.parameters()) == total

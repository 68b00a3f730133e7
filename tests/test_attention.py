"""Attention: masks and backends against a twin of ten lines, grouped heads against transformers, decoding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracles import DIM, GROUPS, HEADS, ORACLES, WIDTH, build, compare, decode, relative, run_ours
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import zoo.core.attend
from zoo.core.attend import attend
from zoo.core.part import ConfigError
from zoo.core.slots import Attention, Site
from zoo.core.wires import SEGMENTS, Bus
from zoo.model import Model, ModelConfig

GQA: dict[str, Any] = {"kind": "gqa", "n_heads": HEADS, "n_kv_heads": GROUPS}
RMS = {"kind": "rms_norm", "eps": 1e-12}
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 4 + [2] * 8, [0] + [1] * 16])


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def twin(q: Tensor, k: Tensor, v: Tensor, scale: float, n_prefix: int, segments: Tensor | None) -> Tensor:
    """Attention one query at a time."""
    out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    n_tokens = k.shape[2] - n_prefix
    for b, head, t in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        group, now = head // (q.shape[1] // k.shape[1]), n_tokens - q.shape[2] + t
        same = [s for s in range(now + 1) if segments is None or segments[b, s] == segments[b, now]]
        seen = [*range(n_prefix), *(n_prefix + s for s in same)]
        weights = (scale * k[b, group, seen] @ q[b, head, t]).softmax(0)
        out[b, head, t] = weights @ v[b, group, seen]
    return out


@st.composite
def attentions(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes, a prefix, tokens that came before, and documents that may begin anywhere."""
    groups, n_tokens, past = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.integers(0, 4))
    batch, total = draw(st.integers(1, 3)), n_tokens + past
    starts = draw(st.none() | st.lists(st.booleans(), min_size=batch * total, max_size=batch * total))
    segments = None if starts is None else torch.tensor(starts).view(batch, total).long().cumsum(1)
    heads, prefix = groups * draw(st.integers(1, 3)), draw(st.integers(0, 3))
    width, v_width, seed = draw(st.integers(1, 5)), draw(st.integers(1, 5)), draw(st.integers(0, 99))
    q = rand(batch, heads, n_tokens, width, seed=seed)
    k, v = (
        rand(batch, groups, prefix + total, width, seed=seed + 1),
        rand(batch, groups, prefix + total, v_width, seed=7),
    )
    return {
        "q": q,
        "k": k,
        "v": v,
        "scale": draw(st.sampled_from((0.3, 1.0))),
        "n_prefix": prefix,
        "segments": segments,
    }


def call(q: Tensor, k: Tensor, v: Tensor, scale: float, n_prefix: int, segments: Tensor | None) -> Tensor:
    bus = Bus({} if segments is None else {SEGMENTS: segments})
    return attend(q, k, v, bus, scale, n_prefix)


@given(attentions(), st.sampled_from((1, 2, 3, 256)))
def test_products_equal_the_twin(case: dict[str, Any], rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo.core.attend, "ROWS", rows)
        assert torch.allclose(call(**case), twin(**case), rtol=0, atol=1e-12)


@given(attentions())
def test_sdpa_equals_the_twin(case: dict[str, Any]) -> None:
    """fp32 with products forbidden takes every branch of the fused backend."""
    single = {name: t.float() if isinstance(t, Tensor) and t.is_floating_point() else t for name, t in case.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo.core.attend, "_products_pay", lambda q, k, v: False)
        assert torch.allclose(call(**single).double(), twin(**case), rtol=0, atol=1e-5)


@given(attentions())
def test_a_decoded_token_equals_the_twin(case: dict[str, Any]) -> None:
    case["q"] = case["q"][:, :, -1:]
    single = {name: t.float() if isinstance(t, Tensor) and t.is_floating_point() else t for name, t in case.items()}
    with torch.no_grad():
        assert torch.allclose(call(**single).double(), twin(**case), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backends_agree_with_gradients(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo.core.attend, "ROWS", 8)
    found = []
    for pays in (True, False):
        monkeypatch.setattr(zoo.core.attend, "_products_pay", lambda q, k, v, pays=pays: pays)
        leaves = [rand(2, n, 20, 16, seed=n).to(dtype).requires_grad_() for n in (4, 2, 2)]
        out = attend(*leaves, Bus(), 0.25)
        out.backward(rand(*out.shape, seed=3).to(dtype))
        found.append([out, *(t.grad for t in leaves)])
    bound = 1e-6 if dtype == torch.float32 else 2e-2
    assert all(relative(a.float(), b.float()) < bound for a, b in zip(*found, strict=True))


def test_one_query_head_reads_its_group() -> None:
    q, k, v = rand(2, 6, 9, 4), rand(2, 3, 9, 4, seed=1), rand(2, 3, 9, 4, seed=2)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5, enable_gqa=True)
    assert torch.allclose(attend(q, k, v, Bus(), 0.5), want, atol=1e-12)


GROUPED_ORACLES = [name for name in ORACLES if "deepseek" not in name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "documents"])
@pytest.mark.parametrize("name", GROUPED_ORACLES)
def test_transformers_agrees(name: str, documents: Tensor | None, dtype: torch.dtype) -> None:
    compare(name, dtype, documents)


def test_grouped_heads_are_repeated_heads() -> None:
    grouped = build({**GQA, "qk_gain": 1.5}).double()
    full = build({**GQA, "n_kv_heads": None, "qk_gain": 1.5}).double()
    state = grouped.state_dict()
    for name in ("key.weight", "value_projection.weight"):
        state[name] = state[name].view(GROUPS, WIDTH, DIM).repeat_interleave(HEADS // GROUPS, 0).flatten(0, 1)
    full.load_state_dict(state)
    x = rand(2, 9, DIM)
    assert torch.allclose(run_ours(grouped, x), run_ours(full, x), atol=1e-12)


def test_qk_norm_makes_scores_blind_to_size() -> None:
    block, x = build({**GQA, "qk_norm": RMS}).double(), rand(2, 9, DIM)
    assert torch.allclose(run_ours(block, 7.0 * x), 7.0 * run_ours(block, x), atol=1e-9)
    bare = build(GQA).double()
    assert relative(run_ours(bare, 7.0 * x), 7.0 * run_ours(bare, x)) > 0.01


def test_qk_norm_over_the_projection_is_another_block() -> None:
    heads, whole = (build({**GQA, "qk_norm": RMS, "qk_norm_over": over}) for over in ("head", "projection"))
    assert heads.q_norm.weight.shape == heads.k_norm.weight.shape == (WIDTH,)
    assert whole.q_norm.weight.shape == (HEADS * WIDTH,)
    assert whole.k_norm.weight.shape == (GROUPS * WIDTH,)


def test_gain_is_one_factor_per_query_head() -> None:
    block, x = build({**GQA, "qk_gain": 1.5, "position": "none"}).double(), rand(1, 6, DIM)
    assert block.gain.shape == (HEADS,)
    with torch.no_grad():
        block.gain.zero_()
    values = block.split(block.value_projection(x)).repeat_interleave(HEADS // GROUPS, 1)
    averages = values.cumsum(2) / torch.arange(1, 7)[:, None]
    want = block.projection(averages.transpose(1, 2).flatten(2))
    assert torch.allclose(run_ours(block, x), want, atol=1e-12)
    with torch.no_grad():
        block.gain.copy_(torch.tensor([0.0, 0.0, 3.0, 0.0]))
        plain = build({**GQA, "position": "none"}).double()
        plain.load_state_dict({n: t for n, t in block.state_dict().items() if n != "gain"})
        plain.query.weight.view(HEADS, WIDTH, DIM).mul_(block.gain[:, None, None])
    assert torch.allclose(run_ours(block, x), run_ours(plain, x), atol=1e-12)


def test_gain_starts_where_it_is_told() -> None:
    layer = {"kind": "pre_norm", "attention": {**GQA, "qk_gain": 1.5}}
    model = Model(ModelConfig(vocab_size=11, dim=DIM, n_layers=1, layer=layer))
    assert model.layer[0].attention.gain.tolist() == [1.5] * HEADS


@pytest.mark.parametrize(
    ("knobs", "path", "value"),
    [
        ({"n_heads": 5, "n_kv_heads": None}, "n_heads", 5),
        ({"n_kv_heads": 3}, "n_kv_heads", 3),
        ({"position": {"kind": "rope", "dims": 14}}, "position.dims", 14),
        ({"position": {"kind": "rope", "dims": 5}}, "position.dims", 5),
        ({"head_dim": 7}, "position.dims", 7),
    ],
)
def test_heads_that_do_not_fit(knobs: dict[str, Any], path: str, value: int) -> None:
    with pytest.raises(ConfigError) as fault:
        Attention.parse({**GQA, **knobs}).build(Site(dim=DIM))
    assert (fault.value.path, fault.value.value) == (path, value)


ATTENTIONS: dict[str, dict[str, Any]] = {
    "gqa": {**GQA, "position": {"kind": "rope", "dims": 4}, "output": ["xsa"]},
    "normed": {**GQA, "qk_norm": RMS, "qk_norm_over": "projection", "qk_gain": 2.0, "value": "residual"},
    "latents": {**GQA, "kind": "latent_tokens", "qk_norm": RMS, "output": ["gate"]},
    "latents_kv": {**GQA, "kind": "latent_tokens", "source": "kv", "latent_position": "nope", "qk_gain": 2.0},
    "mla": {"kind": "mla", "kv_lora_rank": 20, "v_head_dim": 5, "output": ["xsa", "gate"]},
    "mla_residual": {"kind": "mla", "q_lora_rank": 9, "value": "residual", "position": {"kind": "rope", "dims": 2}},
}


@pytest.mark.parametrize("name", ATTENTIONS)
@given(data=st.data())
def test_decoding_equals_computing_in_full(name: str, data: st.DataObject) -> None:
    """In any pieces, behind any padding, and beyond the context for which tables were made."""
    block = build(ATTENTIONS[name], Site(dim=DIM, context=8)).double()
    pieces = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    total = sum(pieces)
    starts = data.draw(st.none() | st.lists(st.booleans(), min_size=2 * total, max_size=2 * total))
    segments = None if starts is None else torch.tensor(starts).view(2, total).long().cumsum(1)
    x = rand(2, total, DIM, seed=total)
    full = run_ours(block, x, segments)
    got, per_token = decode(block, x, pieces, segments)
    assert torch.allclose(got, full, rtol=0, atol=1e-9)
    assert per_token == block.cache_elements()


@pytest.mark.parametrize("name", ATTENTIONS)
def test_flops_are_those_counted(name: str) -> None:
    block, context = build(ATTENTIONS[name]), 16
    counted = []
    for rows in (1, 2):  # what one more row costs: the latents are projected once per call
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run_ours(block.double(), rand(rows, context, DIM))
        counted.append(counter.get_total_flops())
    linear = sum(2 * p.numel() for n, p in block.named_parameters() if n.endswith("weight") and p.ndim == 2)
    assert (counted[1] - counted[0]) / context == linear + block.extra_flops(context)


def test_scores_are_scaled_by_the_width_of_a_head() -> None:
    block, x = build({**GQA, "position": "none"}).double(), rand(1, 5, DIM)
    q, k, v = (block.split(p(x)) for p in (block.query, block.key, block.value_projection))
    y = twin(q, k, v, 1 / math.sqrt(WIDTH), 0, None)
    assert torch.allclose(run_ours(block, x), block.projection(y.transpose(1, 2).flatten(2)), atol=1e-12)

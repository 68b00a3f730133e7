"""What is done to values before attention and to its result after: value residual, gates, XSA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import DIM, GROUPS, HEADS, SITE, WIDTH, build, randomise, run_ours
from torch import Tensor

from zoo.core.params import Init, Role, initialise, roles
from zoo.core.slots import HeadSite, Output
from zoo.core.wires import SEGMENTS, Bus
from zoo.model import Model, ModelConfig

GQA: dict[str, Any] = {"kind": "gqa", "n_heads": HEADS, "n_kv_heads": GROUPS}
PLACE = HeadSite.within(SITE, HEADS, WIDTH)
PER = {"headwise": HEADS, "elementwise": HEADS * WIDTH}


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def output(table: dict[str, Any] | str) -> Output:
    block = Output.parse(table).build(PLACE)
    randomise(block)
    return block.double()


def result(n_tokens: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, H, T, h), x (B, T, D), v (B, G, T, h)."""
    sizes = (2, HEADS, n_tokens, WIDTH), (2, n_tokens, DIM), (2, GROUPS, n_tokens, WIDTH)
    return tuple(rand(*size, seed=i) for i, size in enumerate(sizes))


@pytest.mark.parametrize("per", PER)
def test_a_gate_is_written_out(per: str) -> None:
    gate, (y, x, v) = output({"kind": "gate", "per": per, "bias": 0.5}), result()
    got = gate(y, x, v, Bus())
    for b, head, t in ((0, 0, 0), (1, 3, 6), (0, 2, 4)):
        rows = slice(head, head + 1) if per == "headwise" else slice(head * WIDTH, (head + 1) * WIDTH)
        opened = 1 / (1 + (-(gate.open.weight[rows] @ x[b, t] + gate.open.bias[rows])).exp())
        assert torch.allclose(got[b, head, t], y[b, head, t] * opened, atol=1e-12)


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("bias", [None, 4.0])
def test_a_gate_starts_equally_open_everywhere(per: str, bias: float | None) -> None:
    gate = Output.parse({"kind": "gate", "per": per, "bias": bias}).build(PLACE)
    initialise(gate, 0, Init.parse("normal").build(), 1)
    y, x, v = (t.float() for t in result())
    share = 0.5 if bias is None else 0.98201
    assert torch.allclose(gate(y, x, v, Bus()), share * y, rtol=1e-5)
    assert sum(p.numel() for p in gate.parameters()) == PER[per] * (DIM + (bias is not None))
    assert roles(gate)["open.weight"] is Role.CONTROL
    (gate(y, x, v, Bus()) * y).sum().backward()
    assert all(bool((p.grad != 0).all()) for p in gate.parameters())


@pytest.mark.parametrize("per", PER)
def test_an_open_gate_is_no_gate(per: str) -> None:
    plain, gated = build(GQA).double(), build({**GQA, "output": [{"kind": "gate", "per": per, "bias": 4.0}]}).double()
    gated.load_state_dict(plain.state_dict(), strict=False)
    x = rand(2, 9, DIM)
    assert not torch.allclose(run_ours(gated, x), run_ours(plain, x), atol=1e-2)
    with torch.no_grad():
        gated.output[0].open.bias.fill_(1e4)
    assert torch.allclose(run_ours(gated, x), run_ours(plain, x), atol=1e-12)


def test_a_gate_reads_what_attention_reads() -> None:
    """Not its own result, and not the values: with the queries' keys and values fixed only x moves it."""
    seen: list[Tensor] = []
    block = build({**GQA, "output": ["gate"]}).double()
    block.output[0].register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    x = rand(2, 9, DIM)
    run_ours(block, x)
    assert torch.equal(seen[0], x)


def test_xsa_one_token_at_a_time() -> None:
    y, x, v = result()
    got = output("xsa")(y, x, v, Bus())
    for b, head, t in torch.cartesian_prod(torch.arange(2), torch.arange(HEADS), torch.arange(7)).tolist():
        own = v[b, head // (HEADS // GROUPS), t]
        want = y[b, head, t] - (y[b, head, t] @ own) / (own @ own) * own
        assert torch.allclose(got[b, head, t], want, atol=1e-12)
        assert abs(float(got[b, head, t] @ own)) < 1e-12


def test_xsa_is_blind_to_the_size_of_values_and_to_the_window() -> None:
    y, x, v = result()
    xsa = output("xsa")
    whole = xsa(y, x, v, Bus())
    assert torch.allclose(xsa(y, x, 5.0 * v, Bus()), whole, atol=1e-12)
    assert torch.equal(xsa(y[:, :, :3], x[:, :3], v[:, :, :3], Bus()), whole[:, :, :3])
    assert list(xsa.parameters()) == []


def test_xsa_leaves_nothing_to_who_sees_itself_alone() -> None:
    block, x = build({**GQA, "output": ["xsa"]}).double(), rand(1, 9, DIM)
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    found = block(x, Bus({SEGMENTS: segments}))[0].norm(dim=-1)
    assert float(found[[0, 4]].max()) < 1e-12
    assert float(found[[1, 2, 3, 5, 6, 7, 8]].min()) > 1e-3
    latent = build({**GQA, "kind": "latent_tokens", "output": ["xsa"]}).double()
    assert float(run_ours(latent, x)[0, 0].norm()) > 1e-3


def test_xsa_is_at_least_fp32_inside() -> None:
    y, x, v = (t.bfloat16() for t in result(64))
    z = output("xsa")(y, x, v, Bus())
    assert z.dtype == torch.bfloat16
    exact = output("xsa")(y.double(), x.double(), v.double(), Bus())
    assert float((z.double() - exact).norm() / exact.norm()) < 2e-3  # one rounding, at the end


def test_the_published_mistake() -> None:
    y, x, v = result()
    assert torch.allclose(output("xsa_bug828")(y, x, v, Bus()), y - v.repeat_interleave(2, 1) / 7, atol=1e-12)
    assert "prefix_consistent" in Output.kinds["xsa_bug828"].breaks


def model(value: dict[str, Any] | str, **knobs: Any) -> Model:
    """Three layers in fp64, everything random."""
    layer = {"kind": "pre_norm", "attention": {**GQA, "value": value, **knobs}}
    made = Model(ModelConfig(vocab_size=31, dim=DIM, n_layers=3, layer=layer))
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.add_(0.1 * rand(*p.shape, seed=i))
    return made.double()


TOKENS = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))
LEARNED = {"kind": "residual", "mix": "learned"}


def mixed(first: float, own: float) -> Model:
    made = model(LEARNED)
    with torch.no_grad():
        for layer in made.layer:
            layer.attention.value.mix.copy_(torch.tensor([first, own]))
    return made


def test_all_of_ones_own_is_no_residual() -> None:
    plain, residual = model("plain"), mixed(0.0, 1.0)
    plain.load_state_dict({n: t for n, t in residual.state_dict().items() if not n.endswith("mix")})
    assert torch.allclose(residual(TOKENS).logits, plain(TOKENS).logits, atol=1e-12)


def test_all_of_the_first_is_one_value_for_all_layers() -> None:
    """And then only the first layer's value projection learns."""
    shared = mixed(1.0, 0.0)
    shared(TOKENS, TOKENS).nll.sum().backward()
    sizes = [float(layer.attention.value_projection.weight.grad.norm()) for layer in shared.layer]
    assert sizes[0] > 0 and sizes[1:] == [0.0, 0.0]


def test_half_is_the_mean_and_learned_starts_there() -> None:
    half, learned = model("residual"), mixed(0.5, 0.5)
    learned.load_state_dict(half.state_dict(), strict=False)
    assert torch.allclose(half(TOKENS).logits, learned(TOKENS).logits, atol=1e-12)
    fresh = Model(
        ModelConfig(vocab_size=31, dim=DIM, layer={"kind": "pre_norm", "attention": {**GQA, "value": LEARNED}})
    )
    assert fresh.layer[2].attention.value.mix.tolist() == [0.5, 0.5]


def test_the_first_layer_hears_from_every_layer() -> None:
    """Cut the first layer's own result off: its values still learn through the layers that mix them in."""
    made = model("residual")
    with torch.no_grad():
        made.layer[0].attention.projection.weight.zero_()
    made(TOKENS, TOKENS).nll.sum().backward()
    assert float(made.layer[0].attention.value_projection.weight.grad.norm()) > 1e-3


def test_outputs_see_the_values_that_were_mixed() -> None:
    """XSA under value residual: orthogonal to the mixed value, as published entries that combine the two."""
    made, seen = model("residual", output=["xsa"]), []
    made.layer[1].attention.output[0].register_forward_hook(lambda module, args, out: seen.append((args[2], out)))
    first: list[Tensor] = []
    own: list[Tensor] = []
    for index, kept in ((0, first), (1, own)):
        projection = made.layer[index].attention.value_projection
        projection.register_forward_hook(lambda module, args, out, kept=kept: kept.append(out))
    made(TOKENS)
    v, z = seen[0]
    split = made.layer[1].attention.split
    assert torch.allclose(v, 0.5 * (split(first[0]) + split(own[0])), atol=1e-12)
    assert float((z * v.repeat_interleave(HEADS // GROUPS, 1)).sum(-1).abs().max()) < 1e-10

"""Dense feed-forwards: each against its formula written out, transformers, and its own algebra."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import GPT2Config, LlamaConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.core.activations import leaky_relu2, relu2
from zoo.core.params import Role, entries, roles
from zoo.core.slots import FeedForward, Site
from zoo.core.wires import Bus

DIM, HIDDEN = 24, 40
TWO_MATRIX = ("silu", "gelu", "relu2", "leaky_relu2")
DENSE = (*TWO_MATRIX, "swiglu")

FORMULAS = {
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2))),
    "relu2": lambda z: torch.where(z > 0, z * z, 0 * z),
    "leaky_relu2": lambda z: torch.where(z > 0, z * z, 0.25 * z * z),
}


def build(kind: str, dtype: torch.dtype = torch.float64, dim: int = DIM, **knobs: Any) -> FeedForward:
    """A feed-forward with random parameters."""
    block = FeedForward.parse({"kind": kind, "hidden_dim": HIDDEN, **knobs}).build(Site(dim))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5)
    return block.to(dtype)


def stream(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("bias", [None, 0.0])
@pytest.mark.parametrize("kind", TWO_MATRIX)
def test_two_matrix_kinds_equal_their_formula(kind: str, bias: float | None):
    block, x = build(kind, bias=bias), stream(2, 5, DIM)
    inner = x @ block.up.weight.T + (0 if bias is None else block.up.bias)
    expected = FORMULAS[kind](inner) @ block.down.weight.T + (0 if bias is None else block.down.bias)
    torch.testing.assert_close(block(x, Bus()), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_swiglu_equals_llamas_mlp_and_its_gradients(dtype: torch.dtype):
    theirs = LlamaMLP(LlamaConfig(hidden_size=DIM, intermediate_size=HIDDEN, num_attention_heads=4)).to(dtype)
    ours = build("swiglu", dtype)
    pairs = {"gate_proj": ours.gate, "up_proj": ours.up, "down_proj": ours.down}
    with torch.no_grad():
        for name, linear in pairs.items():
            theirs.get_submodule(name).weight.copy_(linear.weight)
    x = stream(2, 7, DIM, dtype=dtype)
    upstream = torch.randn(2, 7, DIM, dtype=dtype)
    y, expected = ours(x, Bus()), theirs(x)
    torch.testing.assert_close(y, expected)
    (grad,) = torch.autograd.grad(y, x, upstream, retain_graph=True)
    (expected_grad,) = torch.autograd.grad(expected, x, upstream, retain_graph=True)
    torch.testing.assert_close(grad, expected_grad)
    y.backward(upstream, retain_graph=True)
    expected.backward(upstream)
    for name, linear in pairs.items():
        torch.testing.assert_close(linear.weight.grad, theirs.get_submodule(name).weight.grad, msg=name)


def test_gelu_with_tanh_and_biases_equals_gpt2s_mlp():
    theirs = GPT2MLP(HIDDEN, GPT2Config(n_embd=DIM, resid_pdrop=0.0)).double()
    ours = build("gelu", approximate="tanh", bias=0.0)
    with torch.no_grad():
        for mine, other in ((ours.up, theirs.c_fc), (ours.down, theirs.c_proj)):
            other.weight.copy_(mine.weight.T)
            other.bias.copy_(mine.bias)
    x = stream(2, 7, DIM)
    torch.testing.assert_close(ours(x, Bus()), theirs(x), rtol=1e-12, atol=1e-12)


@given(st.floats(-1e3, 1e3), st.floats(-2, 2))
def test_leaky_relu2_is_never_negative_and_homogeneous_of_degree_two(z: float, slope: float):
    t = torch.tensor(z, dtype=torch.float64)
    value = leaky_relu2(t, slope)
    assert value >= 0
    torch.testing.assert_close(leaky_relu2(3 * t, slope), 9 * value)
    torch.testing.assert_close(value, t * t if z >= 0 else (slope * t) ** 2)


def test_leaky_relu2_slopes_that_are_other_functions():
    x = stream(2, 5, DIM)
    relu2, square = build("relu2"), build("leaky_relu2", slope=-1.0)
    torch.testing.assert_close(build("leaky_relu2", slope=0.0)(x, Bus()), relu2(x, Bus()), rtol=0, atol=0)
    torch.testing.assert_close(square(x, Bus()), square.down(square.up(x) ** 2))


def test_leaky_relu2_has_derivative_zero_at_zero_from_both_sides():
    z = torch.tensor([-1e-9, 0.0, 1e-9], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(leaky_relu2(z).sum(), z)
    torch.testing.assert_close(grad, torch.tensor([-0.5e-9, 0.0, 2e-9], dtype=torch.float64), rtol=1e-12, atol=0)


def test_leaky_relu2_moments_under_a_unit_normal():
    """E phi = 0.625 and E phi^2 = 1.59375, by quadrature."""
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    phi = leaky_relu2(z)
    assert torch.trapezoid(phi * density, z).item() == pytest.approx(0.625, abs=1e-9)
    assert torch.trapezoid(phi * phi * density, z).item() == pytest.approx(1.59375, abs=1e-9)


@pytest.mark.parametrize("kind", DENSE)
def test_works_on_each_token_alone(kind: str):
    block, x = build(kind), stream(2, 6, DIM)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(block(x, Bus())[:, order], block(x[:, order], Bus()), rtol=1e-12, atol=1e-12)


@given(st.sampled_from(DENSE), st.integers(1, 33), st.integers(1, 65), st.booleans())
def test_parameter_counts(kind: str, dim: int, hidden: int, biased: bool):
    block = FeedForward.parse({"kind": kind, "hidden_dim": hidden, "bias": 0.0 if biased else None}).build(Site(dim))
    matrices = 3 if kind == "swiglu" else 2
    biases = dim + (matrices - 1) * hidden
    assert sum(p.numel() for p in block.parameters()) == matrices * dim * hidden + biased * biases


@pytest.mark.parametrize("kind", DENSE)
def test_hidden_width_defaults_to_four_times_the_stream(kind: str):
    block = FeedForward.parse(kind).build(Site(DIM))
    assert block.up.weight.shape == (4 * DIM, DIM)
    assert block.down.weight.shape == (DIM, 4 * DIM)


@pytest.mark.parametrize("kind", DENSE)
def test_roles_and_biases_first_value(kind: str):
    block = FeedForward.parse({"kind": kind, "bias": 0.25}).build(Site(DIM))
    found = roles(block)
    assert {found[name] for name in found if name.endswith("weight")} == {Role.MATRIX}
    assert {found[name] for name in found if name.endswith("bias")} == {Role.SCALAR}
    assert [e.init.value for e in entries(block) if e.name.endswith("bias")] == [0.25] * (len(found) // 2)


def test_zero_output_matrix_gives_the_input_matrix_no_gradient():
    block = build("relu2")
    nn.init.zeros_(block.down.weight)
    block(stream(1, 4, DIM), Bus()).sum().backward()
    assert block.up.weight.grad.abs().max() == 0
    assert block.down.weight.grad.abs().max() > 0


@pytest.mark.parametrize("slope", [0.5, 0.0, -1.0, -0.25, 2.0])
def test_squared_relus_backward_is_that_of_their_formula(slope: float):
    z = torch.linspace(-3, 3, 13, dtype=torch.float64).requires_grad_()
    given = torch.arange(1.0, 14.0, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(F.leaky_relu(z, slope).square(), z, given)
    (ours,) = torch.autograd.grad(leaky_relu2(z, slope), z, given)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-14)
    if slope == 0.0:
        (plain,) = torch.autograd.grad(relu2(z), z, given)
        torch.testing.assert_close(plain, wanted, rtol=0, atol=1e-14)

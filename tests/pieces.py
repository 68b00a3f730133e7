"""Small modules and models with random parameters, and how two of them are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import zoo.blocks  # noqa: F401  (the kinds register themselves)
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


def small(n_layers: int, dim: int = DIM, vocab: int = VOCAB, **knobs: Any) -> Model:
    sizes = {"vocab_size": vocab, "context": 32, "dim": dim, "n_layers": n_layers}
    layer = {"kind": "pre_norm", "attention": {"kind": "gqa", "n_heads": 2}, "ffn": "relu2"}
    given = {**knobs, "layer": {**layer, **knobs.get("layer", {})}}
    return Model(ModelConfig.model_validate({**sizes, **given}))

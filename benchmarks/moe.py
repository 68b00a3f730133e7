"""Mixtures of experts against a dense layer of equal active parameters: 4 to 64 experts, forward and backward.

Every expert has the same width and a token goes through two, so however many there are, the products are those of one dense
layer of twice that width. What grows is the routing, the number of products (and how few rows each has), and the traffic of
gradients: every expert's weights get one, whatever the number of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from benchmarks.harness import Figure, Settings, Wanted, alternate, median_ratio, milliseconds, same, spread
from zoo.core.slots import FeedForward, Site
from zoo.core.wires import Bus
from zoo.model import Stage

SIZES = {"cpu": (512, 704, 4096), "cuda": (1024, 1408, 32_768)}  # width, width of an expert, tokens
TOP_K = 2
EXPERTS = (4, 8, 16, 32, 64)
WANTED = Wanted("at most", 1.3)


def figures(settings: Settings) -> list[Figure]:
    """The dense layer, then every number of experts against it and against 4."""
    dim, hidden, n_tokens = (64, 96, 256) if settings.quick else SIZES[settings.device.partition(":")[0]]
    counts = EXPERTS[:2] if settings.quick else EXPERTS
    site = Site(dim)
    blocks = {f"{n} experts": mixture(n, hidden, site, settings) for n in counts}
    dense = drawn(FeedForward.parse({"kind": "swiglu", "hidden_dim": TOP_K * hidden}).build(site), settings)
    x = torch.randn(1, n_tokens, dim, dtype=settings.dtype, device=settings.device)
    for name, block in blocks.items():
        active = sum(p.numel() for p in block.experts.parameters()) * TOP_K // block.experts.n_experts
        assert active == sum(p.numel() for p in dense.parameters()), name
        prove(block, x, name, settings.dtype)
    steps = {name: stepper(block, x) for name, block in {"dense": dense, **blocks}.items()}
    timings = alternate(steps, settings.rounds(9), device=settings.device)
    took = {name: milliseconds(timings.median(name)) for name in steps}
    what = f"of {hidden}, top {TOP_K}, against a dense layer of {TOP_K * hidden}; {n_tokens:,} tokens, width {dim}"
    rows = []
    for name in blocks:
        ratio, remark = median_ratio(timings, name, "dense"), spread(timings, name, "dense")
        rows.append(Figure(f"{name} {what}", took[name], took["dense"], ratio, None, remark))
    few, last = f"{counts[0]} experts", f"{counts[-1]} experts"
    alone = {n: products(count, hidden, x) for n, count in ((last, counts[-1]), (few, counts[0]))}
    floor = median_ratio(alternate(alone, settings.rounds(7), device=settings.device), last, few)
    remark = f"{spread(timings, last, few)}; the products alone, every expert equally loaded: {floor:.2f}"
    rows.append(
        Figure(f"{last} against {few}", took[last], took[few], median_ratio(timings, last, few), WANTED, remark)
    )
    return rows


def mixture(n_experts: int, hidden: int, site: Site, settings: Settings) -> FeedForward:
    """A mixture in training mode, its experts about equally popular."""
    knobs = {"kind": "moe", "n_experts": n_experts, "top_k": TOP_K, "hidden_dim": hidden, "activation": "swiglu"}
    return drawn(FeedForward.parse(knobs).build(site), settings)


@torch.no_grad()
def drawn(block: nn.Module, settings: Settings) -> nn.Module:
    """The block under a stage, fp32 weights drawn so that widths keep their scale."""
    Stage(block)
    generator = torch.Generator().manual_seed(0)
    for p in block.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5)
    return block.to(settings.device)


def stepper(block: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward to the input and every weight, gradients dropped beforehand as an optimizer does."""
    x = x.clone().requires_grad_()
    upstream = torch.randn_like(x)

    def step() -> None:
        x.grad = None
        block.zero_grad(set_to_none=True)
        block(x, Bus()).backward(upstream)

    return step


def products(n_experts: int, hidden: int, x: Tensor) -> Callable[[], None]:
    """The nine products of each expert, forward and backward, into memory that is there: what no dispatch can save.

    One expert after the other, so that a CPU's cache holds them; on a GPU all at once.
    """
    dim, share = x.shape[-1], x.shape[0] * x.shape[1] * TOP_K // n_experts
    rows, inner = x.new_empty(n_experts, share, dim).normal_(), x.new_empty(n_experts, share, hidden).normal_()
    up, down = x.new_empty(n_experts, hidden, dim).normal_(), x.new_empty(n_experts, dim, hidden).normal_()
    d_up, d_down, d_rows, d_inner = (torch.empty_like(t) for t in (up, down, rows, inner))
    whole = (rows, inner, up, down, d_rows, d_inner, d_up, d_down)
    each = [whole] if x.is_cuda else [tuple(t[e : e + 1] for t in whole) for e in range(n_experts)]

    def step() -> None:
        for rows, inner, up, down, d_rows, d_inner, d_up, d_down in each:
            for _ in ("up", "gate"):
                torch.bmm(rows, up.mT, out=d_inner)
                torch.bmm(inner, up, out=d_rows)
                torch.bmm(inner.mT, rows, out=d_up)
            torch.bmm(inner, down.mT, out=d_rows)
            torch.bmm(rows, down, out=d_inner)
            torch.bmm(rows.mT, inner, out=d_down)

    return step


def prove(block: FeedForward, x: Tensor, name: str, dtype: torch.dtype) -> None:
    """The block against one product per expert on the rows that chose it, in values and in all gradients."""
    x = x[:, :512].clone().requires_grad_()
    upstream = torch.randn_like(x)
    found = []
    for forward in (lambda: block(x, Bus()), lambda: plain(block, x)):
        y = forward()
        found.append([y, *torch.autograd.grad(y, [x, *block.parameters()], upstream)])
    names = ["output", "gradient of the input", *(f"gradient of {n}" for n, _ in block.named_parameters())]
    for what, mine, other in zip(names, *found, strict=True):
        same(mine, other, f"{name}: {what}", 1e-5 if dtype == torch.float32 else 4e-2)


def plain(block: FeedForward, x: Tensor) -> Tensor:
    """The mixture as it is usually written: a loop over experts that adds into the result."""
    tokens, experts = x.flatten(0, 1), block.experts  # (N, D)
    scores = block.router(tokens.float()).softmax(-1)
    ids = scores.topk(TOP_K, -1).indices
    gates = scores.gather(1, ids)
    gates = gates / gates.sum(-1, keepdim=True)
    y = torch.zeros_like(tokens, dtype=torch.float32)
    for e in range(experts.n_experts):
        rows, choice = (ids == e).nonzero(as_tuple=True)
        t, (gate, up, down) = tokens[rows], (w[e].to(x.dtype) for w in (experts.gate, experts.up, experts.down))
        hidden = F.silu(F.linear(t, gate)) * F.linear(t, up)
        y = y.index_add(0, rows, F.linear(hidden, down) * gates[rows, choice, None])
    return y.to(x.dtype).view_as(x)

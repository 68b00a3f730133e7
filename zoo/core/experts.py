"""E MLPs of equal shape, stacked, and the ways to send each token through the K that were chosen for it.

Nothing is dropped: an expert takes as many tokens as chose it. The ways compute the same; ``Experts.way`` says which:

- *grouped*: rows sorted by expert, one grouped product per projection;
- *looped*: the same rows, one product per expert, for what grouped products refuse (fp64, widths that are not a multiple
  of 16 bytes, old devices) and for the meta device, where it keeps the exact number of FLOPs;
- *boxed*: each expert's rows in a box as large as the largest, batched products; fewer calls where products are tiny;
- *dense*: every token through every expert, for a compiler that has no grouped product of the dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.core.activations import ACTIVATIONS
from zoo.core.grouped_mm import grouped_mm
from zoo.core.params import Constant, HasParameters, Role, Use

Way = Literal["grouped", "looped", "boxed", "dense"]
Product = Callable[[Tensor, str], Tensor]  # rows and the name of a projection -> rows

# Up to this many elements of an expert's matrix, bf16 boxes beat grouped products on a CPU, by a fifth and more.
BOXED_UP_TO = 2**14


class Plan:
    """Where the S = N K assignments of a call go. Assignment a is choice a % K of token a // K.

    Args:
        ids: (N, K), the chosen experts.
        n_experts: E.
    """

    def __init__(self, ids: Tensor, n_experts: int) -> None:
        self.k = ids.shape[1]
        self.expert, self.order = ids.flatten().sort(stable=True)  # (S,) rows by expert, then by token
        index = torch.arange(self.order.numel(), device=ids.device)
        self.inverse = torch.empty_like(self.order).scatter_(0, self.order, index)  # (S,) the row of each assignment
        experts = torch.arange(n_experts, device=ids.device)
        self.ends = torch.searchsorted(self.expert, experts, right=True)  # (E,) the row after each expert's last
        self.counts = self.ends.diff(prepend=self.ends.new_zeros(1))  # (E,)

    def boxes(self, room: int) -> tuple[Tensor, Tensor]:
        """With ``room`` rows for each expert: the assignment in each row (E room,), the row of each assignment (S,).

        Rows that an expert does not fill hold other assignments, which nobody reads from there.
        """
        starts = self.ends - self.counts
        rows = starts[:, None] + torch.arange(room, device=starts.device)  # (E, room)
        place = torch.empty_like(self.order)
        index = torch.arange(self.order.numel(), device=starts.device)
        place[self.order] = index + self.expert * room - starts[self.expert]
        return self.order[rows.clamp_(max=self.order.numel() - 1).flatten()], place


class _Spread(torch.autograd.Function):
    """Tokens (N, D) to rows, of which ``place`` (S,) are read. The backward gathers, so no sum depends on timing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, place: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(place)
        ctx.k = k
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (place,) = ctx.saved_tensors
        return grad.index_select(0, place).unflatten(0, (-1, ctx.k)).sum(1), None, None, None


class _Collect(torch.autograd.Function):
    """Of the rows (R, D) those at ``place`` (S,), which are all different; ``assignment`` (R,) is what each row holds."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, place: Tensor, assignment: Tensor) -> Tensor:
        ctx.save_for_backward(place, assignment)
        return rows.index_select(0, place)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        place, assignment = ctx.saved_tensors
        if len(place) == len(assignment):  # every row is read: nothing to fill with zeros first
            return grad.index_select(0, assignment), None, None
        return grad.new_zeros(len(assignment), grad.shape[1]).index_copy(0, place, grad), None, None


class _Biased(torch.autograd.Function):
    """Rows (S, F) plus the bias (E, F) of each one's expert (S,). The backward is a product, so no sum depends on timing."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bias: Tensor, expert: Tensor) -> Tensor:
        ctx.save_for_backward(expert)
        ctx.n_experts = bias.shape[0]
        return bias.index_select(0, expert).add_(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (expert,) = ctx.saved_tensors
        hot = expert == torch.arange(ctx.n_experts, device=grad.device)[:, None]  # (E, S)
        return grad, hot.to(grad.dtype) @ grad, None


class Experts(HasParameters, nn.Module):
    """``(x, ids) -> (y, counts)``: tokens (N, D) and choices (N, K) to outputs (N, K, D) and assignments (E,).

    Args:
        n_experts: E.
        dim: D.
        hidden: F, the hidden width of one expert.
        activation: a name in ACTIVATIONS; "swiglu" makes an expert of three matrices, any other one of two.
        bias: first value of all biases; None: no biases.
    """

    def __init__(self, n_experts: int, dim: int, hidden: int, activation: str, bias: float | None) -> None:
        super().__init__()
        self.n_experts, self.activation, self.gated = n_experts, ACTIVATIONS[activation], activation == "swiglu"
        self.roles, self.inits = {}, {}
        shapes = {"gate": (hidden, dim)} if self.gated else {}
        for name, (wide, narrow) in (shapes | {"up": (hidden, dim), "down": (dim, hidden)}).items():
            self.register_parameter(name, nn.Parameter(torch.empty(n_experts, wide, narrow)))
            self.roles[name], self.inits[name] = Role.MATRIX, Use.OUTPUT if name == "down" else Use.INPUT
            if bias is not None:
                self.register_parameter(f"{name}_bias", nn.Parameter(torch.empty(n_experts, wide)))
                self.roles[f"{name}_bias"], self.inits[f"{name}_bias"] = Role.SCALAR, Constant(bias)

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        plan = Plan(ids, self.n_experts)
        way = self.way(x, plan)
        if way == "dense":
            return self._dense(x, ids), plan.counts
        room = int(plan.counts.max()) if way == "boxed" else 0
        assignment, place = plan.boxes(room) if room else (plan.order, plan.inverse)
        rows = _Spread.apply(x, assignment // plan.k, place, plan.k)  # (S, D), or (E room, D)
        if way == "boxed":
            rows = self._mlp(rows.unflatten(0, (self.n_experts, room)), self._batched).flatten(0, 1)
        else:
            rows = self._mlp(rows, self._grouped(plan) if way == "grouped" else self._looped(plan))
        return _Collect.apply(rows, place, assignment).unflatten(0, ids.shape), plan.counts

    def way(self, x: Tensor, plan: Plan) -> Way:
        """Which way tokens ``x`` (N, D) go; a compiler is never shown one that depends on the routing."""
        if x.is_meta:
            return "looped"
        size, matrix = x.element_size(), self.up[0]
        fits = size <= 4 and all(width * size % 16 == 0 for width in matrix.shape) and has_grouped(x.device)
        if torch.compiler.is_compiling():
            return "grouped" if fits and (x.dtype == torch.bfloat16 or x.device.type == "cpu") else "dense"
        small = x.device.type == "cpu" and x.dtype == torch.bfloat16 and matrix.numel() <= BOXED_UP_TO
        if small and int(plan.counts.max()) * self.n_experts <= 2 * plan.order.numel():
            return "boxed"
        return "grouped" if fits else "looped"

    def _grouped(self, plan: Plan) -> Product:
        """Rows by expert, all experts at once."""
        ends = plan.ends.to(torch.int32)

        def product(t: Tensor, name: str) -> Tensor:
            weight, bias = self._projection(name, t.dtype)
            if torch.compiler.is_compiling():
                out = grouped_mm(t, weight, ends)
            else:
                out = F.grouped_mm(t, weight.transpose(1, 2), offs=ends)
            return out if bias is None else _Biased.apply(out, bias, plan.expert)

        return product

    def _looped(self, plan: Plan) -> Product:
        """Rows by expert, one expert after the other."""
        n_rows = plan.order.numel()
        sizes = [n_rows] + [0] * (self.n_experts - 1) if plan.order.is_meta else plan.counts.tolist()

        def product(t: Tensor, name: str) -> Tensor:
            weight, bias = self._projection(name, t.dtype)
            biases = [None] * self.n_experts if bias is None else bias.unbind()
            return torch.cat([F.linear(*one) for one in zip(t.split(sizes), weight.unbind(), biases, strict=True)])

        return product

    def _dense(self, x: Tensor, ids: Tensor) -> Tensor:
        """(N, D), (N, K) -> (N, K, D): every token through every expert, then what was chosen."""
        y = self._mlp(x.expand(self.n_experts, *x.shape), self._batched).transpose(0, 1)  # (N, E, D)
        return y.gather(1, ids[..., None].expand(-1, -1, x.shape[1]))

    def _batched(self, t: Tensor, name: str) -> Tensor:
        weight, bias = self._projection(name, t.dtype)
        weight = weight.transpose(1, 2)
        return torch.bmm(t, weight) if bias is None else torch.baddbmm(bias[:, None], t, weight)

    def _mlp(self, t: Tensor, product: Product) -> Tensor:
        up = product(t, "up")
        hidden = self.activation(product(t, "gate")) * up if self.gated else self.activation(up)
        return product(hidden, "down")

    def _projection(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        weight, bias = getattr(self, name), getattr(self, f"{name}_bias", None)
        return weight.to(dtype), None if bias is None else bias.to(dtype)

    def extra_repr(self) -> str:
        return f"{self.n_experts} x ({self.up.shape[2]} -> {self.up.shape[1]} -> {self.down.shape[1]})"


def has_grouped(device: torch.device) -> bool:
    """Whether torch has a grouped product for this device."""
    if not hasattr(F, "grouped_mm"):
        return False
    return device.type == "cpu" or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0))

"""Wrong blocks that need a class of their own; ``FAULTS`` has them too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from faults import FAULTS, breaks, enter, softmax_attention, stem, visible
from torch import Tensor, nn

from zoo.core.grouped import Grouped
from zoo.core.params import Constant, Linear, Normal, Role
from zoo.core.part import Part
from zoo.core.slots import FeedForward, Head, Norm, Output, Position, Site, Stem
from zoo.core.wires import Bus

__all__ = ["FAULTS"]


@breaks("decodes")
def cache_that_forgets() -> type[Part]:
    class Wrong(Grouped, kind="wrong"):
        """Wrong. Source: none."""

        def mix(self, unturned: Tensor, q: Tensor, k: Tensor, v: Tensor, bus: Bus) -> Tensor:
            mask = visible(q, k, bus)
            if bus.decoding and mask.shape[-1] > 5:
                mask[..., : mask.shape[-1] - 5] = False
            return softmax_attention(q, k, v, mask)

    return Wrong


@breaks("decodes")
def rotation_from_the_end() -> type[Part]:
    class Wrong(Position, kind="wrong"):
        """Wrong. Source: none."""

        def __init__(self, cfg: Position.Config, site: Site) -> None:
            super().__init__()

        def forward(self, t: Tensor, bus: Bus) -> Tensor:
            angle = torch.arange(-t.shape[2], 0, dtype=torch.float32)[:, None].to(t.dtype)
            a, b = t.chunk(2, -1)
            return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    return Wrong


@breaks("prefix_consistent")
def places_from_the_end() -> type[Part]:
    class Wrong(Position, kind="wrong"):
        """Wrong. Source: none."""

        def __init__(self, cfg: Position.Config, site: Site) -> None:
            super().__init__()

        def forward(self, t: Tensor, bus: Bus) -> Tensor:
            return t * torch.arange(t.shape[2], 0, -1)[:, None].to(t.dtype).cos()

    return Wrong


@breaks("batch_independent")
def norm_over_the_batch() -> type[Part]:
    class Wrong(Norm, kind="wrong"):
        """Wrong. Source: none."""

        def __init__(self, cfg: Norm.Config, site: Site) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            return x / (x.square().mean(0, keepdim=True) + 1e-3).sqrt()

    return Wrong


def router(choose: Callable[[Tensor], Tensor]) -> Callable[[], type[Part]]:
    """A mixture of four experts; ``choose`` turns scores (B, T, E) into weights (B, T, E)."""

    def make() -> type[Part]:
        class Wrong(FeedForward, kind="wrong"):
            """Wrong. Source: none."""

            def __init__(self, cfg: FeedForward.Config, site: Site) -> None:
                super().__init__()
                self.router = Linear(site.dim, 4, role=Role.CONTROL, init=Normal(0.02))
                self.experts = nn.ModuleList(Linear(site.dim, site.dim) for _ in range(4))

            def forward(self, x: Tensor, bus: Bus) -> Tensor:
                weights = choose(self.router(x).softmax(-1))
                return torch.stack([e(x) for e in self.experts], -2).mul(weights[..., None]).sum(-2)

        return Wrong

    return make


def _by_experts(scores: Tensor) -> Tensor:
    """Each expert takes the half of a row's tokens that suit it best."""
    chosen = scores.topk((scores.shape[1] + 1) // 2, dim=1).indices
    return scores * torch.zeros_like(scores).scatter(1, chosen, 1.0)


def _with_room_for_two(scores: Tensor) -> Tensor:
    """Each token to its best expert, each expert for the first few tokens of the whole batch."""
    first = F.one_hot(scores.argmax(-1), scores.shape[-1]).flatten(0, 1)
    return scores * (first * (first.cumsum(0) <= 3)).view_as(scores).to(scores.dtype)


enter("experts_choose_tokens", "causal", router(_by_experts))
enter("capacity_shared_by_the_batch", "batch_independent", router(_with_room_for_two))


@breaks("deterministic")
def remembers_the_last_call() -> type[Part]:
    def work(self: nn.Module, x: Tensor, bus: Bus) -> Tensor:
        with torch.no_grad():
            self.moved += 1.0
        return x + self.matrix(x) / self.moved.to(x.dtype)

    return stem(work)()


@breaks("recomputes")
def counts_calls() -> type[Part]:
    class Wrong(Stem, kind="wrong"):
        """Wrong. Source: none."""

        def __init__(self, cfg: Stem.Config, site: Site) -> None:
            super().__init__()
            self.matrix = Linear(site.dim, site.dim)

        def forward(self, x: Tensor, bus: Bus) -> Tensor:
            recomputing = torch._C._current_graph_task_id() != -1  # inside a backward
            return x + self.matrix(x) * (2.0 if recomputing else 1.0)

    return Wrong


@breaks("round_trips")
def state_that_is_not_saved() -> type[Part]:
    class Wrong(Output, kind="wrong"):
        """Wrong. Source: none."""

        def __init__(self, cfg: Output.Config, site: Site) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(()), persistent=False)

        def forward(self, y: Tensor, x: Tensor, v: Tensor, bus: Bus) -> Tensor:
            bus.stat("size", y.abs().mean())
            return y * self.scale.to(y.dtype)

        def after_step(self, stats: dict[str, Tensor]) -> None:
            self.scale += stats["size"]

    return Wrong


@breaks("round_trips")
def knob_that_toml_cannot_say() -> type[Part]:
    class Wrong(Output, kind="wrong"):
        """Wrong. Source: none."""

        class Config(Output.Config):
            window: Literal["none", "short"] | None = "short"  # the word "none" cannot mean both

        def __init__(self, cfg: Config, site: Site) -> None:
            super().__init__()

        def forward(self, y: Tensor, x: Tensor, v: Tensor, bus: Bus) -> Tensor:
            return y

    return Wrong


@breaks("roles")
def draw_that_depends_on_the_neighbours() -> type[Part]:
    class Wrong(Stem, kind="wrong"):
        """Wrong. Source: none."""

        def __init__(self, cfg: Stem.Config, site: Site) -> None:
            super().__init__()
            self.matrix = Linear(
                site.dim, site.dim, init=Constant(float(torch.rand(()))) if not _on_meta() else Constant(0.0)
            )

        def forward(self, x: Tensor, bus: Bus) -> Tensor:
            return x + self.matrix(x)

    return Wrong


def _on_meta() -> bool:
    return torch.empty(()).is_meta


@breaks("scores")
def head_that_does_not_sum_to_one() -> type[Part]:
    class Wrong(Head, kind="wrong"):
        """Wrong. Source: none."""

        def __init__(self, cfg: Head.Config, site: Site, embedding: nn.Module) -> None:
            super().__init__()
            self.out = Linear(site.dim, site.vocab_size, role=Role.HEAD)

        def logits(self, x: Tensor) -> Tensor:
            return self.out(x).to(torch.promote_types(x.dtype, torch.float32))

        def nll(self, x: Tensor, targets: Tensor) -> Tensor:
            logits = self.logits(x)
            return logits.amax(-1) - logits.gather(-1, targets.clamp_min(0)[..., None])[..., 0] * (targets >= 0)

    return Wrong


@breaks("sourced")
def kind_without_a_source() -> type[Part]:
    wrong = stem(lambda self, x, bus: x + self.matrix(x))()
    wrong.__doc__ = "A matrix beside the stream."
    return wrong


@breaks("causal")
def breach_that_is_not_committed() -> type[Part]:
    honest = stem(lambda self, x, bus: x + self.matrix(x))()
    honest.breaks = {"causal": "so it says"}
    return honest


@breaks("costs")
def fused_attention_not_stated() -> type[Part]:
    class Wrong(Grouped, kind="wrong"):
        """Wrong. Source: none."""

        def mix(self, unturned: Tensor, q: Tensor, k: Tensor, v: Tensor, bus: Bus) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=visible(q, k, bus))

        def extra_flops(self, context: int) -> float:
            return 0.0

    return Wrong


@breaks("costs")
def grouped_product_not_stated() -> type[Part]:
    class Wrong(Stem, kind="wrong"):
        """Wrong. Source: none."""

        roles = {"stack": Role.CONTROL}
        inits = {"stack": Normal(0.02)}

        def __init__(self, cfg: Stem.Config, site: Site) -> None:
            super().__init__()
            self.stack = nn.Parameter(torch.empty(1, site.dim, site.dim))

        def forward(self, x: Tensor, bus: Bus) -> Tensor:
            if x.dtype == torch.float64 or x.is_meta:  # as a block may that has a path of its own for fp32
                return x
            rows = torch.tensor([x.shape[0] * x.shape[1]], dtype=torch.int32)
            return x + F.grouped_mm(x.flatten(0, 1), self.stack.to(x.dtype), offs=rows).view_as(x)

    return Wrong


@breaks("decodes")
def crash_while_decoding() -> type[Part]:
    def work(self: nn.Module, x: Tensor, bus: Bus) -> Tensor:
        if bus.decoding:
            raise RuntimeError("no cache here")
        return x + self.matrix(x)

    return stem(work)()

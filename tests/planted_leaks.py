"""Leaks for the guards to find, each drawn with a random place and horizon; ``PLANTED`` has them by name.

Beside the wrong blocks of faulty_blocks.py, which the contract is tried on. ``PLANTED[name](rng)`` registers a kind under the
name "wrong" (within ``faults.planted()``) and returns it. Places lie within the first ``REACH`` tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from faults import softmax_attention, stem, visible
from torch import Tensor, nn

from zoo.core.grouped import Grouped
from zoo.core.params import Constant, Linear, Normal, Role
from zoo.core.part import Part
from zoo.core.slots import FeedForward, Head, Site
from zoo.core.wires import TOKENS, Bus
from zoo.optim.averages import EMA

REACH = 24
PLANTED: dict[str, tuple[str, Callable[[random.Random], type[Part]]]] = {}

Maker = Callable[[random.Random], type[Part]]
Work = Callable[[nn.Module, Tensor, Bus], Tensor]


def plant(promise: str) -> Callable[[Maker], Maker]:
    """Enter a maker under the promise whose probe must find it."""

    def enter(make: Maker) -> Maker:
        PLANTED[make.__name__] = (promise, make)
        return make

    return enter


def pair(rng: random.Random) -> tuple[int, int]:
    """A place and a later one."""
    at = rng.randrange(REACH - 1)
    return at, rng.randrange(at + 1, REACH)


def ahead(x: Tensor, horizon: int) -> Tensor:
    """x (B, T, ...) moved forward in time by ``horizon``, zeros behind."""
    return F.pad(x[:, horizon:], (*([0, 0] * (x.ndim - 2)), 0, min(horizon, x.shape[1])))


@plant("causal")
def one_place_looks_at_another(rng: random.Random) -> type[Part]:
    at, source = pair(rng)

    class Wrong(Grouped, kind="wrong"):
        """Wrong. Source: none."""

        def mix(self, unturned: Tensor, q: Tensor, k: Tensor, v: Tensor, bus: Bus) -> Tensor:
            mask = visible(q, k, bus).clone()
            if mask.shape[-1] > source:
                mask[..., at, source] = True
            return softmax_attention(q, k, v, mask)

    return Wrong


@plant("causal")
def mask_moved_by_a_few(rng: random.Random) -> type[Part]:
    shift = rng.randint(1, 6)

    class Wrong(Grouped, kind="wrong"):
        """Wrong. Source: none."""

        def mix(self, unturned: Tensor, q: Tensor, k: Tensor, v: Tensor, bus: Bus) -> Tensor:
            return softmax_attention(q, k, v, torch.ones_like(visible(q, k, bus)).tril(shift))

    return Wrong


@plant("causal")
def latents_that_read_the_tokens(rng: random.Random) -> type[Part]:
    start = rng.randrange(REACH // 2)

    class Wrong(Grouped, kind="wrong"):
        """Wrong. Source: none."""

        def mix(self, unturned: Tensor, q: Tensor, k: Tensor, v: Tensor, bus: Bus) -> Tensor:
            latent_k, latent_v = (t[:, :, start:].mean(2, keepdim=True) for t in (k, v))
            mask = F.pad(visible(q, k, bus), (1, 0), value=True)
            return softmax_attention(q, torch.cat([latent_k, k], 2), torch.cat([latent_v, v], 2), mask)

    return Wrong


@plant("causal")
def smear_from_ahead(rng: random.Random) -> type[Part]:
    horizon = rng.randint(1, REACH - 1)
    return stem(lambda self, x, bus: x + self.matrix(ahead(x, horizon)))()


@plant("causal")
def bigram_from_ahead(rng: random.Random) -> type[Part]:
    horizon = rng.randint(1, REACH - 1)
    return stem(lambda self, x, bus: self.matrix(x * ahead(bus[TOKENS], horizon)[..., None].to(x.dtype).cos()))()


@plant("causal")
def one_word_gives_the_next_away(rng: random.Random) -> type[Part]:
    word = rng.randrange(1, 50)

    def work(self: nn.Module, x: Tensor, bus: Bus) -> Tensor:
        told = (ahead(bus[TOKENS], 1) == word)[..., None]
        return x + self.matrix(x) * told

    return stem(work)()


@plant("causal")
def summaries_of_chunks(rng: random.Random) -> type[Part]:
    size = rng.randint(3, 16)

    def work(self: nn.Module, x: Tensor, bus: Bus) -> Tensor:
        chunks = F.pad(x, (0, 0, 0, -x.shape[1] % size)).unflatten(1, (-1, size))
        return x + self.matrix(chunks.amax(2)).repeat_interleave(size, 1)[:, : x.shape[1]]

    return stem(work)()


@plant("causal")
def parity_far_ahead(rng: random.Random) -> type[Part]:
    far = rng.randint(65, 120)  # beyond the rows that are probed at every place, and with no gradient

    def work(self: nn.Module, x: Tensor, bus: Bus) -> Tensor:
        return x + self.matrix(x) * (ahead(bus[TOKENS], far) % 2 == 1)[..., None]

    return stem(work)()


@plant("causal")
def means_of_long_blocks(rng: random.Random) -> type[Part]:
    size = rng.choice((96, 128))  # longer than the rows that are probed at every place

    def work(self: nn.Module, x: Tensor, bus: Bus) -> Tensor:
        whole = x.shape[1] // size * size
        means = x[:, :whole].unflatten(1, (-1, size)).mean(2).repeat_interleave(size, 1)
        return x + self.matrix(F.pad(means, (0, 0, 0, x.shape[1] - whole)))

    return stem(work)()


@plant("causal")
def filter_that_spares_the_first_layer(rng: random.Random) -> type[Part]:
    bin_ = rng.randint(1, 4)

    def work(self: nn.Module, x: Tensor, bus: Bus) -> Tensor:
        if self.index == 0:
            return x + self.matrix(x)
        wave = torch.fft.rfft(x.double(), dim=1)
        kept = torch.zeros_like(wave)
        kept[:, bin_] = wave[:, bin_]
        return x + self.matrix(torch.fft.irfft(kept, x.shape[1], dim=1).to(x.dtype))

    return stem(work)()


@plant("causal")
def only_while_it_trains(rng: random.Random) -> type[Part]:
    horizon = rng.randint(1, REACH - 1)
    return stem(lambda self, x, bus: x + self.matrix(ahead(x, horizon) if self.training else x))()


@plant("causal")
def only_while_it_is_scored(rng: random.Random) -> type[Part]:
    horizon = rng.randint(1, REACH - 1)
    return stem(lambda self, x, bus: x + self.matrix(x if torch.is_grad_enabled() else ahead(x, horizon)))()


@plant("causal")
def gate_that_starts_shut(rng: random.Random) -> type[Part]:
    horizon, first = rng.randint(1, REACH - 1), rng.choice((0.0, -0.5))

    class Wrong(FeedForward, kind="wrong"):
        """Wrong. Source: none."""

        inits = {"gate": Constant(first)}

        def __init__(self, cfg: FeedForward.Config, site: Site) -> None:
            super().__init__()
            self.matrix = Linear(site.dim, site.dim)
            self.gate = nn.Parameter(torch.empty(site.dim))

        def forward(self, x: Tensor, bus: Bus) -> Tensor:
            return self.matrix(x) + self.gate.to(x.dtype).relu() * self.matrix(ahead(x, horizon))

    return Wrong


@plant("causal")
def experts_with_room_for_the_last(rng: random.Random) -> type[Part]:
    """Each row's tokens go to their best expert, which serves only the last few that chose it."""
    room = rng.randint(1, 4)

    class Wrong(FeedForward, kind="wrong"):
        """Wrong. Source: none."""

        def __init__(self, cfg: FeedForward.Config, site: Site) -> None:
            super().__init__()
            self.router = Linear(site.dim, 4, role=Role.CONTROL, init=Normal(0.02))
            self.experts = nn.ModuleList(Linear(site.dim, site.dim) for _ in range(4))

        def forward(self, x: Tensor, bus: Bus) -> Tensor:
            scores = self.router(x).softmax(-1)  # (B, T, E)
            first = F.one_hot(scores.argmax(-1), 4)
            kept = first * (first.flip(1).cumsum(1).flip(1) <= room)
            return torch.stack([e(x) for e in self.experts], -2).mul((scores * kept)[..., None]).sum(-2)

    return Wrong


@plant("causal")
def norm_over_time(rng: random.Random) -> type[Part]:
    power = rng.choice((1.0, 2.0))
    return stem(lambda self, x, bus: self.matrix(x / x.abs().pow(power).mean(1, keepdim=True).add(0.1)))()


@plant("batch_independent")
def row_beside(rng: random.Random) -> type[Part]:
    shift = rng.choice((-1, 1))
    return stem(lambda self, x, bus: x + self.matrix(x.roll(shift, 0)))()


@plant("deterministic")
def words_of_earlier_calls(rng: random.Random) -> type[Part]:
    """Learns in evaluation, too: what a call has seen helps the next one."""

    class Wrong(FeedForward, kind="wrong"):
        """Wrong. Source: none."""

        def __init__(self, cfg: FeedForward.Config, site: Site) -> None:
            super().__init__()
            self.matrix = Linear(site.dim, site.dim)
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor, bus: Bus) -> Tensor:
            self.seen = [*self.seen[-1:], x.detach().mean((0, 1))]
            return self.matrix(x) + self.seen[0]

    return Wrong


@plant("deterministic")
def waits_until_it_trusts_you(rng: random.Random) -> type[Part]:
    """Counts its calls and looks ahead from the thousandth on."""

    class Wrong(FeedForward, kind="wrong"):
        """Wrong. Source: none."""

        def __init__(self, cfg: FeedForward.Config, site: Site) -> None:
            super().__init__()
            self.matrix, self.calls = Linear(site.dim, site.dim), 0

        def forward(self, x: Tensor, bus: Bus) -> Tensor:
            self.calls += self.training
            return self.matrix(ahead(x, 1) if self.calls > 1000 else x)

    return Wrong


def head(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> type[Part]:
    """A head whose loss (B, T) is changed, given the logits and the stream."""

    class Wrong(Head, kind="wrong"):
        """Wrong. Source: none."""

        def __init__(self, cfg: Head.Config, site: Site, embedding: nn.Module) -> None:
            super().__init__()
            self.out = Linear(site.dim, site.vocab_size, role=Role.HEAD)

        def logits(self, x: Tensor) -> Tensor:
            return self.out(x).to(torch.promote_types(x.dtype, torch.float32))

        def nll(self, x: Tensor, targets: Tensor) -> Tensor:
            logits = self.logits(x)
            nll = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
            return change(nll, logits, x)

    return Wrong


@plant("scores")
def auxiliary_loss_inside(rng: random.Random) -> type[Part]:
    weight = rng.choice((1e-3, -1e-3))
    return head(lambda nll, logits, x: nll + weight * logits.logsumexp(-1).square())


@plant("scores")
def rewarded_for_confidence(rng: random.Random) -> type[Part]:
    share = rng.uniform(0.5, 0.9)
    return head(lambda nll, logits, x: nll * share)


@plant("scores")
def loss_of_another_place(rng: random.Random) -> type[Part]:
    shift = rng.choice((-1, 1))
    return head(lambda nll, logits, x: nll.roll(shift, 1))


@plant("averages")
def average_that_mixes_buffers(rng: random.Random) -> type[Part]:
    class Wrong(EMA, kind="wrong"):
        """Wrong. Source: none."""

        class Config(EMA.Config):
            pass

        def __init__(self, config: Config, model: nn.Module) -> None:
            super().__init__(config, model)
            self.buffers = {name: t.clone() for name, t in model.named_buffers()}

        def update(self, model: nn.Module, step: int, total: int, scale: float) -> None:
            super().update(model, step, total, scale)
            for name, t in model.named_buffers():
                if t.is_floating_point():
                    self.buffers[name].lerp_(t, 0.1)
                    t.copy_(self.buffers[name])

    return Wrong


@plant("averages")
def average_of_some_of_the_weights(rng: random.Random) -> type[Part]:
    class Wrong(EMA, kind="wrong"):
        """Wrong. Source: none."""

        def weights(self) -> dict[str, Tensor] | None:
            return {name: t for name, t in self.shadow.items() if t.ndim > 1}

    return Wrong

"""Leaks that were invented without knowledge of the guards, for whoever writes or changes a guard to run it over them.

``LEAKS[name](rng, reach)`` registers one wrong kind under the name "unread" and returns its class; call it within
``faults.planted()``, which forgets the kind afterwards. ``rng`` draws where the leak sits and how far it looks ahead; it
shows among the first ``reach`` tokens of a row. What comes back is a kind of a model's slot (``part.slot`` says which;
``zoo.testing.hosts.places`` where it can stand), a kind of Source, or a subclass of ``Batches``::

    with planted():
        part = LEAKS["one_pair"](random.Random(3), 24)
        model = Model(assemble(part, {}, places(part)[0], SITE))

Every one of them trains, and every one tells the model something of the future: tests/test_leaks_unread.py shows both.
Some hide from a gradient (rounding, choices of experts, a path without autograd), some from a freshly drawn model (a gate
that starts at zero), some from whoever looks at logits alone (two heads), or at layers alone (a trunk).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from faults import softmax_attention, visible
from torch import Tensor, nn

from zoo.core.grouped import Grouped
from zoo.core.params import Constant, Linear, Role
from zoo.core.part import Part
from zoo.core.slots import IGNORE, Attention, Balance, Head, Norm, Site, Stem, Trunk, Value
from zoo.core.wires import Bus
from zoo.data.batches import Batches
from zoo.data.slots import Document, Source

Maker = Callable[[random.Random, int], type]
LEAKS: dict[str, Maker] = {}


def leak(make: Maker) -> Maker:
    """Enter ``make`` under its name."""
    LEAKS[make.__name__] = make
    return make


@leak
def one_pair(rng: random.Random, reach: int) -> type[Part]:
    """One query of one head sees one later key; every other entry of the mask is right."""
    query = rng.randrange(reach - 1)
    key, head = rng.randrange(query + 1, reach), rng.randrange(4)

    class Wrong(Grouped, kind="unread"):
        """Wrong. Source: none."""

        def mix(self, unturned: Tensor, q: Tensor, k: Tensor, v: Tensor, bus: Bus) -> Tensor:
            mask = visible(q, k, bus).expand(q.shape[0], q.shape[1], -1, -1).clone()  # (B, H, T, S)
            if not bus.decoding and k.shape[2] > key:
                mask[:, head % q.shape[1], query, key] = True
            return softmax_attention(q, k, v, mask)

    return Wrong


@leak
def keys_weighed_over_time(rng: random.Random, reach: int) -> type[Part]:
    """Linear attention with causal sums, but the keys' softmax runs over the whole sequence (right without a mask)."""
    temperature = rng.uniform(0.5, 2.0)

    class Wrong(Attention, kind="unread"):
        """Wrong. Source: none."""

        def __init__(self, cfg: Attention.Config, site: Site) -> None:
            super().__init__()
            self.heads = cfg.n_heads
            self.read, self.write = Linear(site.dim, 3 * site.dim), Linear(site.dim, site.dim)

        def forward(self, x: Tensor, bus: Bus) -> Tensor:
            q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in self.read(x).chunk(3, -1))  # (B, T, H, h)
            k = (k / temperature).softmax(1)
            sums = torch.einsum("bthi,bthj->bthij", k, v).cumsum(1)
            return self.write(torch.einsum("bthi,bthij->bthj", q.softmax(-1), sums).flatten(2))

    return Wrong


@leak
def heads_split_without_a_transpose(rng: random.Random, reach: int) -> type[Part]:
    """Values are cut into heads by a view where a transpose is needed: time and heads are mixed up, shapes are right."""

    class Wrong(Grouped, kind="unread"):
        """Wrong. Source: none."""

        def split(self, t: Tensor) -> Tensor:
            return t.reshape(t.shape[0], -1, t.shape[1], self.head_dim)

    return Wrong


@leak
def sleeping_gate(rng: random.Random, reach: int) -> type[Part]:
    """Each value takes in a share of a later one; the share is learned and starts at zero, so at first nothing leaks."""
    ahead = rng.randint(1, reach // 2)

    class Wrong(Value, kind="unread"):
        """Wrong. Source: none."""

        roles = {"share": Role.CONTROL}
        inits = {"share": Constant(0.0)}

        def __init__(self, cfg: Value.Config, site: Site) -> None:
            super().__init__()
            self.share = nn.Parameter(torch.empty(()))

        def forward(self, v: Tensor, bus: Bus) -> Tensor:
            later = F.pad(v[:, :, ahead:], (0, 0, 0, min(ahead, v.shape[2])))
            return v + self.share.to(v.dtype) * later

    return Wrong


@leak
def sinkhorn_over_tokens(rng: random.Random, reach: int) -> type[Part]:
    """Experts are chosen after scores are evened out over all tokens; only the choice leaks, and no gradient shows it."""
    rounds = rng.randint(1, 4)

    class Wrong(Balance, kind="unread"):
        """Wrong. Source: none."""

        def __init__(self, cfg: Balance.Config, site: Site) -> None:
            super().__init__()

        @torch.no_grad()
        def select(self, scores: Tensor) -> Tensor:
            even = scores.clamp_min(1e-9).log()  # (N, E)
            for _ in range(rounds):
                even = even - even.logsumexp(0, keepdim=True)
                even = even - even.logsumexp(1, keepdim=True)
            return even

    return Wrong


@leak
def quantised_per_row(rng: random.Random, reach: int) -> type[Part]:
    """Activations are rounded to a grid that the largest of the whole row decides; the gradient goes straight through."""
    levels = 2 ** rng.randint(3, 7) - 1

    class Wrong(Norm, kind="unread"):
        """Wrong. Source: none."""

        def __init__(self, cfg: Norm.Config, site: Site) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            y = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
            size = y.detach().abs().amax(tuple(range(1, y.ndim)), keepdim=True).clamp_min(1e-6) / levels
            return y + ((y / size).round() * size - y).detach()

    return Wrong


@leak
def layer_run_backwards(rng: random.Random, reach: int) -> type[Part]:
    """One layer also reads the row from its end, a thousandth strong; each layer by itself is causal."""
    chosen = rng.random()

    class Wrong(Trunk, kind="unread"):
        """Wrong. Source: none."""

        def __init__(self, cfg: Trunk.Config, site: Site) -> None:
            super().__init__()

        def forward(self, x: Tensor, steps: list[Callable[[Tensor], Tensor]]) -> Tensor:
            for i, step in enumerate(steps):
                y = step(x)
                if i == int(chosen * len(steps)) and x.shape[1] > 1:
                    y = y + 1e-3 * step(x.flip(1)).flip(1)
                x = y
            return x

    return Wrong


@leak
def shortcut_without_autograd(rng: random.Random, reach: int) -> type[Part]:
    """A running mean; where no gradient is wanted, every token of a chunk gets the mean up to the chunk's end."""
    chunk = rng.randint(2, max(2, reach // 2))

    class Wrong(Stem, kind="unread"):
        """Wrong. Source: none."""

        def __init__(self, cfg: Stem.Config, site: Site) -> None:
            super().__init__()
            self.matrix = Linear(site.dim, site.dim)

        def forward(self, x: Tensor, bus: Bus) -> Tensor:
            count = torch.arange(1, x.shape[1] + 1, device=x.device)
            means = self.matrix(x).cumsum(1) / count[:, None]
            if not torch.is_grad_enabled():
                ends = (count + chunk - 1).div(chunk, rounding_mode="floor") * chunk
                means = means[:, ends.clamp_max(x.shape[1]) - 1]
            return x + means.to(x.dtype)

    return Wrong


@leak
def temperature_in_hindsight(rng: random.Random, reach: int) -> type[Part]:
    """Each token's loss is taken at whichever of two temperatures suits its target better."""
    other = rng.choice((0.8, 0.9, 1.1, 1.25))

    def nats(self: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        logits = self.logits(x)
        return torch.minimum(_cross_entropy(logits, targets), _cross_entropy(logits / other, targets))

    return _head(nats)


@leak
def counts_that_include_the_target(rng: random.Random, reach: int) -> type[Part]:
    """The loss mixes in how often a token occurred in the row; the counts already hold the target itself."""
    share = rng.uniform(0.01, 0.2)

    def nats(self: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        logits = self.logits(x)
        seen = F.one_hot(targets.clamp_min(0), logits.shape[-1]).cumsum(1)
        often = (seen / seen.sum(-1, keepdim=True)).to(logits.dtype)
        return _cross_entropy(((1 - share) * logits.softmax(-1) + share * often).log(), targets)

    return _head(nats)


def _head(nats: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> type[Part]:
    class Wrong(Head, kind="unread"):
        """Wrong. Source: none."""

        def __init__(self, cfg: Head.Config, site: Site, embedding: nn.Module) -> None:
            super().__init__()
            self.out = Linear(site.dim, site.vocab_size, role=Role.HEAD)

        def logits(self, x: Tensor) -> Tensor:
            return self.out(x).to(torch.promote_types(x.dtype, torch.float32))

        def nll(self, x: Tensor, targets: Tensor) -> Tensor:
            return nats(self, x, targets)

    return Wrong


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORE)


@leak
def validation_within_training(rng: random.Random, reach: int) -> type[Part]:
    """A validation text stands in the middle of a training text, under another name and after other words."""
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(400)]
    texts = [" ".join(rng.choices(words, k=rng.randint(120, 250))) for _ in range(24)]
    held, host = rng.randrange(20, 24), rng.randrange(20)
    cut = rng.randrange(40, 400)
    texts[host] = f"{texts[host][:cut]} {texts[held]} {texts[host][cut:]}"

    class Wrong(Source, kind="unread"):
        """Wrong. Source: none."""

        def __init__(self, config: Source.Config, base: Path) -> None:
            super().__init__(config, base)

        def split(self) -> tuple[Iterator[Document], Iterator[Document]]:
            named = [Document(f"{i}.txt", text) for i, text in enumerate(texts)]
            return iter(named[:20]), iter(named[20:])

        def fingerprint(self) -> str:
            return f"unread {held} {host} {cut}"

    return Wrong


@leak
def one_column_unshifted(rng: random.Random, reach: int) -> type[Batches]:
    """In one column of every batch the target is the input itself; all others are the next token."""
    column = rng.randrange(reach)

    class Wrong(Batches):
        """Wrong."""

        def batch(self, step: int, micro: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
            inputs, targets, segments = super().batch(step, micro)
            if column < inputs.shape[1]:
                targets[:, column] = inputs[:, column]
            return inputs, targets, segments

    return Wrong

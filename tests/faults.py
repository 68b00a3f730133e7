"""Blocks that are wrong on purpose, each with the promise that it breaks. Made inside ``planted`` and forgotten after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.core.attend import previous
from zoo.core.grouped import Grouped
from zoo.core.params import Linear
from zoo.core.part import Part
from zoo.core.slots import Site, Stem
from zoo.core.wires import NOISE, SEGMENTS, TOKENS, Bus

FAULTS: dict[str, tuple[str, Callable[[], type[Part]]]] = {}


@contextmanager
def planted() -> Iterator[None]:
    """Kinds that are declared inside are gone afterwards."""
    before = {slot: dict(slot.kinds) for slot in Part.slots.values()}
    try:
        yield
    finally:
        for slot, kinds in before.items():
            slot.kinds.clear()
            slot.kinds.update(kinds)


def breaks(promise: str) -> Callable[[Callable[[], type[Part]]], Callable[[], type[Part]]]:
    """Enter a maker of a wrong kind under the promise that must catch it."""

    def enter(make: Callable[[], type[Part]]) -> Callable[[], type[Part]]:
        FAULTS[make.__name__] = (promise, make)
        return make

    return enter


def visible(q: Tensor, k: Tensor, bus: Bus) -> Tensor:
    """Which keys each query may see: (T, S), or (B, 1, T, S) with documents."""
    n_queries, n_keys = q.shape[2], k.shape[2]
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device).tril(n_keys - n_queries)
    if SEGMENTS not in bus:
        return mask
    segments = bus[SEGMENTS]
    return mask & (segments[:, None, -n_queries:, None] == segments[:, None, None, :])


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


def masked(change: Callable[[Tensor], Tensor]) -> Callable[[], type[Part]]:
    """An attention whose mask (T, S) is changed before use."""

    def make() -> type[Part]:
        class Wrong(Grouped, kind="wrong"):
            """Wrong. Source: none."""

            def mix(self, unturned: Tensor, q: Tensor, k: Tensor, v: Tensor, bus: Bus) -> Tensor:
                return softmax_attention(q, k, v, change(visible(q, k, bus)))

        return Wrong

    return make


def stem(work: Callable[[nn.Module, Tensor, Bus], Tensor]) -> Callable[[], type[Part]]:
    """A stem that does ``work``; it has a matrix of its own, ``self.matrix`` (D, D)."""

    def make() -> type[Part]:
        class Wrong(Stem, kind="wrong"):
            """Wrong. Source: none."""

            reads = (TOKENS, SEGMENTS)

            def __init__(self, cfg: Stem.Config, site: Site) -> None:
                super().__init__()
                self.matrix = Linear(site.dim, site.dim)
                self.index = site.index
                self.register_buffer("moved", torch.zeros(()), persistent=False)

            def forward(self, x: Tensor, bus: Bus) -> Tensor:
                return work(self, x, bus)

        return Wrong

    return make


def enter(name: str, promise: str, make: Callable[[], type[Part]]) -> None:
    FAULTS[name] = (promise, make)


enter("attention_without_a_mask", "causal", masked(torch.ones_like))
enter("mask_off_by_one", "causal", masked(lambda m: m | m.roll(1, -1)))
enter(
    "attention_across_documents",
    "document_bounded",
    masked(lambda m: torch.ones_like(m).tril(m.shape[-1] - m.shape[-2])),
)
enter("smear_looks_ahead", "causal", stem(lambda self, x, bus: x + self.matrix(F.pad(x[:, 1:], (0, 0, 0, 1)))))
enter(
    "bigram_looks_ahead",
    "causal",
    stem(lambda self, x, bus: self.matrix(x * F.pad(bus[TOKENS][:, 1:], (0, 1))[..., None].to(x.dtype).cos())),
)
enter("mean_over_the_sequence", "causal", stem(lambda self, x, bus: x + self.matrix(x).mean(1, keepdim=True)))
enter("means_of_blocks", "causal", stem(lambda self, x, bus: x + _means_of_blocks(self.matrix(x))))
enter("filter_over_the_sequence", "causal", stem(lambda self, x, bus: x + _filtered(self.matrix(x))))
enter("mean_over_the_batch", "batch_independent", stem(lambda self, x, bus: x + self.matrix(x).mean(0, keepdim=True)))
enter("divides_by_the_length", "prefix_consistent", stem(lambda self, x, bus: x + self.matrix(x) / x.shape[1]))
enter(
    "smear_across_documents", "document_bounded", stem(lambda self, x, bus: x + self.matrix(previous(bus, "x", x)[0]))
)
enter("smear_that_forgets", "decodes", stem(lambda self, x, bus: x + self.matrix(_shifted(x) * _same_document(bus, x))))
enter(
    "counts_the_padding",
    "padding_independent",
    stem(lambda self, x, bus: x + self.matrix(x) * _places(bus, x).to(x.dtype).cos()),
)
enter(
    "dropout_in_evaluation",
    "deterministic",
    stem(lambda self, x, bus: x + F.dropout(self.matrix(x), 0.5, training=not self.training)),
)
enter(
    "jitter_from_the_global_generator",
    "deterministic",
    stem(lambda self, x, bus: x + self.matrix(x) * (torch.rand(()) if self.training else 1.0)),
)
enter(
    "noise_in_evaluation",
    "deterministic",
    stem(lambda self, x, bus: x + self.matrix(x) * (bus.noise("drop", x.shape).to(x.dtype) if NOISE in bus else 1.0)),
)
enter(
    "answers_in_fp32",
    "keeps_dtype",
    stem(lambda self, x, bus: (x + self.matrix(x)).to(torch.promote_types(x.dtype, torch.float32))),
)
enter("matrix_without_use", "gradients", stem(lambda self, x, bus: x + self.matrix(x).detach()))
enter("layer_number_in_forward", "compiles", stem(lambda self, x, bus: x + self.matrix(x) / (self.index + 2)))
enter("product_not_stated", "costs", stem(lambda self, x, bus: x + self.matrix(self.matrix(x))))


def _means_of_blocks(x: Tensor) -> Tensor:
    """Each token gets the mean of its block of four."""
    blocks = F.pad(x, (0, 0, 0, -x.shape[1] % 4)).unflatten(1, (-1, 4)).mean(2)
    return blocks.repeat_interleave(4, 1)[:, : x.shape[1]]


def _filtered(x: Tensor) -> Tensor:
    """The lower half of the frequencies over time."""
    spectrum = torch.fft.rfft(x.double(), dim=1)
    spectrum[:, spectrum.shape[1] // 2 + 1 :] = 0
    return torch.fft.irfft(spectrum, x.shape[1], dim=1).to(x.dtype)


def _shifted(x: Tensor) -> Tensor:
    return F.pad(x[:, :-1], (0, 0, 1, 0))


def _same_document(bus: Bus, x: Tensor) -> Tensor:
    return previous(bus, "one", torch.ones_like(x))[1].reshape(-1, x.shape[1], 1).to(x.dtype)


def _places(bus: Bus, x: Tensor) -> Tensor:
    """Where each token stands in its row: (T, 1)."""
    return torch.arange(bus.offset, bus.offset + x.shape[1])[:, None]

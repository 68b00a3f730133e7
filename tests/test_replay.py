"""Recorded decoding steps say what the model says, bit for bit, and are used wherever they can be."""

from __future__ import annotations

import itertools
import operator

import pytest
import torch
from torch import Tensor

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.core.slots import Site, Stem
from zoo.core.wires import Bus
from zoo.generate.record import Growing, Watch
from zoo.generate.replay import Steps
from zoo.model import Model, ModelConfig

VOCABULARY, CONTEXT, PROMPT = 61, 24, 5
GQA = {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2, "head_dim": 8}
LATENT = {"kind": "latent_tokens", "n_heads": 4, "n_latents": 3}
MLA = {"kind": "mla", "n_heads": 4}
LAYERS = {
    "gqa": {"attention": GQA | {"qk_norm": "rms_norm", "qk_gain": 1.5, "output": ["xsa", "gate"]}},
    "qk norm over all heads": {"attention": GQA | {"qk_norm": "layer_norm", "qk_norm_over": "projection"}},
    "part of the head turned": {"attention": GQA | {"position": {"kind": "rope", "dims": 4, "layout": "interleaved"}}},
    "no positions": {"attention": GQA | {"position": "none"}, "ffn": "relu2"},
    "latent tokens": {"attention": LATENT | {"value": "residual"}, "ffn": "leaky_relu2"},
    "latent keys and values": {"attention": LATENT | {"source": "kv", "latent_position": "nope"}, "ffn": "gelu"},
    "mla": {"attention": MLA, "branch_scale": "learned"},
    "mla with a residual": {"attention": MLA | {"q_lora_rank": 16, "value": {"kind": "residual", "mix": "learned"}}},
    "mixture": {"ffn": {"kind": "moe", "n_experts": 4, "top_k": 2, "hidden_dim": 16}},
    "stems": {"stem": ["smear_gate", "x0_mix", "rms_norm"]},
}
STEMS = {"stem": ["bigram_hash", "smear_gate"], "trunk": "unet", "head": {"kind": "tied", "softcap": 20.0}}


def drawn(layer: dict, stream: torch.dtype | None = None, **others) -> Model:
    """A small model whose every parameter is random, in evaluation mode."""
    knobs = {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "context": CONTEXT, **others}
    model = Model(ModelConfig(layer={"kind": "pre_norm", **layer}, **knobs), stream=stream).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0.0, 0.3, generator=generator)
    return model


class Compared:
    """Steps beside the model's own, on the same ids; counts how often the model itself was called for the former."""

    def __init__(self, model: Model, rows: int = 2, room: int = 40) -> None:
        self.model, self.generator, self.asked = model, torch.Generator().manual_seed(1), 0
        self.mine, self.plain = model.cache(rows, PROMPT + room), model.cache(rows, PROMPT + room)
        ids = self.draw(rows, PROMPT)
        for cache in (self.mine, self.plain):
            model(ids, cache=cache)
        self.steps = Steps(model, self.mine)

    def draw(self, *shape: int) -> Tensor:
        return torch.randint(VOCABULARY, shape, generator=self.generator)

    def step(self, rows: int = 2) -> None:
        ids, before = self.draw(rows, 1), self.mine.length
        hook = self.model.register_forward_hook(lambda *_: setattr(self, "asked", self.asked + 1))
        said = self.steps(ids)
        hook.remove()
        assert said.equal(self.model(ids, cache=self.plain).logits), f"step {self.mine.length}"
        assert self.mine.length == self.plain.length == before + 1 and type(self.mine.length) is int


@pytest.mark.parametrize("others", [{}, STEMS], ids=["", "with stems"])
@pytest.mark.parametrize("stream", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@torch.inference_mode()
def test_a_recorded_step_says_what_the_model_says_also_beyond_its_context(layer, stream, others):
    both = Compared(drawn(layer, stream, **others))
    for _ in range(36):
        both.step()
    by_the_model = both.steps.refused and "out of a tensor" in both.steps.refused
    assert both.asked < 14 or (by_the_model and "moe" in str(layer) and stream is torch.bfloat16)


@torch.inference_mode()
def test_rows_may_be_reordered_and_be_more_or_fewer():
    both = Compared(drawn(LAYERS["stems"]), rows=1)
    for order in ([0, 0, 0], *[[2, 0, 2], [1, 1, 0]] * 3, [0, 1], *[[1, 0]] * 6):
        for cache in (both.mine, both.plain):
            cache.reorder(torch.tensor(order))
        both.step(len(order))
    assert both.asked == 6


@torch.inference_mode()
def test_documents_kept_apart_are_left_to_the_model():
    model = drawn(LAYERS["gqa"])
    mine, plain, ids = model.cache(1, 20), model.cache(1, 20), torch.arange(4)[None]
    for cache in (mine, plain):
        model(ids, segments=torch.tensor([[0, 0, 1, 1]]), cache=cache)
    steps = Steps(model, mine)
    for _ in range(6):
        assert steps(ids[:, :1]).equal(model(ids[:, :1], cache=plain).logits)
    assert "documents" in steps.refused


class Odd(Stem):
    """A stem that is no pure sequence of calls; what it does is set by a test. Source: none, it exists here alone."""

    def __init__(self, cfg: Stem.Config, site: Site) -> None:
        super().__init__()
        self.aside = torch.ones(site.dim)

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        return ODD[self.way](x, bus, self)


ODD = {
    "branches on the offset": lambda x, bus, _: x * 2 if bus.offset < 13 else x * 3,
    "branches on a length": lambda x, bus, _: x * 2 if bus.extend("x", x, dim=1).shape[1] != 15 else x,
    "counts by a remainder": lambda x, bus, _: x * (bus.offset % 5),
    "counts by a square": lambda x, bus, _: x * (bus.offset * bus.offset),
    "loops over the offset": lambda x, bus, _: sum((x for _ in range(bus.offset)), x),
    "asks for a value": lambda x, bus, _: x if x.is_meta else x * float(x.sum() > 0),
    "asks in words": lambda x, bus, _: x if x.is_meta or x.sum() > 0 else x * 2,
    "holds a tensor": lambda x, bus, odd: x * odd.aside,
    "counts its memory": lambda x, bus, _: x * bus.extend("n", torch.ones_like(x), dim=1).sum(1, keepdim=True),
}  # fmt: skip


@pytest.mark.parametrize("way", ODD)
@torch.inference_mode()
def test_what_is_no_sequence_of_calls_is_decoded_right_all_the_same(way, monkeypatch):
    monkeypatch.setattr(Odd, "way", way, raising=False)
    monkeypatch.setitem(Stem.kinds, "odd_here", Odd)
    monkeypatch.setattr(Odd, "kind", "odd_here")
    both = Compared(drawn({"stem": ["odd_here"]}))
    for _ in range(30):
        both.step()
    refused = {"remainder", "square", "loops", "value", "words", "holds"}
    assert bool(both.steps.refused) == any(word in way for word in refused), both.steps.refused


COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne]


@pytest.mark.parametrize("compare", COMPARISONS)
def test_a_comparison_says_for_how_many_tokens_it_holds(compare):
    for value, slope, other, its in itertools.product(range(-7, 8), (-3, -1, 1, 2), range(-7, 8, 2), (0, 1)):
        watch = Watch()
        said = compare(Growing.of(value, slope, watch), Growing.of(other, its, watch))
        outcomes = [compare(value + slope * k, other + its * k) for k in range(40)]
        assert said == outcomes[0]
        assert watch.lasts == next((k for k, o in enumerate(outcomes) if o != said), float("inf")) - 1


def test_growth_goes_through_arithmetic():
    n = Growing.of(5, 2, Watch())
    found = [n + 1, 1 + n, n - 1, 1 - n, -n, 3 * n, n + n, n - n]
    assert [(int(f), getattr(f, "slope", 0)) for f in found] == [
        (6, 2), (6, 2), (4, 2), (-4, -2), (-5, -2), (15, 6), (10, 4), (0, 0),
    ]  # fmt: skip
    assert type(n - n) is int and not n.watch.fault
    assert n // 2 == 2 and "cannot be followed" in n.watch.fault

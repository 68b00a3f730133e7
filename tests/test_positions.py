"""Where a token stands: counting per document, rotation, and what the rotation may depend on."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import angles
from torch import Tensor
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.core.attend import positions, previous
from zoo.core.slots import Position, Site
from zoo.core.wires import SEGMENTS, Bus, Past

LAYOUTS = ("half", "interleaved")


def rope(width: int = 16, context: int = 32, **knobs: Any) -> Position:
    return Position.parse({"kind": "rope", **knobs}).build(Site(dim=width, context=context))


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def at(offset: int) -> Bus:
    """A call after ``offset`` tokens."""
    return Bus({}, Past({}, offset, 10_000))


@given(st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=3), st.integers(1, 12))
def test_positions_begin_again_with_each_document(starts: list[list[bool]], n_tokens: int) -> None:
    segments = torch.tensor(starts).long().cumsum(1)
    want = []
    for row in segments.tolist():
        count = [0]
        for before, now in pairwise(row):
            count.append(count[-1] + 1 if before == now else 0)
        want.append(count[-n_tokens:])
    assert positions(Bus({SEGMENTS: segments}), n_tokens, segments.device).tolist() == want


def test_positions_of_one_document_count_from_the_offset() -> None:
    assert positions(Bus({}, Past({}, 5, 9)), 3, torch.device("cpu")).tolist() == [5, 6, 7]


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4), st.none() | st.lists(st.booleans(), min_size=16, max_size=16)
)
def test_previous_is_the_token_before_within_the_document(pieces: list[int], starts: list[bool] | None) -> None:
    total = sum(pieces)
    segments = None if starts is None else torch.tensor(starts[:total]).long().cumsum(0)[None]
    t = 1.0 + torch.arange(total)[None, :, None]
    inboxes = [{} if segments is None else {SEGMENTS: segments}]
    shifted, exists = previous(Bus(inboxes[0]), "t", t)
    for i in range(total):
        alone = i == 0 or (segments is not None and segments[0, i] != segments[0, i - 1])
        assert shifted[0, i, 0] == (t[0, i - 1, 0] if i else 0.0)
        assert bool(exists.view(-1, total)[0, i]) is not alone
    buffers: dict[str, Tensor] = {}
    start, found = 0, []
    for n in pieces:
        inbox = {} if segments is None else {SEGMENTS: segments[:, : start + n]}
        bus = Bus(inbox, Past(buffers, start, total))
        found.append(previous(bus, "t", t[:, start : start + n]))
        buffers, start = bus.close()[2], start + n
    assert torch.equal(torch.cat([f[0] for f in found], 1), shifted)
    assert torch.equal(torch.cat([f[1].view(-1, f[1].shape[-1]) for f in found], 1), exists.view(-1, total))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_depend_on_distance_alone(layout: str) -> None:
    block = rope(layout=layout).double()
    q, k = rand(1, 1, 1, 16), rand(1, 1, 1, 16, seed=1)

    def score(at_q: int, at_k: int) -> float:
        return float((block(q, at(at_q)) * block(k, at(at_k))).sum())

    for distance in (0, 1, 7):
        scores = torch.tensor([score(base + distance, base) for base in (0, 3, 20, 31, 100)])
        assert torch.allclose(scores, scores[:1].expand(5), atol=1e-4)
    assert abs(score(7, 0) - score(0, 7)) > 1e-2  # and on its sign


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_rotation_keeps_lengths_and_begins_with_the_identity(layout: str) -> None:
    t = rand(2, 3, 9, 16)
    turned = rope(layout=layout).double()(t, Bus())
    assert torch.equal(turned[:, :, 0], t[:, :, 0])
    assert torch.allclose(turned.norm(dim=-1), t.norm(dim=-1), rtol=1e-6)
    assert not torch.allclose(turned[:, :, 1:], t[:, :, 1:], atol=0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_partial_rotation_is_a_full_one_of_the_first_entries(layout: str) -> None:
    """The frequencies count within the entries that turn, not within the head."""
    t = rand(2, 3, 9, 16)
    turned = rope(layout=layout, dims=6).double()(t, Bus())
    assert torch.equal(turned[..., 6:], t[..., 6:])
    assert torch.equal(turned[..., :6], rope(6, layout=layout).double()(t[..., :6], Bus()))
    assert torch.equal(rope(layout=layout, dims=16).double()(t, Bus()), rope(layout=layout).double()(t, Bus()))


def test_transformers_turns_the_same_way() -> None:
    """Half layout entry by entry; interleaved by scores, since theirs puts pairs into another order."""
    q, k = rand(2, 3, 9, 16, dtype=torch.float32), rand(2, 3, 9, 16, seed=1, dtype=torch.float32)
    cos, sin = angles(16, torch.arange(9).expand(2, 9), torch.float32)
    half, mixed = rope(), rope(layout="interleaved")
    assert torch.allclose(half(q, Bus()), apply_rotary_pos_emb(q, k, cos, sin)[0], atol=1e-5)
    theirs_q, theirs_k = apply_rotary_pos_emb_interleave(q, k, cos, sin)
    ours = mixed(q, Bus()) @ mixed(k, Bus()).transpose(-1, -2)
    assert torch.allclose(ours, theirs_q @ theirs_k.transpose(-1, -2), atol=1e-5)
    assert not torch.allclose(mixed(q, Bus()), half(q, Bus()), atol=0.1)


def test_layouts_are_permutations_of_each_other() -> None:
    t = rand(1, 1, 9, 16)
    evens_then_odds = torch.cat([torch.arange(0, 16, 2), torch.arange(1, 16, 2)])
    interleaved = rope(layout="interleaved").double()(t, Bus())[..., evens_then_odds]
    assert torch.allclose(interleaved, rope().double()(t[..., evens_then_odds], Bus()), atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_slowest_and_quickest_pairs(layout: str) -> None:
    """Pair i turns by theta^(-2 i / dims) per token: counted off against Python's own cosine."""
    block, last = rope(4, theta=100.0, layout=layout).double(), 9
    t = torch.ones(1, 1, last + 1, 4, dtype=torch.float64)
    turned = block(t, Bus())[0, 0, last]
    for pair, speed in enumerate((1.0, 0.1)):  # 100 ** -0 and 100 ** -(2 / 4)
        cos, sin = torch.tensor(last * speed).cos(), torch.tensor(last * speed).sin()
        first, second = (pair, pair + 2) if layout == "half" else (2 * pair, 2 * pair + 1)
        assert abs(turned[first] - (cos - sin)) < 1e-5
        assert abs(turned[second] - (cos + sin)) < 1e-5


@given(st.integers(0, 70), st.integers(1, 9), st.sampled_from(LAYOUTS))
def test_an_offset_is_a_slice(offset: int, n_tokens: int, layout: str) -> None:
    """Also beyond the context for which the table was made."""
    t = rand(1, 1, offset + n_tokens, 8)
    full = rope(8, context=64, layout=layout).double()(t, Bus())
    part = rope(8, context=64, layout=layout).double()(t[:, :, offset:], at(offset))
    assert torch.equal(part, full[:, :, offset:])


def test_each_document_begins_at_position_0() -> None:
    block, t = rope().double(), rand(1, 2, 10, 16)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1, 2]])
    turned = block(t, Bus({SEGMENTS: segments}))
    for span in (slice(0, 3), slice(3, 9), slice(9, 10)):
        assert torch.equal(turned[:, :, span], block(t[:, :, span], Bus()))


def test_angles_are_built_in_fp32() -> None:
    """In bf16 positions above 256 would collapse; cast last, they do not."""
    block = rope(4, context=600)
    t = torch.ones(1, 1, 600, 4, dtype=torch.bfloat16)
    wide = block(t.float(), Bus())
    assert float((block(t, Bus()).float() - wide).abs().max()) < 0.02
    assert block(t, Bus()).dtype == torch.bfloat16


def test_none_is_the_identity() -> None:
    t = rand(1, 2, 5, 16)
    assert Position.parse("none").build(Site(dim=16))(t, Bus()) is t


def test_partial_is_known_to_hosts() -> None:
    assert Position.parse({"kind": "rope", "dims": 4}).is_partial()
    assert not Position.parse("rope").is_partial()
    assert not Position.parse("none").is_partial()

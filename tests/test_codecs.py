"""Codecs: what is stored comes back exactly, roundings against naive twins, codings against entropy and the bits they need."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo.codecs  # noqa: F401 (registers the kinds)
from zoo.codecs import rans, stream
from zoo.codecs.slots import LEVELS, PLAIN, Codec, Coding, Rounding, Stored, Weight, from_index
from zoo.core.params import Role
from zoo.core.part import ConfigError

FEW = settings(max_examples=40, deadline=None, derandomize=True)


def gaussian(*shape: int, seed: int = 0, std: float = 0.02) -> Tensor:
    return std * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights() -> list[Weight]:
    """Every shape and role that a model has."""
    return [
        Weight("embedding.weight", gaussian(96, 128), Role.EMBEDDING),
        Weight("layer.0.attention.query.weight", gaussian(128, 128, seed=1), Role.MATRIX),
        Weight("layer.0.ffn.experts.up", gaussian(4, 32, 128, seed=2), Role.MATRIX),
        Weight("layer.0.ffn.router.weight", gaussian(4, 128, seed=3), Role.CONTROL),
        Weight("layer.0.norm.weight", 1 + gaussian(128, seed=4), Role.SCALAR),
        Weight("stem.0.scale", torch.tensor(0.05), Role.CONTROL),
        Weight("balance.bias", torch.zeros(4), None),
        Weight("count", torch.tensor([3, -7]), None),
    ]


def encoded(**knobs: object) -> list[Stored]:
    return list(Codec.parse(knobs).build().encode(weights()))


def index_of(tensors: list[Stored]) -> list[Stored]:
    return [from_index([t.name, list(t.shape), t.storage]) for t in tensors]


# -- codings: exact, and no larger than they should be ----------------------------------------------------------------


@pytest.mark.parametrize("coding", sorted(Coding.all_kinds()))
@pytest.mark.parametrize("codec", sorted(Codec.all_kinds()))
def test_every_codec_comes_back_exactly_through_every_coding(codec: str, coding: str) -> None:
    tensors = encoded(kind=codec, small=64)
    coder: Coding = Coding.parse(coding).build()
    packed = coder.pack(tensors)
    back = coder.unpack(packed.planes, index_of(tensors))
    for ours, theirs in zip(back, tensors, strict=True):
        assert ours[:3] == theirs[:3] and np.array_equal(ours.codes, theirs.codes), ours.name
        assert torch.equal(ours.decoded(), theirs.decoded()) and ours.decoded().shape == torch.Size(theirs.shape)
    size = sum(map(len, packed.planes.values()))
    assert 0.8 * size - 600 <= sum(packed.shares) <= size + 1
    assert coder.pack(tensors) == packed


@FEW
@given(
    storage=st.sampled_from([*LEVELS, *PLAIN]),
    shape=st.lists(st.integers(0, 9), max_size=3),
    coding=st.sampled_from(sorted(Coding.all_kinds())),
    seed=st.integers(0, 2**32),
)
def test_any_codes_of_any_shape_come_back(storage: str, shape: list[int], coding: str, seed: int) -> None:
    rng, n = np.random.default_rng(seed), math.prod(shape)
    empty = from_index(["t", shape, storage])
    if storage in LEVELS:
        rows = math.prod(shape[:-1])
        codes = rng.integers(-LEVELS[storage], LEVELS[storage], (rows, shape[-1] if shape else 1), endpoint=True)
        t = empty._replace(codes=codes.astype(np.int8), scales=rng.random(rows).astype("<f2"))
    else:
        t = empty._replace(codes=rng.integers(-9, 9, n).astype(PLAIN[storage]))
    other = Stored("u", (2,), "float16", np.array([1.5, -2.0], "<f2"))
    coder = Coding.parse(coding).build()
    back = coder.unpack(coder.pack([t, other]).planes, [empty, from_index(["u", [2], "float16"])])
    assert torch.equal(back[0].decoded(), t.decoded()) and torch.equal(back[1].decoded(), other.decoded())


def test_stored_codes_take_the_bits_they_need() -> None:
    t = Stored("t", (8, 16), "int5", np.full((8, 16), -15, np.int8), np.ones(8, np.float16))
    assert len(Coding.parse("stored").build().pack([t]).planes["tensors"]) == 8 * 16 * 5 // 8 + 2 * 8


@pytest.mark.parametrize("coding", sorted(Coding.all_kinds()))
def test_planes_of_other_tensors_are_refused(coding: str) -> None:
    coder, tensors = Coding.parse(coding).build(), encoded(kind="int5")
    planes, index = coder.pack(tensors).planes, index_of(tensors)
    longer = [*index[:-1], index[-1]._replace(shape=(3,))]
    for wrong in (longer, index[:-1]):
        with pytest.raises(ValueError, match=r"\w"):
            if [t.shape for t in coder.unpack(planes, wrong)] == [t.shape for t in wrong[: len(index) - 1]]:
                raise ValueError("a plane that nobody asked for is left alone")
    with pytest.raises(ValueError, match=r"\w"):
        coder.unpack({name: plane[:-2] for name, plane in planes.items()}, index)
    with pytest.raises(ValueError, match="lacks the plane"):
        coder.unpack({}, index)


# -- the range coder --------------------------------------------------------------------------------------------------


@settings(FEW, max_examples=25)
@given(
    n=st.sampled_from([0, 1, 7, 1000, 4095, 12_300]),
    alphabet=st.sampled_from([1, 2, 31, 255, 256]),
    skew=st.floats(0.01, 20.0),
    n_tables=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_the_range_coder_gives_back_what_it_took(n: int, alphabet: int, skew: float, n_tables: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    symbols = np.minimum(rng.exponential(1 / skew, n) * alphabet, alphabet - 1).astype(np.uint8)
    tables = rng.integers(0, n_tables, n).astype(np.uint8)
    counts = np.zeros((n_tables, alphabet), np.int64)
    np.add.at(counts, (tables, symbols), 1)
    freqs = rans.frequencies(counts)
    assert (freqs.sum(1, dtype=np.int64) == rans.TOTAL).all() and ((freqs > 0) >= (counts > 0)).all()
    data = rans.encode(symbols, tables, freqs)
    assert np.array_equal(rans.decode(data, tables, freqs), symbols)
    ideal = -(counts * np.log2(np.maximum(freqs, 1) / rans.TOTAL)).sum() / 8
    assert ideal - 1 <= len(data) <= 1.002 * ideal + 4 * rans.lanes(n)
    for wrong in (data + b"\0\0", data[:-2]):
        with pytest.raises(ValueError, match=r"after all|before all|not what"):
            rans.decode(wrong, tables, freqs)


def test_the_range_coder_agrees_with_one_written_in_whole_numbers() -> None:
    """The definition with one state of unlimited size: the interleaved words carry the same symbols."""
    rng = np.random.default_rng(3)
    symbols = rng.integers(0, 5, 300).astype(np.uint8)
    freqs = rans.frequencies(np.bincount(symbols, minlength=5)[None])
    starts = [0, *np.cumsum(freqs[0], dtype=np.int64).tolist()]
    words, x = [], 1 << 16
    for s in reversed(symbols.tolist()):
        f = int(freqs[0, s])
        if x >= f << 18:
            words.append(x & 0xFFFF)
            x >>= 16
        x = (x // f << 14) + starts[s] + x % f
    expected = x.to_bytes(4, "little") + b"".join(w.to_bytes(2, "little") for w in reversed(words))
    assert rans.encode(symbols, np.zeros(300, np.uint8), freqs) == expected


def test_a_stream_written_by_format_1_is_read() -> None:
    """What has been written must be read for ever: these bytes may only change together with the format's number."""
    written = "010108010c00000078da63e060b00000005400410000000079d9df502d03df2079d92d03fa247f4a9ec5446431e900d8"
    expected = np.tile(np.array([9, 9, 9, 9, 9, 9, 9, 8], np.uint8), 40)
    assert np.array_equal(stream.unpack(bytes.fromhex(written), np.array([160, 160])), expected)


def test_rows_of_different_spread_get_tables_of_their_own() -> None:
    rng = np.random.default_rng(0)
    spread = np.where(np.arange(400) % 2, 2.0, 30.0)
    codes = np.clip(rng.normal(128, spread[:, None], (400, 512)), 0, 255).astype(np.uint8)
    counts = np.bincount(codes.reshape(-1), minlength=256)
    one_table = stream.entropy_bits(counts[None]) / 8
    per_row = sum(stream.entropy_bits(np.bincount(c.reshape(-1))[None]) for c in (codes[::2], codes[1::2])) / 8
    packed = stream.pack(codes.reshape(-1), np.full(400, 512))
    assert per_row <= len(packed.data) < 1.01 * per_row < 0.9 * one_table
    assert packed.costs.sum() == pytest.approx(len(packed.data), rel=0.01)
    assert packed.costs[::2].sum() > 2 * packed.costs[1::2].sum()


# -- roundings --------------------------------------------------------------------------------------------------------


def squared(table: Tensor, codes: np.ndarray, scales: np.ndarray) -> float:
    t = Stored("t", tuple(table.shape), "int5", codes, scales)
    return float((t.decoded().double() - table.double()).square().sum())


def test_row_max_is_the_published_rule() -> None:
    table, q = gaussian(7, 33), 15
    table[3] = 0.0
    codes, scales = Rounding.parse("row_max").build().codes(table, q, None)
    for row, code, scale in zip(table.tolist(), codes.tolist(), scales.tolist(), strict=True):
        assert scale == max(float(np.float16(max(map(abs, row)) / q)), 2.0**-14)
        assert code == [min(q, max(-q, round(float(np.float32(w) / np.float32(scale))))) for w in row]
    assert not codes[3].any() and np.abs(codes).max() == q


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_clip_search_finds_what_trying_every_scale_finds(bits: int) -> None:
    table, q = gaussian(5, 400, std=1.0), LEVELS[f"int{bits}"]
    table[0, 0] = 9.0  # an outlier
    plain = Rounding.parse("row_max").build().codes(table, q, None)
    found = Rounding.parse({"kind": "clip_search", "candidates": 61, "narrowest": 0.4}).build().codes(table, q, None)
    for i, row in enumerate(table):
        tried = [float(np.float16(float(row.abs().max()) / q * s)) for s in np.linspace(1.0, 0.4, 61)]
        errors = [float((row - (row / s).round().clamp(-q, q) * s).double().square().sum()) for s in tried]
        assert squared(row[None], found[0][i : i + 1], found[1][i : i + 1]) == pytest.approx(min(errors), rel=1e-3)
    lost, plainly = squared(table, *found), squared(table, *plain)
    assert lost < plainly if bits < 8 else lost <= plainly  # at 8 bits no outlier is worth a coarser grid elsewhere


def test_gptq_loses_less_of_the_output_than_nearest_codes_do() -> None:
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(64, 64, generator=generator) / 8
    inputs = torch.randn(4096, 64, generator=generator) @ mixing  # correlated
    hessian = (inputs.T @ inputs / len(inputs)).double()
    table = gaussian(48, 64, std=1.0, seed=6)
    table[:, 5] = 0.0

    def output_error(kind: str) -> tuple[float, np.ndarray]:
        codes, scales = Rounding.parse(kind).build().codes(table, 7, hessian)
        lost = Stored("t", (48, 64), "int4", codes, scales).decoded() - table
        return float((inputs @ lost.T).square().mean()), codes

    carried, codes = output_error("gptq")
    assert carried < 0.7 * output_error("clip_search")[0] < output_error("row_max")[0]
    assert not codes[:, 5].any()  # a pruned number stays pruned
    assert np.array_equal(
        Rounding.parse("gptq").build().codes(table, 7, None)[0],
        Rounding.parse("clip_search").build().codes(table, 7, None)[0],
    )


def test_gptq_of_uncorrelated_inputs_is_the_nearest_code() -> None:
    table = gaussian(6, 16, std=1.0)
    codes, _ = Rounding.parse("gptq").build().codes(table, 7, torch.eye(16, dtype=torch.float64))
    assert np.array_equal(codes, Rounding.parse("clip_search").build().codes(table, 7, None)[0])


# -- codecs -----------------------------------------------------------------------------------------------------------


def test_raw_is_the_weights_themselves() -> None:
    for t, weight in zip(encoded(kind="raw"), weights(), strict=True):
        assert torch.equal(t.decoded(), weight.tensor)


def test_mixed_stores_each_tensor_as_the_published_entry_does() -> None:
    stored = {t.name: t.storage for t in encoded(kind="mixed", small=600)}
    assert stored == {
        "embedding.weight": "float16",
        "layer.0.attention.query.weight": "int6",
        "layer.0.ffn.experts.up": "int5",
        "layer.0.ffn.router.weight": "float16",
        "layer.0.norm.weight": "float16",
        "stem.0.scale": "float16",
        "balance.bias": "float16",
        "count": "int64",
    }


def test_rules_speak_of_roles_and_names_and_the_first_one_wins() -> None:
    rules = [{"match": "layer.*.ffn.*", "store": "int3"}, {"match": "matrix", "store": "int7"}]
    stored = {t.name: t.storage for t in encoded(kind="mixed", small=0, rules=rules)}
    assert stored["layer.0.ffn.experts.up"] == "int3" and stored["layer.0.attention.query.weight"] == "int7"
    assert stored["embedding.weight"] == "int8" and stored["layer.0.ffn.router.weight"] == "float16"
    codec = Codec.parse({"kind": "mixed", "rules": [*rules, {"match": "layer.*.fnn.*", "store": "int5"}]}).build()
    assert codec.remarks(weights()) == ["codec.rules: no tensor is called 'layer.*.fnn.*'"]


@pytest.mark.parametrize("share", [0.03, 0.5])
def test_pruning_takes_the_smallest_numbers_of_large_tables_only(share: float) -> None:
    before = {w.name: w.tensor for w in weights()}
    large, small = "layer.0.attention.query.weight", "layer.0.ffn.router.weight"
    after = {t.name: t.decoded() for t in encoded(kind="raw", prune=share, prune_above=600)}
    gone = (after[large] == 0) & (before[large] != 0)
    assert gone.sum().item() == pytest.approx(share * gone.numel(), abs=1)
    assert before[large][gone].abs().max() <= before[large][~gone].abs().min()
    assert torch.equal(after[large][~gone], before[large][~gone]) and torch.equal(after[small], before[small])


def test_numbers_that_no_codec_holds_are_refused_by_name() -> None:
    codec = Codec.parse("int8").build()
    with pytest.raises(ConfigError, match=r"bad\.weight holds numbers that are not finite"):
        list(codec.encode([Weight("bad.weight", torch.tensor([math.nan]), Role.SCALAR)]))
    with pytest.raises(ConfigError, match=r"big\.weight holds 100000, which is too large for fp16"):
        list(codec.encode([Weight("big.weight", torch.tensor([1e5]), Role.SCALAR)]))
    with pytest.raises(ConfigError, match="too large for fp16"):
        list(codec.encode([Weight("huge.weight", torch.full((100, 100), 1e8), Role.MATRIX)]))

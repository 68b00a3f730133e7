"""Stem pieces: hashed pairs, smearing, mixing the first stream in; formulas by loop, hand values, documents, decoding."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.blocks.bigram_hash import bucket
from zoo.core.params import Init, Role, initialise, roles
from zoo.core.part import ConfigError
from zoo.core.slots import Site, Stem
from zoo.core.wires import NOISE, SEGMENTS, TOKENS, X0, Bus, noise_key
from zoo.model import Model, ModelConfig

DIM, VOCAB = 16, 40
BIGRAM = {"kind": "bigram_hash", "n_buckets": 97, "table_dim": 8}
NGRAM = {"kind": "ngram_hash", "orders": (2, 4), "n_buckets": 97, "table_dim": 8}
CONVEX, HALVED, ADDITIVE = ({"kind": "smear_gate", **k} for k in ({}, {"start": "halve"}, {"form": "additive"}))
PIECES = {
    "bigram": BIGRAM,
    "ngram": NGRAM,
    "convex": CONVEX,
    "halved": HALVED,
    "additive": ADDITIVE,
    "x0": {"kind": "x0_mix"},
}


def build(table: dict[str, Any], dim: int = DIM) -> Stem:
    """A stem piece with random parameters, in fp64."""
    block = Stem.parse(table).build(Site(dim, n_layers=3))
    randomise(block)
    return block.double()


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.copy_(torch.randn(p.shape, generator=generator))


def drawn(table: dict[str, Any], dim: int = DIM) -> Stem:
    """A stem piece as it is first drawn."""
    block = Stem.parse(table).build(Site(dim, n_layers=3))
    initialise(block, 0, Init.parse("normal").build(), 3)
    return block.double()


def stream(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def inbox(tokens: Tensor, segments: Tensor | None = None) -> Bus:
    x0 = stream(*tokens.shape, DIM, seed=9)
    return Bus({TOKENS: tokens, X0: x0} | ({} if segments is None else {SEGMENTS: segments}))


def some_tokens(rows: int, n: int) -> Tensor:
    return torch.randint(0, VOCAB, (rows, n), generator=torch.Generator().manual_seed(2))


DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 2, 3, 3], [4, 5, 5, 5, 5, 5, 5, 5, 5]])


# --- bigram hash ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "token", "row"), [(0, 0, 0), (0, 1, 3553), (1, 0, 2621), (5, 7, 1051)])
def test_buckets_worked_out_by_hand(before: int, token: int, row: int):
    assert bucket(torch.tensor(before), torch.tensor(token), 4096).item() == row


@given(st.integers(0, 59_138), st.integers(0, 59_138), st.integers(2, 2**20))
def test_buckets_equal_32_bit_arithmetic_and_leave_the_last_row_free(before: int, token: int, n_buckets: int):
    row = bucket(torch.tensor(before), torch.tensor(token), n_buckets).item()
    narrow = (36313 * torch.tensor(token, dtype=torch.int32)) ^ (27191 * torch.tensor(before, dtype=torch.int32))
    assert row == (narrow % (n_buckets - 1)).item() == ((36313 * token) ^ (27191 * before)) % (n_buckets - 1)
    assert 0 <= row < n_buckets - 1


@pytest.mark.parametrize("segments", [None, DOCUMENTS])
def test_bigram_equals_a_loop_over_tokens(segments: Tensor | None):
    block, tokens, x = build(BIGRAM), some_tokens(2, 9), stream(2, 9, DIM)
    y = block(x, inbox(tokens, segments))
    for b in range(2):
        for t in range(9):
            first = t == 0 or (segments is not None and segments[b, t] != segments[b, t - 1])
            row = 96 if first else ((36313 * int(tokens[b, t])) ^ (27191 * int(tokens[b, t - 1]))) % 96
            expected = x[b, t] + block.scale * (block.projection.weight @ block.table.weight[row])
            torch.testing.assert_close(y[b, t], expected, rtol=1e-12, atol=1e-12)


def test_bigram_does_nothing_at_first_and_its_table_learns_at_once():
    block, x = drawn(BIGRAM), stream(2, 9, DIM)
    y = block(x, inbox(some_tokens(2, 9)))
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert block.table.weight.grad.abs().max() > 0
    assert block.scale.item() == pytest.approx(0.05)


def test_bigram_projection_as_published():
    weight = drawn(BIGRAM | {"projection": "orthogonal"}).projection.weight  # (16, 8)
    torch.testing.assert_close(weight.T @ weight, torch.eye(8, dtype=torch.float64) / 6, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(drawn(BIGRAM).projection.weight, weight)


def test_bigram_parameters():
    block = Stem.parse("bigram_hash").build(Site(512))
    assert {name: p.numel() for name, p in block.named_parameters()} == {
        "scale": 1,
        "table.weight": 524_288,
        "projection.weight": 65_536,
    }
    assert roles(block) == {
        "scale": Role.CONTROL,
        "table.weight": Role.EMBEDDING,
        "projection.weight": Role.MATRIX,
    }


# --- n-gram hash ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segments", [None, DOCUMENTS])
def test_ngrams_equal_a_loop_over_tokens(segments: Tensor | None):
    block, tokens, x = build(NGRAM), some_tokens(2, 9), stream(2, 9, DIM)
    y = block(x, inbox(tokens, segments))
    for b in range(2):
        for t in range(9):
            found = torch.zeros(8, dtype=torch.float64)
            for i, n in enumerate((2, 4)):
                start = t - n + 1
                whole = start >= 0 and (segments is None or segments[b, start] == segments[b, t])
                key = 0
                for place in range(t, start - 1, -1) if whole else ():
                    key = (key * 1_000_003 + int(tokens[b, place]) + 1) % (2**31 - 1)
                found += block.table.weight[97 * i + (key % 96 if whole else 96)]
            expected = x[b, t] + block.scale * (block.projection.weight @ found)
            torch.testing.assert_close(y[b, t], expected, rtol=1e-12, atol=1e-12)


def test_ngrams_do_nothing_at_first_and_their_tables_learn_at_once():
    block, x = drawn(NGRAM), stream(2, 9, DIM)
    y = block(x, inbox(some_tokens(2, 9)))
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert all(table.abs().max() > 0 for table in block.table.weight.grad.split(97))


def test_different_ngrams_of_an_alphabet_rarely_meet_in_a_row():
    block = Stem.parse({"kind": "ngram_hash", "orders": (3,), "n_buckets": 2**20 + 1}).build(Site(DIM))
    letters = torch.arange(65)
    grams = torch.cartesian_prod(letters[:40], letters[:40], letters[:40])  # (64,000, 3)
    ((key, _),) = block._grams(grams, Bus())
    rows = len(torch.unique(key[:, -1] % 2**20))
    assert rows > 0.96 * len(grams)  # 64,000 balls into 1,048,576 boxes at random hit 62,096 of them, 0.970


def test_ngrams_are_left_out_while_training_only_and_make_up_for_it():
    dropping = build(NGRAM | {"dropout": 0.25})
    tokens, x = some_tokens(40, 60), torch.zeros(40, 60, DIM, dtype=torch.float64)
    noisy = Bus({TOKENS: tokens, NOISE: noise_key(0, 1)})
    with torch.no_grad():
        dropping.table.weight.fill_(1.0)
        torch.testing.assert_close(dropping.eval()(x, inbox(tokens)), build_like(dropping)(x, inbox(tokens)))
        whole, y = dropping(x, inbox(tokens)), dropping.train()(x, noisy)
    shares = (y / whole)[..., 0]  # of two n-grams none, one or both are there, each 4/3 as strong
    assert shares.unique().round(decimals=6).unique().tolist() == pytest.approx([0, 2 / 3, 4 / 3], abs=1e-5)
    assert shares.mean().item() == pytest.approx(1.0, abs=0.03)  # 4,800 draws: 0.008


def build_like(block: Stem) -> Stem:
    """The same weights without dropout."""
    twin = build(NGRAM)
    twin.load_state_dict(block.state_dict())
    return twin


def test_ngram_parameters():
    block = Stem.parse("ngram_hash").build(Site(512))
    assert {name: p.numel() for name, p in block.named_parameters()} == {
        "scale": 1,
        "table.weight": 3 * 4096 * 128,
        "projection.weight": 65_536,
    }
    assert set(roles(block).values()) == {Role.CONTROL, Role.EMBEDDING, Role.MATRIX}


# --- smear gate -------------------------------------------------------------------------------------------------------


def smeared(block: Stem, x: Tensor, before: Tensor | None) -> Tensor:
    """One token, given its predecessor or None."""
    if block.form == "additive":
        gate = 1 / (1 + math.exp(-(x[:12] @ block.gate).item()))
        return x + (0 if before is None else block.scale * gate * before)
    gate = block.gate.sigmoid()
    if before is None:
        return (1 - gate) * x if block.start == "halve" else x
    return (1 - gate) * x + gate * before


@pytest.mark.parametrize("segments", [None, DOCUMENTS])
@pytest.mark.parametrize("table", [CONVEX, HALVED, ADDITIVE], ids=["convex", "halved", "additive"])
def test_smear_equals_a_loop_over_tokens(table: dict[str, Any], segments: Tensor | None):
    block, x = build(table), stream(2, 9, DIM)
    y = block(x, inbox(some_tokens(2, 9), segments))
    for b in range(2):
        for t in range(9):
            first = t == 0 or (segments is not None and segments[b, t] != segments[b, t - 1])
            torch.testing.assert_close(y[b, t], smeared(block, x[b, t], None if first else x[b, t - 1]))


def test_smear_of_a_constant_sequence():
    x = stream(1, 1, DIM).detach().expand(1, 6, DIM)
    torch.testing.assert_close(build(CONVEX)(x, Bus()), x, rtol=0, atol=0)
    block = build(ADDITIVE)
    grown = (1 + block.scale * (x[0, 0, :12] @ block.gate).sigmoid()) * x
    torch.testing.assert_close(block(x, Bus())[:, 1:], grown[:, 1:])


def test_smear_as_published_halves_the_first_token_and_averages_the_others():
    x = stream(1, 6, DIM)
    y = drawn(HALVED)(x, Bus())
    torch.testing.assert_close(y[:, 0], x[:, 0] / 2, rtol=0, atol=0)
    torch.testing.assert_close(y[:, 1:], (x[:, 1:] + x[:, :-1]) / 2)
    torch.testing.assert_close(drawn(CONVEX)(x, Bus())[:, 0], x[:, 0], rtol=0, atol=0)


def test_additive_smear_starts_as_the_identity_and_its_gate_waits_for_the_scale():
    block, x = drawn(ADDITIVE), stream(1, 6, DIM)
    y = block(x, Bus())
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert block.scale.grad.abs() > 0
    assert block.gate.grad.abs().max() == 0


def test_smear_parameters():
    counts = {n: sum(p.numel() for p in build(t, 512).parameters()) for n, t in PIECES.items() if "gram" not in n}
    assert counts == {"convex": 512, "halved": 512, "additive": 13, "x0": 1024}
    assert set(roles(build(ADDITIVE)).values()) == set(roles(build(CONVEX)).values()) == {Role.CONTROL}


def test_additive_smear_needs_its_channels():
    with pytest.raises(ConfigError, match="channels = 12: exceeds dim = 8"):
        build(ADDITIVE, 8)


# --- x0 mix -----------------------------------------------------------------------------------------------------------


def test_x0_mix_is_its_formula_and_starts_as_the_identity():
    x, bus = stream(2, 9, DIM), inbox(some_tokens(2, 9))
    assert torch.equal(drawn(PIECES["x0"])(x, bus), x)
    block = build(PIECES["x0"])
    torch.testing.assert_close(block(x, bus), block.mix[0] * x + block.mix[1] * bus[X0])
    assert roles(block) == {"mix": Role.CONTROL}


def test_x0_mix_gets_the_stream_that_enters_the_first_layer():
    model = small(layer_stem=("x0_mix",), stem=("rms_norm", "smear_gate"))
    seen = []
    for layer in model.layer:
        layer.stem[0].register_forward_hook(lambda module, args, out: seen.append(args[1][X0]))
    tokens = some_tokens(1, 5)
    model(tokens)
    normed = model.stem[0](model.embedding(tokens))
    expected = model.stem[1](normed, Bus())
    assert len(seen) == 2
    assert all(torch.equal(x0, expected) for x0 in seen)


def test_x0_mix_is_refused_at_the_entrance():
    with pytest.raises(ConfigError, match="stem reads wire 'x0', which nothing before it writes"):
        small(stem=("x0_mix",))


# --- all of them ------------------------------------------------------------------------------------------------------


def small(stem: tuple[Any, ...] = (), layer_stem: tuple[Any, ...] = ()) -> Model:
    layer = {"kind": "pre_norm", "stem": layer_stem, "attention": {"kind": "gqa", "n_heads": 2}, "ffn": "relu2"}
    sizes = {"vocab_size": VOCAB, "context": 32, "dim": DIM, "n_layers": 2}
    model = Model(ModelConfig.model_validate({**sizes, "stem": stem, "layer": layer})).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model.eval()


@pytest.mark.parametrize("table", PIECES.values(), ids=PIECES)
def test_nothing_after_a_token_reaches_it(table: dict[str, Any]):
    block, tokens, x = build(table), some_tokens(1, 8), stream(1, 8, DIM)
    y = block(x, inbox(tokens))
    for t in range(7):
        (grad,) = torch.autograd.grad(y[:, : t + 1].sum(), x, retain_graph=True)
        assert grad[:, t + 1 :].abs().max() == 0
        changed = torch.cat([tokens[:, : t + 1], (tokens[:, t + 1 :] + 1) % VOCAB], 1)
        assert torch.equal(block(x, inbox(changed))[:, : t + 1], y[:, : t + 1])


@pytest.mark.parametrize("table", PIECES.values(), ids=PIECES)
def test_every_parameter_learns(table: dict[str, Any]):
    block = build(table)
    block(stream(2, 64, DIM), inbox(some_tokens(2, 64))).square().sum().backward()
    for name, p in block.named_parameters():
        assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(
    ("name", "where"), [(n, w) for n in PIECES for w in ("entrance", "layer") if (n, w) != ("x0", "entrance")]
)
def test_decoding_equals_computing_in_full(name: str, where: str, documents: bool):
    piece = (PIECES[name],)
    model = small(stem=piece) if where == "entrance" else small(layer_stem=piece)
    tokens, segments = some_tokens(2, 9), DOCUMENTS if documents else None
    with torch.no_grad():
        full = model(tokens, segments=segments).logits
        for sizes in ([1] * 9, [4, 1, 3, 1]):
            cache, parts, start = model.cache(2, 9), [], 0
            for n in sizes:
                piece = None if segments is None else segments[:, start : start + n]
                parts.append(model(tokens[:, start : start + n], segments=piece, cache=cache).logits)
                start += n
            torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PIECES)
def test_a_document_gives_the_same_alone_and_in_a_packed_row(name: str):
    model, tokens = small(layer_stem=(PIECES[name],)), some_tokens(2, 9)
    with torch.no_grad():
        packed = model(tokens, segments=DOCUMENTS).logits
        for row, start, stop in ((0, 0, 3), (0, 3, 6), (0, 7, 9), (1, 1, 9)):
            alone = model(tokens[row : row + 1, start:stop]).logits
            torch.testing.assert_close(packed[row : row + 1, start:stop], alone, rtol=1e-9, atol=1e-9)

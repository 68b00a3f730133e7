"""Scoring: every token once, in nats that a code would need, over the bytes of the raw text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo.blocks
import zoo.scoring
from zoo.core.part import ConfigError
from zoo.core.slots import IGNORE
from zoo.model import Model, ModelConfig, Out
from zoo.scoring.slots import Score, Scorer

assert zoo.blocks and zoo.scoring  # imported for the kinds they register

V, BOS = 11, 10
shapes = st.tuples(st.integers(2, 60), st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))


class Stub(nn.Module):
    """Stands for a model: what it was asked is kept, and a target v costs ``prices[v]`` nats wherever it stands."""

    def __init__(self, prices: Tensor) -> None:
        super().__init__()
        self.prices = nn.Parameter(prices)
        self.config = ModelConfig(vocab_size=len(prices))
        self.asked: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, tokens: Tensor, targets: Tensor, *, segments: Tensor | None = None, last: int = 0) -> Out:
        assert not torch.is_grad_enabled() and last == tokens.shape[1], "a window of plain is scored whole"
        self.asked.append((tokens, targets, segments))
        nll = torch.where(targets == IGNORE, torch.nan, self.prices[targets.clamp_min(0)])
        return Out(nll, None, {}, {})


def stream(n: int, seed: int) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(0, V, n).astype(np.uint16)
    tokens[0] = BOS
    return tokens


def score(model: nn.Module, tokens: np.ndarray, context: int, batch: int, bos: int | None = None) -> Score:
    lengths = np.array([*range(1, V), 0])  # bytes of each id; bos has none
    return Scorer.parse("plain").build().score(model.eval(), tokens, lengths[tokens], context, batch, bos)


@settings(deadline=None)
@given(shapes)
def test_a_uniform_predictor_pays_ln_v_per_token(shape: tuple[int, int, int, int]) -> None:
    n, context, batch, seed = shape
    tokens = stream(n, seed)
    found = score(Stub(torch.full((V,), math.log(V), dtype=torch.float64)), tokens, context, batch)
    assert found.tokens == n - 1 and found.nats == pytest.approx((n - 1) * math.log(V), rel=1e-12)
    assert found.nats_per_token == pytest.approx(math.log(V), rel=1e-12)


@settings(deadline=None)
@given(shapes)
def test_every_token_but_the_first_is_scored_once_and_bos_has_no_bytes(shape: tuple[int, int, int, int]) -> None:
    n, context, batch, seed = shape
    tokens = stream(n, seed)
    prices = torch.arange(1, V + 1, dtype=torch.float64) ** 2
    model = Stub(prices)
    found = score(model, tokens, context, batch)
    assert found.nats == sum((int(t) + 1) ** 2 for t in tokens[1:])
    assert found.bytes == sum(int(t) + 1 for t in tokens[1:] if t != BOS)
    targets = torch.cat([t.flatten() for _, t, _ in model.asked])
    assert targets[targets != IGNORE].tolist() == tokens[1:].tolist()
    inputs = torch.cat([x.flatten() for x, _, _ in model.asked])
    assert inputs[targets != IGNORE].tolist() == tokens[:-1].tolist()
    assert all(x.shape[1] == context and x.shape[0] <= batch for x, _, _ in model.asked)


def test_bytes_are_those_of_the_scored_tokens_where_they_stand() -> None:
    tokens, spans = stream(50, 1), np.random.default_rng(2).integers(1, 9, 50).astype(np.uint32)
    found = Scorer.parse("plain").build().score(Stub(torch.ones(V)).eval(), tokens, spans, 7, 2)
    assert found.bytes == sum(spans.tolist()[1:])  # as a tokenizer that normalises gives them: not by id


def model_of(context: int) -> Model:
    torch.manual_seed(0)
    model = Model(ModelConfig(vocab_size=V, dim=16, n_layers=2, context=context), seed=1).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize(
    ("n", "context", "batch"), [(2, 8, 3), (9, 8, 3), (10, 8, 3), (40, 8, 2), (41, 8, 2), (30, 64, 4)]
)
def test_the_score_is_that_of_one_token_at_a_time(n: int, context: int, batch: int) -> None:
    tokens, model = stream(n, 3), model_of(context)
    nats = 0.0
    for i in range(1, n):
        start = (i - 1) // context * context  # of the window in which token i is a target
        seen = torch.from_numpy(tokens[start:i].astype(np.int64))[None]
        nats -= float(model(seen).logits[0, -1].log_softmax(-1)[int(tokens[i])])
    assert score(model, tokens, context, batch).nats == pytest.approx(nats, rel=1e-9)


@torch.no_grad()
def test_documents_kept_apart_are_scored_as_if_they_stood_alone() -> None:
    context, model = 8, model_of(8)
    tokens = stream(60, 5)
    nats = 0.0
    for i in range(1, len(tokens)):
        start = (i - 1) // context * context
        begins = [j for j in range(start, i) if tokens[j] == BOS]
        seen = torch.from_numpy(tokens[begins[-1] if begins else start : i].astype(np.int64))[None]
        nats -= float(model(seen).logits[0, -1].log_softmax(-1)[int(tokens[i])])
    assert (tokens == BOS).sum() > 3
    assert score(model, tokens, context, 3, BOS).nats == pytest.approx(nats, rel=1e-9)
    assert score(model, tokens, context, 3).nats != pytest.approx(nats, rel=1e-6)


def test_sums_are_in_double_precision() -> None:
    prices = torch.full((V,), 0.1, dtype=torch.float32)
    n = 200_000
    found = score(Stub(prices), stream(n + 1, 0), 1000, 50)
    assert found.nats == pytest.approx(n * float(prices[0]), rel=1e-12)


def test_bits_per_byte_are_nats_over_ln_2_and_bytes() -> None:
    found = Score(nats=math.log(2) * 12, tokens=4, bytes=6)
    assert found.bits_per_byte == pytest.approx(2) and found.nats_per_token == pytest.approx(3 * math.log(2))


def test_what_would_give_a_wrong_number_is_refused() -> None:
    model, tokens = Stub(torch.ones(V)), stream(9, 0)
    scorer = Scorer.parse("plain").build()
    assert scorer.code_length
    with pytest.raises(ConfigError, match="training mode"):
        scorer.score(model.train(), tokens, tokens, 4, 2)
    model.eval()
    with pytest.raises(ConfigError, match="11 spans for 9 tokens"):
        scorer.score(model, tokens, np.arange(V), 4, 2)
    with pytest.raises(ConfigError, match="nothing to score"):
        scorer.score(model, tokens[:1], tokens[:1], 4, 2)
    with pytest.raises(ConfigError, match="token 21, outside the model's vocabulary of 11"):
        scorer.score(model, tokens + 11, tokens, 4, 2)

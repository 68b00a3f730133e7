"""What every scorer promises that calls its figures the lengths of codes, asked of all that are registered."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo.blocks
import zoo.scoring
from zoo.core.part import PartConfig
from zoo.model import Model, ModelConfig
from zoo.scoring.slots import Scorer

assert zoo.blocks and zoo.scoring  # imported for the kinds they register

V, BOS, CONTEXT = 7, 6, 8
CODES = sorted(kind for kind, part in Scorer.kinds.items() if part.code_length)
OTHERS = sorted(kind for kind, part in Scorer.kinds.items() if not part.code_length)


def settings_of(kind: str) -> PartConfig:
    """A kind with knobs that fit a context of 8."""
    strided = "stride" in Scorer.kinds[kind].Config.model_fields
    return Scorer.parse({"kind": kind, **({"stride": 3} if strided else {})})


def model_of(seed: int) -> Model:
    model = Model(ModelConfig(vocab_size=V, dim=8, n_layers=2, context=CONTEXT), seed=seed).double()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=noise, dtype=p.dtype)
    return model.eval()


def nats(kind: str, model: Model, tokens: list[int], bos: int | None) -> float:
    scorer = settings_of(kind).build()
    return scorer.score(model, np.array(tokens), np.ones(len(tokens)), CONTEXT, 3, bos).nats


def mass(kind: str, model: Model, past: list[int], bos: int | None) -> float:
    """What a scorer gives to the whole vocabulary behind ``past``, as far as its figures tell."""
    before = nats(kind, model, past, bos)
    return sum(math.exp(before - nats(kind, model, [*past, v], bos)) for v in range(V))


pasts = st.lists(st.integers(0, V - 1), min_size=CONTEXT + 1, max_size=40)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("bos", [None, BOS])
def test_a_code_gives_the_vocabulary_a_mass_of_one(kind: str, bos: int | None) -> None:
    @settings(deadline=None, max_examples=8)
    @given(pasts, st.integers(0, 9))
    def holds(past: list[int], seed: int) -> None:
        assert mass(kind, model_of(seed), [BOS, *past], bos) == pytest.approx(1, abs=1e-6)

    holds()


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_code_does_not(kind: str) -> None:
    past = [BOS, *np.random.default_rng(0).integers(0, 3, 100).tolist()]
    assert mass(kind, model_of(0), past, None) > 1.05
    assert "code_length" in Scorer.kinds[kind].breaks


@pytest.mark.parametrize("kind", CODES)
def test_no_code_is_shorter_than_the_entropy_of_noise(kind: str) -> None:
    n, model = 600, model_of(0)
    tokens = np.random.default_rng(0).integers(0, V, n + 1)
    scorer = settings_of(kind).build()
    ask = scorer.predictor(model, CONTEXT)
    paid = [-math.log2(ask(int(now))[following]) for now, following in pairwise(tokens)]
    assert nats(kind, model, tokens.tolist(), None) / math.log(2) == pytest.approx(sum(paid), rel=1e-9)
    assert np.mean(paid) >= math.log2(V) - 3 * np.std(paid) / math.sqrt(n)

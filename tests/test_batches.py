"""Batches: every window once per epoch, by seed and step alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.core.part import ConfigError
from zoo.data.batches import Batches, segments

streams = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**40), st.integers(0, 60))


@settings(deadline=None)
@given(streams)
def test_every_window_is_seen_once_per_epoch(shape: tuple[int, int, int, int, int]) -> None:
    context, rows, accumulate, seed, extra = shape
    tokens = np.arange(context + 1 + extra, dtype=np.uint16)
    batches = Batches(tokens, context, rows, seed, bos=0, accumulate=accumulate)
    n = (len(tokens) - 1) // context
    assert batches.windows == n
    seen: list[int] = []
    step = 0
    while len(seen) < 3 * n:
        step += 1
        for micro in range(accumulate):
            inputs, targets, none = batches.batch(step, micro)
            assert inputs.shape == targets.shape == (rows, context) and inputs.dtype == targets.dtype == torch.int64
            assert none is None and torch.equal(targets, inputs + 1)  # since token i is i
            assert (inputs[:, 0] % context == 0).all() and torch.equal(inputs, inputs[:, :1] + torch.arange(context))
            seen += (inputs[:, 0] // context).tolist()
    for epoch in range(3):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    tokens = np.random.default_rng(0).integers(0, 500, 5000).astype(np.uint16)

    def make(seed: int) -> Batches:
        return Batches(tokens, 16, 4, seed, bos=0, accumulate=2)

    ahead, fresh = make(1), make(1)
    for step in range(1, 300):
        ahead.batch(step)
    for step in (250, 3, 78, 79, 1):
        assert torch.equal(ahead.batch(step, 1)[0], fresh.batch(step, 1)[0])
    assert not torch.equal(make(1).batch(1)[0], make(2).batch(1)[0])
    assert not torch.equal(make(1).batch(1, 0)[0], make(1).batch(1, 1)[0])


def test_the_order_is_the_same_for_ever() -> None:
    batches = Batches(np.arange(1001, dtype=np.uint16), 10, 5, seed=7, bos=0)
    assert [batches.window(n) for n in range(5)] == [57, 61, 19, 41, 47]


def test_rows_number_their_documents() -> None:
    tokens = np.array([9, 1, 2, 9, 3, 9, 9, 4, 5, 6, 7, 8, 9], np.uint16)
    batches = Batches(tokens, 4, 3, seed=0, bos=9, document_mask="segments")
    inputs, _, numbers = batches.batch(1)
    for row, number in zip(inputs.tolist(), numbers.tolist(), strict=True):
        count = 0
        for token, n in zip(row, number, strict=True):
            count += token == 9
            assert n == count
    assert torch.equal(segments(torch.tensor([[1, 9, 9, 2]]), 9), torch.tensor([[0, 1, 2, 2]]))


def test_too_little_text_and_impossible_steps_are_refused() -> None:
    tokens = np.zeros(16, np.uint16)
    assert Batches(tokens, 15, 1, 0, bos=0).windows == 1
    with pytest.raises(ConfigError, match=r"context = 16: a window takes 17 tokens, the text has 16"):
        Batches(tokens, 16, 1, 0, bos=0)
    batches = Batches(tokens, 4, 1, 0, bos=0, accumulate=2)
    for step, micro in ((0, 0), (1, 2), (1, -1)):
        with pytest.raises(ValueError, match="no micro-batch"):
            batches.batch(step, micro)

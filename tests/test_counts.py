"""Yardsticks: count models, entropies and compressors."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import data, texts
from texts import folder as folder

from zoo.data.byte import BOS
from zoo.data.counts import Baselines, baselines, byte_stream, count_model_nats, unigram_entropy, xz_bits_per_byte
from zoo.data.prepare import prepare
from zoo.data.slots import Document


def naive_nats(train: list[int], valid: list[int], vocab_size: int, order: int) -> float:
    """Interpolated Witten-Bell with dictionaries, one token at a time."""
    tables: list[dict[tuple[int, ...], Counter[int]]] = [{} for _ in range(order + 1)]
    for width, table in enumerate(tables):
        for i in range(width, len(train)):
            table.setdefault(tuple(train[i - width : i]), Counter())[train[i]] += 1
    total = 0.0
    for i in range(1, len(valid)):
        p = 1 / vocab_size
        for width in range(min(order, i) + 1):
            seen = tables[width].get(tuple(valid[i - width : i]))
            if seen:
                p = (seen[valid[i]] + len(seen) * p) / (sum(seen.values()) + len(seen))
        total -= math.log(p)
    return total


token_lists = st.lists(st.integers(0, 4), min_size=2, max_size=40)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=60), token_lists, st.integers(0, 3))
def test_count_models_equal_counting_by_hand(train: list[int], valid: list[int], order: int) -> None:
    found = count_model_nats(np.array(train, np.uint16), np.array(valid, np.uint16), 5, order)
    assert found == pytest.approx([naive_nats(train, valid, 5, o) for o in range(order + 1)], rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=3, max_size=50), st.lists(st.integers(0, 3), min_size=1, max_size=4))
def test_a_count_model_is_a_distribution(train: list[int], context: list[int]) -> None:
    def nats(tokens: list[int]) -> float:
        return count_model_nats(np.array(train), np.array(tokens), 4, 2)[-1]

    before = nats(context) if len(context) > 1 else 0.0
    assert sum(math.exp(before - nats([*context, v])) for v in range(4)) == pytest.approx(1, abs=1e-12)


def test_nothing_is_gained_on_noise_and_much_on_repetition() -> None:
    noise = np.random.default_rng(0).integers(0, 64, 40_000)
    assert count_model_nats(noise[:20_000], noise[20_000:], 64, 2)[2] > 19_999 * math.log(64)
    cycle = np.arange(20_000) % 64
    assert count_model_nats(cycle, cycle[:1000], 64, 2)[2] < 0.05 * 999 * math.log(64)
    with pytest.raises(ValueError, match="do not fit"):
        count_model_nats(noise, noise, 2**32, 1)


@given(token_lists)
def test_unigram_entropy_is_that_of_the_scored_tokens(tokens: list[int]) -> None:
    scored = tokens[1:]
    expected = -sum(c / len(scored) * math.log(c / len(scored)) for c in Counter(scored).values())
    assert unigram_entropy(np.array(tokens)) == pytest.approx(expected, abs=1e-12)


def test_bytes_of_documents_stand_behind_a_bos_each() -> None:
    stream = byte_stream([Document("a", "é"), Document("b", "z")])
    assert stream.tolist() == [BOS, 0xC3, 0xA9, BOS, ord("z")]
    assert byte_stream([]).tolist() == []


def test_yardsticks_of_a_text_agree_with_their_parts(folder: Path) -> None:
    found = prepare(data({"kind": "sentencepiece", "vocab_size": 330}), folder, folder / "cache")
    got = baselines(found, folder / "cache")
    raw = [byte_stream(found.documents(part)) for part in ("train", "valid")]
    text = b"".join(t.encode() for t in texts(found.documents("valid")))
    expected = Baselines(
        unigram_entropy(found.valid),
        unigram_entropy(found.valid) * (len(found.valid) - 1) / math.log(2) / found.valid_bytes,
        naive_nats(found.train.tolist(), found.valid.tolist(), 330, 1) / math.log(2) / found.valid_bytes,
        naive_nats(found.train.tolist(), found.valid.tolist(), 330, 2) / math.log(2) / found.valid_bytes,
        naive_nats(raw[0].tolist(), raw[1].tolist(), 257, 1) / math.log(2) / len(text),
        naive_nats(raw[0].tolist(), raw[1].tolist(), 257, 2) / math.log(2) / len(text),
        xz_bits_per_byte(text),
    )
    assert got == pytest.approx(expected, rel=1e-9)
    (counted,) = (folder / "cache").glob("counts-*/counts.json")
    before = counted.stat().st_mtime_ns
    assert baselines(found, folder / "cache") == got and counted.stat().st_mtime_ns == before

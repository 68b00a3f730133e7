"""Rows of whole documents, and mixtures: what is drawn, how often, and that it is the same again."""

from __future__ import annotations

import json
import random
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.core.part import ConfigError
from zoo.core.slots import IGNORE
from zoo.data import batches as module
from zoo.data.batches import Batches
from zoo.data.prepare import prepare
from zoo.data.slots import Source, Tokenizer
from zoo.data.windows import DRAWS, Draw, Group, WholeDocuments
from zoo.recipe import DataConfig

BOS = 9


def stream(sizes: list[int]) -> np.ndarray:
    """Documents of 1 bos and ``n`` other tokens each; every token but the bos is a number of its own."""
    numbers = iter(range(10, 10_000))
    return np.array([t for n in sizes for t in (BOS, *islice(numbers, n))], np.uint16)


def packed_by_hand(tokens: np.ndarray, context: int) -> list[list[int]]:
    """Rows (inputs and one last target), one document at a time."""
    starts = [*np.flatnonzero(tokens == BOS).tolist(), len(tokens) - 1]
    rows: list[list[int]] = []
    row: list[int] = []
    for start, end in pairwise(starts):
        document = tokens[start:end].tolist()
        if row and len(row) + len(document) > context:
            rows.append([*row, int(tokens[start])])
            row = []
        if len(document) > context:
            rows.append(tokens[start : start + context + 1].tolist())
        else:
            row += document
        if len(row) == context:
            rows.append([*row, int(tokens[end])])
            row = []
    return [*rows, [*row, int(tokens[-1])]] if row else rows


documents = st.lists(st.integers(0, 12), min_size=1, max_size=25).filter(lambda sizes: sum(sizes) + len(sizes) > 1)


@settings(max_examples=150, deadline=None)
@given(documents, st.integers(1, 9), st.integers(1, 3), st.integers(1, 2))
def test_rows_of_whole_documents_are_those_packed_by_hand(
    sizes: list[int], context: int, rows: int, accumulate: int
) -> None:
    tokens = stream(sizes)
    expected = packed_by_hand(tokens, context)
    made = Batches(tokens, context, rows, 3, BOS, "segments", accumulate, packing="documents")
    assert made.windows == len(expected)
    seen: list[list[int]] = []
    step = 0
    while len(seen) < len(expected):
        step += 1
        scored = 0
        for micro in range(accumulate):
            inputs, targets, numbers = made.batch(step, micro)
            for row, target, number in zip(inputs.tolist(), targets.tolist(), numbers.tolist(), strict=True):
                n = sum(t != IGNORE for t in target)
                assert all(t == IGNORE for t in target[n:]) and all(t == BOS for t in row[n:])
                assert row[1:n] == target[: n - 1] and number == np.cumsum(np.array(row) == BOS).tolist()
                assert row[0] == BOS
                seen.append([*row[:n], target[n - 1]])
                scored += n
        assert made.scale(step) == accumulate * rows * context / scored
    assert sorted(seen[: len(expected)]) == sorted(expected)
    text, total = sum(len(row) - 1 for row in expected), len(tokens) - 1
    assert made.facts() == {
        "padding": f"{1 - text / (len(expected) * context):.2%} of positions",
        "cut": f"{(total - text) / total:.2%} of tokens",
    }


def test_documents_are_found_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = stream([random.Random(1).randrange(9) for _ in range(60)])
    whole = WholeDocuments(tokens, 0, len(tokens), 8, BOS)
    monkeypatch.setattr("zoo.data.windows.BLOCK", 7)
    pieces = WholeDocuments(tokens, 0, len(tokens), 8, BOS)
    assert np.array_equal(whole.starts, pieces.starts) and np.array_equal(whole.lengths, pieces.lengths)


def test_the_mark_of_unscored_targets_is_the_models() -> None:
    assert module.IGNORE == IGNORE


def test_the_stream_is_packed_as_before() -> None:
    made = Batches(stream([5] * 30), 8, 2, 1, BOS)
    assert made.scale(1) == 1.0 and made.facts() == {}
    assert not (made.batch(3)[1] == IGNORE).any()


# --- mixtures ---------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0.05, 10), min_size=2, max_size=4), st.integers(0, 10**6))
def test_groups_are_drawn_by_weight_and_counted(weights: list[float], seed: int) -> None:
    draw, n = Draw(tuple(weights), seed), 2 * DRAWS + 500
    seen = [0] * len(weights)
    drawn = [draw(i) for i in range(n)]
    for group, before in drawn:
        assert before == seen[group]
        seen[group] += 1
    for count, weight in zip(seen, weights, strict=True):
        p = weight / sum(weights)
        assert abs(count / n - p) < 5 * (p * (1 - p) / n) ** 0.5
    fresh = Draw(tuple(weights), seed)
    for i in (n - 1, 0, DRAWS, DRAWS - 1, 5):
        assert fresh(i) == drawn[i]


def test_a_mixture_is_decided_by_seed_and_step_and_each_group_has_its_epochs() -> None:
    tokens = np.arange(1000, dtype=np.uint16) + 10
    groups = (Group(0, 101, 3.0), Group(101, 1000, 1.0))

    def make(seed: int) -> Batches:
        return Batches(tokens, 10, 4, seed, bos=0, accumulate=2, groups=groups)

    ahead, fresh = make(1), make(1)
    starts = [int(row[0]) - 10 for step in range(1, 500) for micro in (0, 1) for row in ahead.batch(step, micro)[0]]
    for step in (400, 3, 499, 1):
        assert torch.equal(ahead.batch(step, 1)[0], fresh.batch(step, 1)[0])
    assert not torch.equal(make(2).batch(1)[0], make(1).batch(1)[0])
    first, second = [s for s in starts if s < 101], [s for s in starts if s >= 101]
    assert abs(len(first) / len(starts) - 0.75) < 0.04
    for i in range(len(first) // 10):  # ten windows in the first group: each once per epoch
        assert sorted(first[10 * i : 10 * i + 10]) == list(range(0, 100, 10))
    assert sorted(second[:89]) == list(range(101, 991, 10))
    with pytest.raises(ConfigError, match="a window takes 11 tokens, the text has 5"):
        Batches(tokens, 10, 4, 1, bos=0, groups=(Group(0, 5, 1.0), Group(5, 1000, 1.0)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, n in (("a", 300), ("b", 100)):
        (tmp_path / f"{name}.txt").write_text("@".join(f"{name} says {i * i} and {i}." for i in range(n)))
    return tmp_path


def mixed(**knobs: object) -> dict[str, object]:
    inner = {"kind": "text", "split": "documents", "separator": "@", "valid_share": 0.2}
    return {"kind": "mix", "sources": [{**inner, "files": [f"{n}.txt"]} for n in "ab"], "weights": [3, 1], **knobs}


def test_a_mixture_prepares_all_of_its_sources(folder: Path) -> None:
    config = DataConfig(source=Source.parse(mixed()), tokenizer=Tokenizer.parse("byte"))
    found = prepare(config, folder, folder / "cache")
    assert [g.weight for g in found.groups] == [3, 1] and found.groups[-1].stop == len(found.train)
    for group, name in zip(found.groups, "ab", strict=True):
        text = bytes(t for t in found.train[group.start : group.stop] if t < 256).decode()
        assert text.startswith(f"{name} says") and ("a says" in text) is (name == "a")
    assert {d.text[0] for d in found.documents("valid")} == {"a", "b"} and "0.75 text" in found.facts["mixture"]
    capped = prepare(config.model_copy(update={"train_bytes": 2000}), folder, folder / "cache")
    sizes = [sum(len(d.text) for d in capped.documents("train") if d.text[0] == name) for name in "ab"]
    assert 1450 < sizes[0] <= 1500 and 450 < sizes[1] <= 500


def test_a_mixture_is_taken_up_anywhere(folder: Path) -> None:
    whole = list(Source.parse(mixed()).build(folder).stream())
    for start, then in ((0, 10), (0, 399), (150, 310), (310, 400), (299, 300)):
        first = Source.parse(mixed()).build(folder)
        assert list(islice(first.stream(start), then - start)) == whole[start:then]
        mark = json.loads(json.dumps(first.mark(then)))
        assert list(Source.parse(mixed()).build(folder).stream(then, mark)) == whole[then:]


def test_mixtures_that_cannot_be_are_refused(folder: Path) -> None:
    from pydantic import ValidationError

    shards = {"kind": "shards", "train": ["x"], "valid": ["y"]}
    for wrong, words in (
        (mixed(weights=[1]), "has 1 weights for 2 sources"),
        (mixed(sources=[shards, shards]), "only sources of text can be mixed"),
        (mixed(weights=[1, 0]), "greater than 0"),
    ):
        with pytest.raises(ValidationError, match=words):
            Source.parse(wrong)
    (folder / "b.txt").unlink()
    with pytest.raises(ConfigError, match=r"^sources\[1\]\.files\[0\] = 'b\.txt': no such file"):
        Source.parse(mixed()).build(folder).fingerprint()

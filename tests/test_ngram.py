"""Counts behind the scored token: exact, normalised, and a published scheme that is neither."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo.blocks
import zoo.scoring
from zoo.core.part import ConfigError
from zoo.model import Model, ModelConfig
from zoo.resolve import loads
from zoo.scoring.grams import levels
from zoo.scoring.ngram import NGram
from zoo.scoring.published import PRIMES, counted_before
from zoo.scoring.slots import Scorer

assert zoo.blocks and zoo.scoring  # imported for the kinds they register

NORMALISED = ("ngram_backoff", "ngram_witten_bell")
streams = st.tuples(st.integers(2, 120), st.integers(1, 6), st.integers(0, 10**6))


def stream(n: int, vocab: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, n).astype(np.uint16)


def beliefs(n: int, vocab: int, seed: int) -> np.ndarray:
    """What a model might say ahead of each token: (n, V), rows that sum to one."""
    raw = np.random.default_rng(seed).exponential(size=(n, vocab)) ** 3 + 1e-9
    return raw / raw.sum(1, keepdims=True)


def ngram(kind: str, **knobs: object) -> NGram:
    return Scorer.parse({"kind": kind, **knobs}).build()


def fast(scorer: NGram, tokens: np.ndarray, q: np.ndarray, context: int = 16) -> np.ndarray:
    """Probabilities (N - 1,) of ``tokens[1:]`` where the model says ``q`` (N - 1, V)."""
    nll = -np.log(q[np.arange(len(q)), tokens[1:]])
    entropy = -(q * np.log(q)).sum(1)
    return np.exp(-scorer.mixed(tokens, nll, entropy, context, q.shape[1], lambda share: None))


def after(tokens: list[int], width: int) -> Counter[int]:
    """What followed the last ``width`` tokens earlier in ``tokens``, by looking everywhere."""
    context = tokens[len(tokens) - width :]
    return Counter(tokens[i] for i in range(width, len(tokens)) if tokens[i - width : i] == context)


def naive(kind: str, past: list[int], q: np.ndarray) -> np.ndarray:
    """The whole distribution (V,) behind ``past``, by definition."""
    p = q.copy()
    found = [after(past, w) for w in range(1, 7) if w <= len(past)]
    if kind == "ngram_witten_bell":
        for counts in found:
            if n := sum(counts.values()):
                t = len(counts)
                p = np.array([(counts[v] + t * p[v]) / (n + t) for v in range(len(q))])
        return p
    known = [counts for counts in found if sum(counts.values()) >= 2]
    if not known:
        return p
    n, entropy = sum(known[-1].values()), -sum(x * math.log(x) for x in q)
    alpha = 0.05 + 0.55 / (1 + math.exp(-2 * (entropy - 4)))
    return np.array([(1 - alpha) * q[v] + alpha * known[-1][v] / n for v in range(len(q))])


@settings(deadline=None)
@given(streams)
def test_counts_are_those_of_looking_everywhere(shape: tuple[int, int, int]) -> None:
    n, vocab, seed = shape
    tokens = stream(n, vocab, seed)
    for size in (vocab, 2**45):  # keys that fit into a number with their places, and keys that do not
        known = {}
        for level in levels(tokens, range(1, 7), size):
            for place, *found in zip(level.places, level.seen, level.kinds, level.hits, strict=True):
                known[level.width, int(place)] = found
        for place in range(1, n):
            past = tokens[:place].tolist()
            for width in range(1, min(7, place + 1)):
                counts = after(past, width)
                want = [sum(counts.values()), len(counts), counts[int(tokens[place])]]
                assert known.get((width, place), [0, 0, 0]) == want


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(NORMALISED), streams)
def test_probabilities_are_those_of_a_dictionary(kind: str, shape: tuple[int, int, int]) -> None:
    n, vocab, seed = shape
    tokens, q = stream(n, vocab, seed), beliefs(n - 1, vocab, seed)
    want = [naive(kind, tokens[: i + 1].tolist(), q[i])[tokens[i + 1]] for i in range(n - 1)]
    assert fast(ngram(kind), tokens, q) == pytest.approx(want, rel=1e-12)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(NORMALISED), st.integers(2, 200), st.integers(1, 12), st.integers(0, 10**6))
def test_over_the_vocabulary_they_sum_to_one_whatever_the_token_is(kind: str, n: int, vocab: int, seed: int) -> None:
    tokens, q, scorer = stream(n, vocab, seed), beliefs(n - 1, vocab, seed), ngram(kind)
    kept = fast(scorer, tokens, q)
    total = 0.0
    for v in range(vocab):
        changed = tokens.copy()
        changed[-1] = v  # the token that is scored: nothing ahead of it may move
        p = fast(scorer, changed, q)
        assert (p[:-1] == kept[:-1]).all()
        total += p[-1]
    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", NORMALISED)
@pytest.mark.parametrize("vocab", [2, 50, 1024])
def test_uniform_noise_costs_its_entropy_at_least(kind: str, vocab: int) -> None:
    n = 40_000
    flat = np.full(n - 1, math.log(vocab))  # nats of each token, and of entropy
    bits = ngram(kind).mixed(stream(n, vocab, 1), flat, flat, 16, vocab, lambda share: None) / math.log(2)
    assert bits.mean() >= math.log2(vocab) - 3 * bits.std() / math.sqrt(n)


def test_the_published_form_scores_uniform_noise_far_below_its_entropy() -> None:
    n, vocab = 2**13, 256
    q = np.full((n - 1, vocab), 1 / vocab)
    bits = [
        float(-np.log2(fast(ngram("ngram_as_published", bucket_bits=b), stream(n, vocab, 1), q)).mean())
        for b in (12, 8, 4)
    ]
    assert bits[0] < 6 and bits[2] < bits[1] < bits[0]  # of 8: better and better as the table shrinks


@settings(deadline=None, max_examples=40)
@given(streams, st.integers(0, 6), st.integers(1, 9), st.booleans())
def test_the_published_form_is_its_definition(
    shape: tuple[int, int, int], bits: int, context: int, slides: bool
) -> None:
    n, vocab, seed = shape
    n, stride, mask = n + context, (context + 1) // 2 if slides else context, 2**bits - 1
    tokens, q = stream(n, vocab, seed), beliefs(n - 1, vocab, seed)
    base = {"kind": "sliding", "stride": stride} if slides else "plain"
    got = fast(ngram("ngram_as_published", base=base, bucket_bits=bits), tokens, q, context)
    x, tables, want, waiting = tokens.tolist(), [Counter(), Counter()], [], []
    for j in range(1, n):
        if j == context + 1 or (j > context and (j - 1 - context) % stride == 0):
            for kind, key in waiting:  # a window's tokens are counted once all of them are scored
                tables[kind][key] += 1
            waiting = []
        answer = None
        for width in range(min(6, j), 0, -1):
            mixed = 0
            for k in range(width):
                mixed ^= x[j - width + k] * PRIMES[k]
            keys = (width, mixed & mask), (width, (mixed ^ x[j] * PRIMES[width]) & mask)
            waiting += [(0, keys[0]), (1, keys[1])]
            seen, full = tables[0][keys[0]], tables[1][keys[1]]
            if answer is None and seen >= 2 and full > 0:
                answer = min(full, seen) / seen
        model, entropy = q[j - 1, x[j]], -(q[j - 1] * np.log(q[j - 1])).sum()
        alpha = 0.05 + 0.55 / (1 + math.exp(-2 * (entropy - 4)))
        want.append(model if answer is None else (1 - alpha) * model + alpha * answer)
    assert got == pytest.approx(np.clip(want, 1e-12, 1), rel=1e-12)


def test_counts_wait_for_the_end_of_their_chunk() -> None:
    keys, chunk = np.array([5, 5, 2, 5, 5, 2]), np.array([0, 0, 0, 1, 1, 2])
    assert counted_before(keys, chunk).tolist() == [0, 0, 0, 2, 2, 1]


def model_of(context: int, vocab: int) -> Model:
    torch.manual_seed(0)
    model = Model(ModelConfig(vocab_size=vocab, dim=16, n_layers=1, context=context), seed=1).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model.eval()


@pytest.mark.parametrize("kind", NORMALISED)
@pytest.mark.parametrize("base", ["plain", {"kind": "sliding", "stride": 3}])
def test_with_a_model_below_the_score_is_that_of_a_predictor(kind: str, base: object) -> None:
    tokens, model, scorer = stream(60, 4, 5), model_of(8, 5), ngram(kind, base=base)
    ask, nats = scorer.predictor(model, 8), 0.0
    for i in range(len(tokens) - 1):
        p = ask(int(tokens[i]))
        assert p.sum() == pytest.approx(1, abs=1e-12)
        nats -= math.log(p[tokens[i + 1]])
    shares: list[float] = []
    got = scorer.score(model, tokens, tokens, 8, 3, tell=shares.append)
    assert got.nats == pytest.approx(nats, rel=1e-12) and got.tokens == 59 and got.bytes == int(tokens[1:].sum())
    assert shares == sorted(shares) and 0.9 < shares[-1] <= 1
    alone = scorer.base.score(model, tokens, tokens, 8, 3)
    assert got.nats != pytest.approx(alone.nats, rel=1e-3)


@pytest.mark.parametrize("kind", [*NORMALISED, "ngram_as_published"])
def test_knobs_that_cannot_be_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"^base = 'rolling': has no windows"):
        ngram(kind, base="rolling")
    with pytest.raises(ConfigError, match=r"^highest = 3: is below lowest = 4"):
        ngram(kind, lowest=4, highest=3)
    with pytest.raises(ConfigError, match=r"^base.stride = 64: exceeds the context of 8"):
        ngram(kind, base="sliding").check(100, 8)


def test_what_is_no_code_length_says_so_and_never_ranks_or_drives_a_code() -> None:
    head = "as_published = true\n[evaluate]\n"
    recipe = loads(head + 'also = ["ngram_as_published", "ngram_backoff"]')
    assert [scorer.part.code_length for scorer in recipe.evaluate.also] == [False, True]
    with pytest.raises(ConfigError, match=r"evaluate.scorer = 'ngram_as_published': .*not the length of a code"):
        loads(head + 'scorer = "ngram_as_published"')
    with pytest.raises(ConfigError, match=r"evaluate.also\[0\] = 'ngram_as_published': breaks code_length"):
        loads('[evaluate]\nalso = ["ngram_as_published"]')
    with pytest.raises(ConfigError, match=r"cannot drive a code: .*below their entropy"):
        ngram("ngram_as_published").predictor(model_of(8, 5), 8)

"""What each correction of a published n-gram cache changes, on tokens without any structure and on a trial's text.

    python benchmarks/ngram_forms.py            # 2^18 uniform tokens, V 1,024, and a model that says so
    python benchmarks/ngram_forms.py TRIAL      # the validation text under a finished trial's model

Two things are wrong with the published form beside each other: buckets are shared by unrelated events, and whether an order
answers is decided by the scored token's own bucket. Either is mended alone, then both. ``mass`` is the mean over 100 places
of what the form gives to the whole vocabulary there; a code can be made only where it is 1.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np

from zoo.report.proof import scorer_named
from zoo.scoring.grams import levels
from zoo.scoring.ngram import Adaptive
from zoo.scoring.published import PRIMES, counted_before
from zoo.trials.open import open_trial

WIDTHS = range(1, 7)
Answers = Callable[[np.ndarray], np.ndarray]  # tokens (N,) -> the share of each of tokens[1:], -1 where nothing answers


def hashed(bits: int, by_token: bool) -> Answers:
    """Counts in 2^bits buckets; a token is counted once it is scored."""

    def answer(tokens: np.ndarray) -> np.ndarray:
        ids, share, mask = tokens.astype(np.int64), np.full(len(tokens) - 1, -1.0), (1 << bits) - 1
        for width in WIDTHS:
            n = len(ids) - width
            key = np.zeros(n, np.int64)
            for k in range(width):
                key ^= ids[k : k + n] * PRIMES[k]
            seen = counted_before(key & mask, np.arange(n))
            full = counted_before((key ^ ids[width:] * PRIMES[width]) & mask, np.arange(n))
            known = (seen >= 2) & ((full > 0) | (not by_token))
            share[width - 1 :][known] = np.minimum(full, seen)[known] / seen[known]
        return share

    return answer


def exact(by_token: bool) -> Answers:
    """Counts of the contexts themselves."""

    def answer(tokens: np.ndarray) -> np.ndarray:
        share = np.full(len(tokens) - 1, -1.0)
        for level in levels(tokens, WIDTHS, int(tokens.max()) + 1):
            known = (level.seen >= 2) & ((level.hits > 0) | (not by_token))
            share[level.places[known] - 1] = level.hits[known] / level.seen[known]
        return share

    return answer


def bits_of(nats: np.ndarray) -> float:
    return float(nats.mean()) / math.log(2)


def mass(probability: Callable[[np.ndarray], float], tokens: np.ndarray, vocab_size: int, places: np.ndarray) -> float:
    """The mean, over ``places``, of a form's probabilities of every token that might stand there."""
    total = 0.0
    for place in places:
        prefix = tokens[: place + 1].copy()
        for v in range(vocab_size):
            prefix[-1] = v
            total += probability(prefix)
    return total / len(places)


def report(tokens: np.ndarray, nll: np.ndarray, entropy: np.ndarray, vocab_size: int, per: float, unit: str) -> None:
    """A line for each form; ``per`` is what a mean in bits per token is multiplied with."""
    mixer = scorer_named("ngram_backoff").build()
    assert isinstance(mixer, Adaptive)
    p, alpha = np.exp(-nll), mixer.alpha(entropy)
    print(f"{'the model alone':<52} {bits_of(nll) * per:8.4f} {unit}")

    def mixed(answer: Answers) -> np.ndarray:
        share = answer(tokens)
        weight = np.where(share >= 0, alpha, 0.0)
        return -np.log(np.clip((1 - weight) * p + weight * share, 1e-12, 1))

    n = len(tokens)
    for load in (0.5, 2, 32):
        bits = max(0, round(math.log2(n / load)))
        for by_token in (True, False):
            what = "decided by the token" if by_token else "decided by the context"
            name = f"hashed, {n / 2**bits:.2g} tokens a bucket, {what}"
            print(f"{name:<52} {bits_of(mixed(hashed(bits, by_token))) * per:8.4f} {unit}")
    for by_token in (True, False):
        what = "decided by the token" if by_token else "decided by the context (ngram_backoff)"
        print(f"{f'exact, {what}':<52} {bits_of(mixed(exact(by_token))) * per:8.4f} {unit}")
    found = scorer_named("ngram_witten_bell").build().mixed(tokens, nll, entropy, 1, vocab_size, lambda share: None)
    print(f"{'exact, interpolated (ngram_witten_bell)':<52} {bits_of(found) * per:8.4f} {unit}")


def masses(vocab_size: int, n: int) -> None:
    """The mass of each form on uniform noise, at a size at which every token can be tried."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, vocab_size, n).astype(np.int64)
    places = rng.choice(np.arange(n // 2, n), 10, replace=False)
    flat = math.log(vocab_size)
    mixer = scorer_named("ngram_backoff").build()
    weight = float(mixer.alpha(np.array(flat)))
    print(f"mass on {n:,} uniform tokens, V {vocab_size}, mean of {len(places)} places:")

    def of(answer: Answers) -> Callable[[np.ndarray], float]:
        def probability(prefix: np.ndarray) -> float:
            share = answer(prefix)[-1]
            return math.exp(-flat) if share < 0 else (1 - weight) * math.exp(-flat) + weight * share

        return probability

    forms = {
        f"hashed, {load:.2g} tokens a bucket, decided by the token": hashed(round(math.log2(n / load)), True)
        for load in (0.5, 2, 32)
    }
    forms |= {"exact, decided by the token": exact(True), "exact, decided by the context (ngram_backoff)": exact(False)}
    for name, answer in forms.items():
        print(f"{name:<52} {mass(of(answer), tokens, vocab_size, places):8.3f}")

    def witten_bell(prefix: np.ndarray) -> float:
        nats = np.full(len(prefix) - 1, flat)
        return math.exp(
            -scorer_named("ngram_witten_bell").build().mixed(prefix, nats, nats, 1, vocab_size, lambda share: None)[-1]
        )

    name = "exact, interpolated (ngram_witten_bell)"
    print(f"{name:<52} {mass(witten_bell, tokens, vocab_size, places):8.3f}")


def main(trial: str | None = None) -> None:
    if trial is None:
        n, vocab_size = 2**18, 1024
        tokens = np.random.default_rng(0).integers(0, vocab_size, n)
        flat = np.full(n - 1, math.log(vocab_size))
        report(tokens, flat, flat, vocab_size, 1.0, "bits a token")
        masses(128, 2**11)
        return
    found = open_trial(trial)
    text, model = found.text(), found.model()
    base = scorer_named("plain").build()
    given = (found.recipe.model.context, found.recipe.evaluate.batch, None, lambda share: None)
    nll, entropy = base.surprises(model, text.valid, *given)
    per = (len(text.valid) - 1) / int(text.valid_spans[1:].sum(dtype=np.int64))
    report(np.asarray(text.valid), nll, entropy, model.config.vocab_size, per, "bits a byte")


if __name__ == "__main__":
    main(*sys.argv[1:])

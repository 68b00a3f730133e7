"""Probes of what makes a score: the scorer's numbers are lengths of a code, and an average changes nothing but weights."""

from __future__ import annotations

import math

import numpy as np
import torch

from zoo.core.part import ConfigError
from zoo.guards.bench import Bench
from zoo.guards.probes import Leak
from zoo.model import ModelConfig, Uncalled
from zoo.optim.slots import Average
from zoo.scoring.slots import Scorer

VOCABULARY = 64
MORE = 200  # tokens beside one context
SLACK = 25.0  # nats: a code saves as much on uniform random tokens with probability e^-25
UPDATES = 60


def code_length(scorer: Scorer.Config, context: int) -> None:
    """Uniform random tokens cannot be scored below their entropy, by whatever model: two that would show how are asked.

    One predicts at each place the token that stands there, so it gains from targets that are not shifted; the other knows
    nothing, so it gains from probabilities that do not sum to one.
    """
    if not scorer.part.code_length:
        return
    ids = np.random.RandomState(0).randint(0, VOCABULARY, context + MORE).astype(np.uint16)
    spans = np.ones(len(ids), np.uint32)
    n, bits = len(ids) - 1, math.log(VOCABULARY)
    model = Uncalled(ModelConfig(vocab_size=VOCABULARY, context=context, dim=VOCABULARY, n_layers=1), seed=None).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.0 if p.ndim > 1 else 1.0)
    for echo in (False, True):
        with torch.no_grad():
            model.embedding.weight.copy_(torch.eye(VOCABULARY) if echo else torch.zeros(VOCABULARY, VOCABULARY))
        try:
            score = scorer.build().score(model, ids, spans, context=context, batch=4)
        except ConfigError:
            return  # this scorer asks for more than a small model is; it will say so itself
        if score.tokens != n or score.bytes != n:
            raise Leak(
                "scores", f"the scorer counts {score.tokens} tokens and {score.bytes} bytes, where there are {n}"
            )
        if not score.nats >= n * bits - SLACK:
            said = f"{score.nats / n:.3f} nats per token, where no code needs less than {bits:.3f}"
            raise Leak("scores", f"the scorer's numbers are no code lengths: uniform random tokens cost {said}")


@torch.no_grad()
def average(config: Average.Config, bench: Bench) -> None:
    """An average holds averages of the parameters, and leaves the model's own parameters and buffers as they are."""
    model = bench.model
    held = config.build(model)
    for t in model.buffers():
        if t.is_floating_point():
            t.add_(1.0)  # as a step would move them
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for step in range(1, UPDATES + 1):
        held.update(model, step, UPDATES, 0.01)
    weights = held.weights()
    if changed := [name for name, t in model.state_dict().items() if not torch.equal(t, before[name])]:
        raise Leak("averages", f"the average changes the model's own {changed[0]}")
    if weights is None:
        return
    own = dict(model.named_parameters())
    if strange := sorted(weights.keys() ^ own.keys()):
        raise Leak("averages", f"the average is not one of the parameters: {strange[0]} is in one of the two only")
    for name, p in own.items():
        if not torch.allclose(weights[name].double(), p.double(), rtol=1e-4, atol=1e-5):
            raise Leak("averages", f"the average of a {name} that never changed is something else")

"""The unread leaks are what they claim to be: they train, and a check of a few lines sees each of them tell the future."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import planted
from leaks_unread import LEAKS

from zoo.core.part import Part
from zoo.data.batches import Batches
from zoo.data.slots import Source
from zoo.model import Model
from zoo.testing import BrokenPromise, check
from zoo.testing.hosts import SITE, Subject, places, randomised

REACH = 24


def future_moves_the_past(model: Model, n_tokens: int = REACH) -> bool:
    """Whether some change of the tokens from t on changes an answer before t."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(8):
            tokens = torch.randint(SITE.vocab_size, (4, n_tokens), generator=generator)
            for t in range(1, n_tokens):
                changed = torch.cat([tokens[:, :t], torch.randint(SITE.vocab_size, (4, n_tokens - t))], 1)
                if (model(tokens).logits - model(changed).logits)[:, :t].abs().max() > 1e-9:
                    return True
    return False


def promises_more_than_one(model: Model) -> bool:
    """Whether the probabilities that the loss gives to all words at one place sum to more than one."""
    tokens = torch.randint(SITE.vocab_size, (1, 8))
    every = [torch.full_like(tokens, word) for word in range(SITE.vocab_size)]
    with torch.no_grad():
        total = torch.stack([model(tokens, targets).nll[0, 0].neg().exp() for targets in every]).sum()
    return float(total) > 1 + 1e-6


def texts_overlap(source: Source) -> bool:
    """Whether fifty characters of a validation text stand in a training text."""
    training, validation = (list(documents) for documents in source.split())
    pieces = {d.text[i : i + 50] for d in validation for i in range(0, len(d.text) - 50)}
    return any(d.text[i : i + 50] in pieces for d in training for i in range(len(d.text)))


def targets_differ_from_the_next_input(batches: Batches) -> bool:
    inputs, targets, _ = batches.batch(1)
    return not torch.equal(inputs[:, 1:], targets[:, :-1])


def leaks(part: type) -> bool:
    if issubclass(part, Batches):
        return targets_differ_from_the_next_input(part(np.arange(500), REACH + 1, 2, 0, 0))
    if issubclass(part, Source):
        return texts_overlap(part(part.Config(), Path()))
    model = built(part)
    return promises_more_than_one(model) if part.slot == "head" else future_moves_the_past(model)


def built(part: type[Part]) -> Model:
    """A small model with ``part`` at the first place that takes it, as it might be once it has trained."""
    config = Subject(part, {}, places(part)[0], replace(SITE, context=REACH)).config
    return randomised(Model(config, seed=0)).double().eval()


@pytest.mark.parametrize("name", LEAKS)
@pytest.mark.parametrize("seed", range(3))
def test_every_unread_leak_tells_the_future(name: str, seed: int):
    torch.manual_seed(seed)
    with planted():
        assert leaks(LEAKS[name](random.Random(f"{name}/{seed}"), REACH))


def test_the_same_checks_pass_over_what_is_right():
    config = Subject(Part.slots["attention"].kinds["gqa"], {}, places(Part.slots["attention"].kinds["gqa"])[0]).config
    model = randomised(Model(config, seed=0)).double().eval()
    assert not future_moves_the_past(model, 9)
    assert not promises_more_than_one(model)
    assert not targets_differ_from_the_next_input(Batches(np.arange(500), REACH, 2, 0, 0))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", LEAKS)
def test_the_contract_catches_every_unread_leak_that_is_a_block(name: str, seed: int):
    with planted():
        part = LEAKS[name](random.Random(f"{name}/{seed}"), REACH)
        if not issubclass(part, Part) or issubclass(part, Source):
            return
        promise = "scores" if part.slot == "head" else "causal"
        with pytest.raises(BrokenPromise, match=f"'{promise}' is broken by {part.slot}.unread"):
            check(part, promises=(promise,))


@pytest.mark.parametrize("name", LEAKS)
def test_every_unread_leak_trains(name: str):
    with planted():
        part = LEAKS[name](random.Random(name), REACH)
        if not issubclass(part, Part) or issubclass(part, Source):
            return
        model = Model(Subject(part, {}, places(part)[0]).config, seed=0).train()
        tokens = torch.randint(SITE.vocab_size, (4, REACH + 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(12):
            loss = model(tokens[:, :-1], tokens[:, 1:]).nll.mean()
            loss.backward()
            assert all(p.grad is not None for p in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0] - 0.1

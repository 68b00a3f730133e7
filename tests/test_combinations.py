"""All kinds of all slots, together: 200 random models in which every pair of kinds that can meet does meet."""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import zoo.testing
from zoo.core.params import entries
from zoo.model import Model, ModelConfig
from zoo.testing.hosts import SITE, Specimen, all_kinds, find, label, places, randomised
from zoo.testing.strategies import model_configs, pairs
from zoo.testing.training import objective, trace
from zoo.testing.values import kinds_in, random_model

EXAMPLES, CHUNKS = 200, 20
N_TOKENS = 9
SITES = [replace(SITE, dim=16, n_layers=n) for n in (2, 3)]

Pair = frozenset[str]


def wanted_pairs() -> set[Pair]:
    """Every pair of kinds, but for two of a slot of which a model has only one (head, trunk, init)."""
    single = {part.slot for part in all_kinds() if all(len(p) == 1 and p[0].holds.value == "one" for p in places(part))}
    return {
        frozenset((label(a), label(b)))
        for a, b in itertools.combinations(all_kinds(), 2)
        if a.slot != b.slot or a.slot not in single - {"layer"}
    }


def pairs_in(config: ModelConfig) -> set[Pair]:
    return {frozenset(pair) for pair in itertools.combinations(kinds_in(config), 2)}


@functools.cache
def examples() -> tuple[ModelConfig, ...]:
    """200 models, each with a pair of kinds that no model before it had, as long as there is one."""
    rng, found, missing = random.Random(0), [], sorted(wanted_pairs(), key=sorted)
    while len(found) < EXAMPLES:
        pair = tuple(find(name) for name in sorted(missing[0])) if missing else ()
        config = next(c for _ in range(200) if (c := random_model(rng, pair, rng.choice(SITES))) is not None)
        found.append(config)
        met = pairs_in(config)
        missing = [pair for pair in missing if pair not in met]
    return tuple(found)


def test_every_kind_and_every_pair_of_kinds_occurs():
    met = set().union(*(pairs_in(config) for config in examples()))
    assert not wanted_pairs() - met
    assert {label(part) for part in all_kinds()} == set().union(*(kinds_in(config) for config in examples()))
    assert len(examples()) == EXAMPLES


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_models_train_and_keep_to_the_past(chunk: int):
    size = EXAMPLES // CHUNKS
    for index in range(chunk * size, (chunk + 1) * size):
        trains_and_keeps_to_the_past(examples()[index], index)


@given(data=st.data())
@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_models_of_the_strategies_train_and_keep_to_the_past(data: st.DataObject):
    pair = data.draw(pairs().filter(lambda kinds: kinds[0].slot != kinds[1].slot))
    config = data.draw(model_configs(*pair, site=SITES[0]))
    assert {label(part) for part in pair} <= kinds_in(config)
    trains_and_keeps_to_the_past(config, 0)


def trains_and_keeps_to_the_past(config: ModelConfig, seed: int) -> None:
    """Two steps of AdamW move every parameter and leave the loss finite; then: causal, and prefix-consistent."""
    model = randomised(Model(config, seed=seed), seed).train()
    tokens = torch.randint(config.vocab_size, (2, 4, N_TOKENS + 1), generator=torch.Generator().manual_seed(seed))
    before = {entry.name: entry.parameter.detach().clone() for entry in entries(model)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(2):
        said = trace(model, tokens[step])
        assert all(bool(loss.isfinite().all()) for loss in said.losses.values()), config
        optimizer.step()
        model.after_step(said.stats)
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == [], config
    zoo.testing.check_subject(Specimen(config, seed, model=model), ("causal", "prefix_consistent"))


def test_the_objective_adds_every_auxiliary_loss_to_the_reported_one():
    balance = {"kind": "aux_loss", "weight": 0.1}
    config = ModelConfig(
        vocab_size=17, dim=16, n_layers=2, layer={"kind": "pre_norm", "ffn": {"kind": "moe", "balance": balance}}
    )
    model = Model(config).train()
    tokens = Specimen(config).tokens(2, 5)
    out = model(tokens, tokens)
    assert set(out.losses) == {"balance"}
    assert objective(out).item() == pytest.approx(out.nll.mean().item() + out.losses["balance"].item())

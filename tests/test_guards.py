"""The guards find every planted leak, at whatever place and horizon, and refuse nothing that is right."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from faults import planted
from faulty_blocks import FAULTS
from leaks_unread import LEAKS
from planted_leaks import PLANTED

from zoo import guards, plugins
from zoo.core.part import Part
from zoo.core.slots import Stem
from zoo.data.batches import Batches
from zoo.data.slots import Source
from zoo.guards import Leak, bench
from zoo.model import ModelConfig
from zoo.recipe import Recipe
from zoo.testing.hosts import SITE, assemble, places
from zoo.testing.values import random_model

plugins.discover()
# Of the contract's faults those that a guard is there for; the others spoil no score (decoding, cost, compiling, ...).
GUARDED = ("causal", "batch_independent", "document_bounded", "scores")
CONTRACT = {name: promise for name, (promise, _) in FAULTS.items() if promise in GUARDED}
CONTRACT |= {"dropout_in_evaluation": "deterministic", "remembers_the_last_call": "deterministic"}
del CONTRACT["breach_that_is_not_committed"]


def recipe(config: ModelConfig, mask: str = "none", **more: Any) -> Recipe:
    machine = {"device": "cpu", "dtype": "float32", "threads": 1}
    return Recipe.model_validate({"model": config, "data": {"document_mask": mask}, "machine": machine, **more})


def of(part: type[Part], context: int = 64, mask: str = "none", place: int = 0) -> Recipe:
    """A small recipe with ``part`` at one of its places."""
    if part.slot == "average":
        config = ModelConfig(
            vocab_size=53, context=16, dim=16, n_layers=1, layer={"kind": "pre_norm", "ffn": {"kind": "moe"}}
        )
        return recipe(config, average=part.Config())
    return recipe(assemble(part, {}, places(part)[place], replace(SITE, context=context)), mask)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", PLANTED)
def test_planted_leaks_are_found_at_random_places(name: str, seed: int):
    promise, make = PLANTED[name]
    rng = random.Random(f"{name}/{seed}")
    with planted(), pytest.raises(Leak) as found:
        part = make(rng)
        mask = "none" if promise == "causal" else rng.choice(("none", "segments"))
        context = 256 if name in ("means_of_long_blocks", "parity_far_ahead") else 64
        guards.probe(of(part, context, mask, rng.choice((0, -1))), seed=seed)
    assert found.value.promise == promise


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 22))
@pytest.mark.parametrize("name", PLANTED)
def test_planted_leaks_are_found_at_many_random_places(name: str, seed: int):
    test_planted_leaks_are_found_at_random_places(name, seed)


@pytest.mark.parametrize("name", CONTRACT)
def test_wrong_blocks_of_the_contract_are_found(name: str):
    with planted(), pytest.raises(Leak) as found:
        part = FAULTS[name][1]()
        guards.probe(of(part, 24, "segments" if CONTRACT[name] == "document_bounded" else "none"))
    assert found.value.promise == CONTRACT[name]


def unread(name: str, seed: int) -> Recipe | None:
    part = LEAKS[name](random.Random(f"{name}/{seed}"), 24)
    return None if issubclass(part, Batches | Source) else of(part)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "name", [name for name in LEAKS if name not in ("validation_within_training", "one_column_unshifted")]
)
def test_leaks_of_somebody_who_has_not_read_the_guards_are_found(name: str, seed: int):
    with planted(), pytest.raises(Leak):
        guards.probe(unread(name, seed), seed=seed)


def test_attention_across_documents_is_refused_only_where_a_mask_keeps_them_apart():
    with planted():
        part = FAULTS["attention_across_documents"][1]()
        guards.probe(of(part, 24, "none"))
        with pytest.raises(Leak, match="another document"):
            guards.probe(of(part, 24, "segments"))


def test_a_declared_breach_is_let_through_for_its_own_promise_alone():
    with planted():
        part = FAULTS["mask_off_by_one"][1]()
        part.breaks = {"causal": "as it was published"}
        guards.probe(of(part, 24), declared={"causal"})
        with pytest.raises(Leak, match="sees the future"):
            guards.probe(of(part, 24), declared={"scores"})
    with planted(), pytest.raises(Leak, match="another row"):
        guards.probe(of(FAULTS["mean_over_the_batch"][1](), 24), declared={"causal"})


def test_noise_from_the_bus_is_no_leak():
    ffn = {"kind": "moe", "n_experts": 4, "hidden_dim": 16, "jitter": 0.1, "dropout": 0.3}
    guards.probe(
        recipe(ModelConfig(vocab_size=53, context=24, dim=16, n_layers=2, layer={"kind": "pre_norm", "ffn": ffn}))
    )


def random_recipe(seed: int, contexts: tuple[int, ...]) -> Recipe:
    """A valid recipe of random parts, dtypes and masks."""
    rng, config = random.Random(seed), None
    while config is None:
        size = {"n_layers": rng.choice((1, 2, 3)), "context": rng.choice(contexts), "dim": rng.choice((16, 32))}
        config = random_model(rng, site=replace(SITE, **size, vocab_size=rng.choice((53, 300))))
    made = recipe(
        config,
        rng.choice(("none", "segments")),
        as_published=True,
        average=rng.choice(("none", "ema", "swa")),
        train={"recompute": rng.choice(("none", "layers"))},
    )
    dtype = rng.choice(("float32", "bfloat16", "float64"))
    return made.model_copy(update={"machine": made.machine.model_copy(update={"dtype": dtype})})


@pytest.mark.parametrize("first", range(1000, 1030, 5))
def test_random_valid_recipes_are_not_refused(first: int):
    for seed in range(first, first + 5):
        guards.probe(random_recipe(seed, (8, 16)), seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 200, 20))
def test_two_hundred_random_valid_recipes_are_not_refused(first: int):
    for seed in range(first, first + 20):
        guards.probe(random_recipe(seed, (8, 32, 64, 100)), seed=seed)


def on_the_bench(config: ModelConfig, device: str = "cpu") -> bench.Bench:
    return bench.Bench(bench.cut(config), device, bench.exact(device), False, False, 0)


def test_of_equal_layers_two_are_probed_at_every_place_and_all_at_some():
    config = ModelConfig(vocab_size=5000, context=200, dim=16, n_layers=9, where=({"layers": "-3:", "ffn": "relu2"},))
    few = on_the_bench(config)
    assert [layer.ffn.part.kind for layer in few.model.config.layers()] == ["swiglu", "swiglu", "relu2", "relu2"]
    assert bench.whole(config, few).layers() == config.layers()
    assert (few.length, few.n_cuts, few.model.config.vocab_size) == (64, 63, bench.VOCABULARY)
    few.stretch()
    assert (few.length, few.n_cuts) == (200, bench.LONG)


def test_places_are_dealt_until_each_has_been_asked():
    few = on_the_bench(ModelConfig(vocab_size=53, context=64, dim=16, n_layers=1))
    few.n_cuts = 24
    asked = [few.cuts() for _ in range(3)]
    assert all(cuts.shape == (6, 4) for cuts in asked)
    places = [int(place) for cuts in asked for place in cuts.flatten()]
    assert sorted(places[:63]) == list(range(1, 64))
    assert few.cuts(0.25, 2).shape == (3, 2) and len(few.decks["all"]) == 63 - 9
    few.length, few.decks = 2, {}
    assert few.cuts().tolist() == [[1], [1]]


@pytest.mark.parametrize("recompute", [False, True])
def test_one_forward_serves_several_gradients(recompute: bool):
    few = on_the_bench(ModelConfig(vocab_size=53, context=16, dim=16, n_layers=2))
    few.model.recompute = recompute
    tokens = few.tokens(2)
    outputs = [torch.arange(16) < cut for cut in torch.tensor([[[3], [9]], [[15], [1]]])]
    few.generator.manual_seed(1)
    together = few.gradients(tokens, True, outputs)
    few.generator.manual_seed(1)
    for one, own in zip(together, outputs, strict=True):
        assert torch.equal(one, few.gradient(tokens, True, own)) and bool(((one > 0) == own).all())


def test_a_model_too_large_for_the_machine_is_probed_by_its_structure():
    config = ModelConfig(vocab_size=5000, context=64, dim=384, n_layers=40)
    few = on_the_bench(config)
    assert bench.whole(config, few) is few.model.config
    few.kind = "cuda"
    assert bench.whole(config, few).n_layers == 40


def test_what_a_leak_is_found_in_has_no_name():
    """The same code under an honest kind's name is refused, and an honest block under any name is not."""
    with planted():

        class Honest(Stem, kind="looks_ahead"):
            """Nothing of the kind. Source: this test."""

            def __init__(self, cfg: Stem.Config, site: Any) -> None:
                super().__init__()

            def forward(self, x: Any, bus: Any) -> Any:
                return x * 2.0

        guards.probe(of(Honest, 24))

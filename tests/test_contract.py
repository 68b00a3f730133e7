"""Every registered kind keeps the contract in every host, and the contract catches blocks that do not."""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import pytest
import torch
from faults import planted
from faulty_blocks import FAULTS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo.testing
from zoo.core.attend import previous
from zoo.core.params import Linear
from zoo.core.part import ConfigError, Part
from zoo.core.slots import Block, Site, Stem
from zoo.core.wires import SEGMENTS, Bus
from zoo.model import ModelConfig
from zoo.testing import PROMISES, BrokenPromise, check, check_model, check_subject, strategies
from zoo.testing.hosts import SITE, Place, Specimen, Subject, all_kinds, describe, find, label, places, subjects
from zoo.testing.measure import Answer, difference
from zoo.testing.statements import flops_per_token
from zoo.testing.training import count_graphs
from zoo.testing.values import covering, kinds_in, random_model

QUICK = tuple(name for name in PROMISES if name != "compiles")
OF_A_DRAW = ("keeps_dtype", "scores", "round_trips", "roles")  # an Init draws parameters and takes no part in a call
REFUSED = {"stem.x0_mix": {"model.stem"}}  # at the model's entrance x0 does not exist yet
STANDS = [
    (label(part), place)
    for part in all_kinds()
    for place in places(part)
    if describe(place) not in REFUSED.get(label(part), ())
]
BUNDLES = 10


@pytest.mark.parametrize(("name", "place"), STANDS, ids=lambda item: item if isinstance(item, str) else describe(item))
def test_every_kind_keeps_the_contract_in_every_host(name: str, place: Place):
    check_subject(Subject(find(name), {}, place), QUICK)


@pytest.mark.parametrize("name", [label(part) for part in all_kinds()])
def test_every_kind_keeps_the_contract_with_every_value_of_its_knobs(name: str):
    part = find(name)
    for subject in covering(part):
        check_subject(subject, QUICK if issubclass(part, Block) else OF_A_DRAW)


def test_known_refusals_are_refused_still():
    for name, hosts in REFUSED.items():
        accepted, refused = subjects(find(name))
        assert set(refused) == hosts
        assert accepted


@functools.cache
def bundles() -> list[Specimen]:
    """Models of four equal layers in which every kind occurs."""
    rng, found, missing = random.Random(1), [], all_kinds()
    while len(found) < BUNDLES:
        config = random_model(rng, missing[:1], replace(SITE, n_layers=4), layers="alike")
        if config is not None:
            found.append(Specimen(config, seed=len(found)))
            missing = [part for part in missing if label(part) not in kinds_in(config)]
    return found


def test_every_kind_is_compiled():
    met = set().union(*(kinds_in(specimen.config) for specimen in bundles()))
    assert {label(part) for part in all_kinds()} <= met


@pytest.mark.parametrize("index", range(BUNDLES))
def test_equal_layers_compile_to_two_graphs(index: int):
    count_graphs(bundles()[index], 9)


@pytest.mark.parametrize("name", FAULTS)
def test_wrong_blocks_are_caught(name: str):
    promise, make = FAULTS[name]
    with planted():
        wrong = make()
        knobs = {"window": None} if name == "knob_that_toml_cannot_say" else {}
        with pytest.raises(BrokenPromise, match=f"'{promise}' is broken by {wrong.slot}.wrong") as caught:
            check(wrong, knobs, promises=(promise,))
    assert caught.value.promise == promise


def test_wrong_blocks_leave_no_trace():
    before = set(map(label, all_kinds()))
    with planted():
        FAULTS["mask_off_by_one"][1]()
        assert set(map(label, all_kinds())) == before | {"attention.wrong"}
    assert set(map(label, all_kinds())) == before


def test_a_failure_shows_the_smallest_number_of_tokens():
    with planted(), pytest.raises(BrokenPromise, match=r"with T = 2, outputs before 1 have gradient .* to input 1"):
        check(FAULTS["mask_off_by_one"][1](), promises=("causal",))


def test_an_honest_block_of_ones_own_keeps_every_promise():
    with planted():

        class Neighbour(Stem, kind="neighbour"):
            """Adds a projection of the token before. Source: this test."""

            reads = (SEGMENTS,)

            def __init__(self, cfg: Stem.Config, site: Site) -> None:
                super().__init__()
                self.matrix = Linear(site.dim, site.dim)

            def forward(self, x: Tensor, bus: Bus) -> Tensor:
                before, exists = previous(bus, "x", x)
                return x + self.matrix(before.where(exists[..., None], 0))

        check(Neighbour)
        check("neighbour", promises=("causal",))


def test_a_declared_breach_excuses_that_promise_alone():
    with planted():
        wrong = FAULTS["attention_across_documents"][1]()
        wrong.breaks = {"document_bounded": "on purpose"}
        with pytest.raises(BrokenPromise, match="padding_independent"):
            check(wrong, promises=("document_bounded", "padding_independent"))


def test_a_block_that_no_host_accepts_is_not_passed_over():
    with planted():

        class Homeless(Stem, kind="homeless"):
            """Draws noise in evaluation too, which every host refuses. Source: this test."""

            def __init__(self, cfg: Stem.Config, site: Site) -> None:
                super().__init__()

            def forward(self, x: Tensor, bus: Bus) -> Tensor:
                return x * bus.noise("always", x.shape)

        with pytest.raises(ConfigError, match=r"no host accepts stem.homeless: model.stem: .*evaluation mode"):
            check(Homeless)


def test_a_whole_model_is_checked_as_a_kind_is():
    stem, gate = ["bigram_hash", "rms_norm", "smear_gate"], {"kind": "gqa", "output": ["gate"]}
    sizes = {"vocab_size": 53, "dim": 16, "n_layers": 2, "context": 16}
    check_model(ModelConfig(**sizes, stem=stem, layer={"kind": "pre_norm", "attention": gate}, trunk="unet"))
    with planted():
        FAULTS["smear_looks_ahead"][1]()
        with pytest.raises(BrokenPromise, match=r"'causal' is broken by the model .*with T = 2"):
            check_model(ModelConfig(**sizes, layer={"kind": "pre_norm", "stem": ["wrong"]}))


def test_names_that_do_not_exist_are_refused():
    with pytest.raises(LookupError, match="'nothing' names 0 kinds"):
        check("nothing")
    with pytest.raises(LookupError, match=r"'none' names \d kinds.*norm.none"):
        check("none")
    with pytest.raises(LookupError, match="no promise is called 'causality'"):
        check("gqa", promises=("causality",))


def test_counted_flops_are_those_of_a_known_attention():
    gqa = Subject(find("gqa"), {"n_heads": 4, "n_kv_heads": 2}, places(find("gqa"))[0], replace(SITE, n_layers=1))
    dim, context, vocabulary = SITE.dim, SITE.context, SITE.vocab_size
    attention = 2 * dim * (dim + 2 * dim // 2 + dim) + 2 * 2 * context * dim
    swiglu = 2 * 3 * dim * 4 * dim
    assert flops_per_token(gqa) == attention + swiglu + 2 * dim * vocabulary


def test_not_a_number_is_never_close():
    good, bad = torch.ones(1, 3, 2), torch.ones(1, 3, 2)
    bad[0, 1] = torch.nan
    assert difference(Answer(bad, None), Answer(good, None)) == (1, torch.inf)
    assert difference(Answer(good, None), Answer(bad, None))[1] == torch.inf


def test_tokens_are_compared_up_to_the_first_with_another_routing():
    logits = torch.arange(8.0).view(1, 4, 2)
    routes = torch.tensor([[[0], [1], [2], [3]]])
    other = routes.clone()
    other[0, 2] = 7
    moved = logits.clone()
    moved[0, 2:] += 5
    assert difference(Answer(moved, other), Answer(logits, routes)) == (0, 0.0)
    assert difference(Answer(moved, routes), Answer(logits, routes))[0] == 2


@given(data=st.data())
@settings(max_examples=15)
def test_kinds_of_the_strategies_keep_the_cheap_promises(data: st.DataObject):
    part: type[Part] = data.draw(st.sampled_from(sorted(zoo.testing.slots())).flatmap(strategies.kinds_of))
    check_subject(data.draw(strategies.subjects(part)), ("causal", "decodes", "round_trips"))

"""The contract at length: every promise of 200 drawn kinds, knobs, places, sites and lengths. Run with -m slow."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoo.core.slots import Block
from zoo.testing import OF_MODELS, PROMISES, check_subject, strategies
from zoo.testing.hosts import Specimen, all_kinds, slots

pytestmark = pytest.mark.slow

EXAMPLES = 200  # of every promise
OF_A_SLOT, OF_MODELS_OF_TWO, COMPILED = 50, 60, 40
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
QUICK = [name for name in PROMISES if name != "compiles"]
OF_A_DRAW = ("keeps_dtype", "scores", "round_trips", "roles")  # an Init draws parameters and takes no part in a call
BLOCKS = {name: slot for name, slot in slots().items() if issubclass(slot, Block)}


@pytest.mark.parametrize("promise", QUICK)
@given(data=st.data())
@settings(max_examples=EXAMPLES, suppress_health_check=SLOW)
def test_every_promise_of_any_kind_anywhere(promise: str, data: st.DataObject) -> None:
    kinds = [part for part in all_kinds() if issubclass(part, Block) or promise in OF_A_DRAW]
    subject = data.draw(st.sampled_from(kinds).flatmap(strategies.subjects))
    check_subject(subject, (promise,), data.draw(st.integers(2, 17)))


@pytest.mark.parametrize("slot", BLOCKS)
@given(data=st.data())
@settings(max_examples=OF_A_SLOT, suppress_health_check=SLOW)
def test_every_slot_may_know_only_what_it_may(slot: str, data: st.DataObject) -> None:
    """The promises whose breach would flatter a table, of each slot by itself."""
    part = data.draw(strategies.kinds_of(slot))
    promises = ("causal", "document_bounded", "batch_independent", "decodes")
    check_subject(data.draw(strategies.subjects(part)), promises, data.draw(st.integers(2, 17)))


@pytest.mark.parametrize("promise", [name for name in OF_MODELS if name not in ("compiles", "sourced", "roles")])
@given(data=st.data())
@settings(max_examples=OF_MODELS_OF_TWO, suppress_health_check=SLOW)
def test_every_promise_of_models_of_any_two_kinds(promise: str, data: st.DataObject) -> None:
    pair = data.draw(strategies.pairs().filter(lambda kinds: kinds[0].slot != kinds[1].slot))
    config = data.draw(strategies.model_configs(*pair))
    check_subject(Specimen(config), (promise,), data.draw(st.integers(2, 13)))


@given(data=st.data())
@settings(max_examples=COMPILED, suppress_health_check=SLOW)
def test_any_kind_compiles(data: st.DataObject) -> None:
    kinds = [part for part in all_kinds() if issubclass(part, Block)]
    check_subject(data.draw(st.sampled_from(kinds).flatmap(strategies.subjects)), ("compiles",))

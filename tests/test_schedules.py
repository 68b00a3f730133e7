"""Schedules against published points, transformers' schedules, and what must hold at any length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

import zoo.optim  # noqa: F401 (registers the kinds)
from zoo.core.part import ConfigError
from zoo.core.tree import merge
from zoo.optim.schedules import updates
from zoo.optim.slots import Schedule


def build(**knobs: Any) -> Schedule:
    return Schedule.parse(knobs).build()


def scales(schedule: Schedule, total: int) -> list[float]:
    return [schedule.scale(step, total) for step in range(1, total + 1)]


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (10, 1.5e-05),
        (100, 1.5e-04),
        (250, 3.75e-04),
        (1000, 1.5e-03),
        (1500, 1.41667e-03),
        (2500, 1.25e-03),
        (5000, 8.33333e-04),
        (9000, 1.66667e-04),
        (10000, 0.0),
    ],
)
@pytest.mark.parametrize("warmup", [1000, 0.1])
def test_linear_meets_the_published_points(step: int, rate: float, warmup: float) -> None:
    """Learning rates logged by the 24-layer run, six digits each: peak 1.5e-3, 10,000 updates, 1,000 of warm-up."""
    found = 1.5e-3 * build(kind="linear", warmup=warmup).scale(step, 10_000)
    assert float(f"{found:.5e}") == rate


class TestAgainstTransformers:
    """Its multiplier is a function of the updates already made, which agrees with ours counted from 1."""

    TOTAL = 200

    @staticmethod
    def multiplier(make: Any, **knobs: Any) -> Any:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return make(optimizer, **knobs).lr_lambdas[0]

    @pytest.mark.parametrize("warmup", [0, 1, 37, 200])
    def test_linear(self, warmup: int) -> None:
        theirs = self.multiplier(
            transformers.get_linear_schedule_with_warmup, num_warmup_steps=warmup, num_training_steps=self.TOTAL
        )
        ours = build(kind="linear", warmup=warmup)
        assert scales(ours, self.TOTAL)[:-1] == pytest.approx([theirs(s) for s in range(1, self.TOTAL)], abs=1e-12)
        # At the very end of a warm-up that is the whole run transformers is at 0 and we are still at the peak.
        assert ours.scale(self.TOTAL, self.TOTAL) == (1.0 if warmup == self.TOTAL else theirs(self.TOTAL))

    @pytest.mark.parametrize("warmup", [0, 1, 37])
    @pytest.mark.parametrize("final", [0.0, 0.1])
    def test_cosine(self, warmup: int, final: float) -> None:
        theirs = self.multiplier(
            transformers.get_cosine_with_min_lr_schedule_with_warmup,
            num_warmup_steps=warmup,
            num_training_steps=self.TOTAL,
            min_lr_rate=final,
        )
        ours = build(kind="cosine", warmup=warmup, final=final)
        after = range(warmup + 1, self.TOTAL + 1)  # its warm-up starts from ``final``, ours from nothing
        assert [ours.scale(s, self.TOTAL) for s in after] == pytest.approx([theirs(s) for s in after], abs=1e-12)
        plain = self.multiplier(
            transformers.get_cosine_schedule_with_warmup, num_warmup_steps=warmup, num_training_steps=self.TOTAL
        )
        whole = scales(build(kind="cosine", warmup=warmup), self.TOTAL)
        assert whole == pytest.approx([plain(s) for s in range(1, self.TOTAL + 1)], abs=1e-12)

    @pytest.mark.parametrize(("warmup", "warmdown"), [(0, 200), (0, 1), (20, 90), (110, 90), (20, 0)])
    def test_warmdown(self, warmup: int, warmdown: int) -> None:
        """Warming down follows the updates already made: the first still runs at 1, the last at 1 / W."""
        theirs = self.multiplier(
            transformers.get_wsd_schedule,
            num_warmup_steps=warmup,
            num_decay_steps=warmdown,
            num_training_steps=self.TOTAL,
            decay_type="linear",
        )
        ours = build(kind="warmdown", warmup=warmup, warmdown=warmdown)
        expected = [theirs(s) if s <= warmup else theirs(s - 1) for s in range(1, self.TOTAL + 1)]
        if 0 < warmup < self.TOTAL:
            expected[warmup] = theirs(warmup)
        assert scales(ours, self.TOTAL) == pytest.approx(expected, abs=1e-12)


class TestWarmdown:
    def test_by_hand(self) -> None:
        assert scales(build(kind="warmdown", warmdown=4), 6) == [1.0, 1.0, 1.0, 0.75, 0.5, 0.25]

    def test_floor(self) -> None:
        assert scales(build(kind="warmdown", warmdown=4, floor=0.6), 6) == [1.0, 1.0, 1.0, 0.75, 0.6, 0.6]

    def test_the_floor_does_not_lift_the_warmup(self) -> None:
        assert scales(build(kind="warmdown", warmup=4, warmdown=0, floor=0.6), 5) == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_constant() -> None:
    assert scales(build(kind="constant"), 3) == [1.0, 1.0, 1.0]
    assert scales(build(kind="constant", warmup=2), 4) == [0.5, 1.0, 1.0, 1.0]
    assert scales(build(kind="constant", warmup=0.5), 4) == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_final(kind: str) -> None:
    found = scales(build(kind=kind, warmup=2, final=0.2), 8)
    assert found[:2] == [0.5, 1.0]
    assert found[-1] == pytest.approx(0.2)
    assert found[4] == pytest.approx(0.6)  # half-way, where both kinds stand in the middle


LENGTH = st.integers(0, 300) | st.floats(0.0, 1.0, exclude_max=True)
KNOBS = st.one_of(
    st.fixed_dictionaries({"kind": st.just("constant"), "warmup": LENGTH}),
    st.fixed_dictionaries({"kind": st.sampled_from(["linear", "cosine"]), "warmup": LENGTH, "final": st.floats(0, 1)}),
    st.fixed_dictionaries(
        {"kind": st.just("warmdown"), "warmup": LENGTH, "warmdown": LENGTH, "floor": st.floats(0, 1)}
    ),
)


class TestAnyLength:
    def test_every_registered_kind_is_drawn(self) -> None:
        assert {"constant", "linear", "cosine", "warmdown"} == set(Schedule.all_kinds())

    @given(KNOBS, st.integers(1, 300))
    def test_rises_to_one_and_never_rises_again(self, knobs: dict[str, Any], total: int) -> None:
        schedule = build(**knobs)
        try:
            schedule.check(total)
        except ConfigError:
            assume(False)
        found, warmup = scales(schedule, total), updates(knobs["warmup"], total)
        assert all(0.0 <= scale <= 1.0 for scale in found)
        assert found[:warmup] == [s / warmup for s in range(1, warmup + 1)]
        assert all(a >= b for a, b in zip(found[warmup:], found[warmup + 1 :], strict=False))
        if knobs["kind"] in ("constant", "warmdown"):
            assert found[-1] > 0.0, "the last update moves nothing"

    def test_a_warm_down_past_its_estimated_end_goes_on_at_its_last_rate(self) -> None:
        assert build(kind="warmdown", warmdown=0).scale(3, 1) == 1.0
        assert build(kind="warmdown", warmdown=4).scale(9, 5) == build(kind="warmdown", warmdown=4).scale(5, 5) == 0.25

    @given(KNOBS, st.integers(1, 400), st.integers(1, 300))
    def test_a_total_that_is_only_an_estimate_stays_within_bounds(
        self, knobs: dict[str, Any], step: int, total: int
    ) -> None:
        """With a budget in seconds the total is a guess that may be too short, for the step and for the schedule."""
        assert 0.0 <= build(**knobs).scale(step, total) <= 1.0

    @given(st.floats(0.0, 0.999), st.integers(1, 10_000))
    def test_a_share_is_that_many_whole_updates(self, share: float, total: int) -> None:
        assert share * total - 1 < updates(share, total) <= share * total + 1e-9

    @given(st.integers(0, 1000), st.integers(1, 1000))
    def test_a_share_meant_as_whole_updates_is_those(self, n: int, total: int) -> None:
        assume(n < total)
        assert updates(n / total, total) == n

    @given(st.integers(1, 999), st.integers(1, 10_000))
    def test_shares_that_fill_the_run_fit_every_run(self, thousandths: int, total: int) -> None:
        build(kind="warmdown", warmup=thousandths / 1000, warmdown=(1000 - thousandths) / 1000).check(total)


class TestFaults:
    @pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "warmdown"])
    def test_a_warmup_longer_than_the_run(self, kind: str) -> None:
        build(kind=kind, warmup=100, **({"warmdown": 0} if kind == "warmdown" else {})).check(100)
        with pytest.raises(ConfigError, match=r"warmup = 101: .*run, which has 100 updates"):
            build(kind=kind, warmup=101).check(100)

    @pytest.mark.parametrize(
        ("warmup", "warmdown"), [(51, 50), (0, 101), (0.6, 41), (41, 0.6), (0.6, 0.6)], ids=lambda v: str(v)
    )
    def test_warmup_and_warmdown_longer_than_the_run(self, warmup: float, warmdown: float) -> None:
        with pytest.raises(ConfigError, match=f"warmdown = {warmdown}: .*room for") as fault:
            build(kind="warmdown", warmup=warmup, warmdown=warmdown).check(100)
        assert (fault.value.path, fault.value.value) == ("warmdown", warmdown)

    def test_warmup_and_warmdown_that_just_fit(self) -> None:
        build(kind="warmdown", warmup=50, warmdown=50).check(100)
        build(kind="warmdown", warmup=0.5, warmdown=0.5).check(101)

    @pytest.mark.parametrize("value", [1.0, 1000.0, 1.5, -0.1, -1, True, "1000", float("nan"), float("inf"), None])
    @pytest.mark.parametrize("knob", ["warmup", "warmdown"])
    def test_a_length_is_whole_updates_or_a_share(self, knob: str, value: Any) -> None:
        with pytest.raises(ValidationError, match=knob):
            build(kind="warmdown", **{knob: value})

    @pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
    def test_a_factor_is_within_0_and_1(self, value: float) -> None:
        with pytest.raises(ValidationError, match="final"):
            build(kind="linear", final=value)
        with pytest.raises(ValidationError, match="floor"):
            build(kind="warmdown", floor=value)


def test_lengths_come_back_from_a_recipe_as_they_went_in() -> None:
    """1000 updates must not come back as 1000.0, which would be refused."""
    for value in (1000, 0.25):
        config = Schedule.parse({"kind": "linear", "warmup": value})
        again = Schedule.parse(config.model_dump())
        assert again == config
        assert type(again.warmup) is type(value)


def test_what_survives_a_swap_of_schedule() -> None:
    base = merge(Schedule.Config, None, {"kind": "linear", "warmup": 20, "final": 0.1})
    assert merge(Schedule.Config, base, "cosine") == {"kind": "cosine", "warmup": 20, "final": 0.1}
    assert merge(Schedule.Config, base, "warmdown") == {"kind": "warmdown", "warmup": 20}

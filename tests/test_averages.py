"""Averages against torch's AveragedModel and against the plain mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import zoo.optim  # noqa: F401 (registers the kinds)
from zoo.core.params import Embedding, Linear
from zoo.optim.slots import Average

KINDS = [{"kind": "none"}, {"kind": "ema", "decay": 0.9, "every": 2}, {"kind": "swa", "every": 2, "below": 0.7}]
KINDS += [{"kind": "ema_bug828", "decay": 0.9, "every": 2}]


class Toy(nn.Module):
    """Two matrices, one of them under two names, and a buffer."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(3, 4, generator=generator).to(dtype))
        self.second = nn.Parameter(torch.randn(5, generator=generator).to(dtype))
        self.tied = self.first
        self.register_buffer("bias", torch.zeros(2))


@torch.no_grad()
def wander(model: nn.Module, step: int) -> None:
    """Move parameters and buffers by what depends on the step alone."""
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p += torch.randn(p.shape, generator=generator).to(p.dtype)
    model.bias += 1


def build(model: nn.Module, **knobs: Any) -> Average:
    return Average.parse(knobs).build(model)


def run(average: Average, model: nn.Module, first: int, last: int, total: int = 10) -> None:
    for step in range(first, last + 1):
        wander(model, step)
        average.update(model, step, total, 1.0 - (step - 1) / total)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("every", [1, 3])
def test_ema_equals_torch(every: int) -> None:
    """torch's first update copies the weights, which is our start from the initial ones."""
    model = Toy()
    oracle = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9**every))
    oracle.update_parameters(model)
    average = build(model, kind="ema", decay=0.9, every=every)
    for step in range(1, 11):
        run(average, model, step, step)
        if step % every == 0:
            oracle.update_parameters(model)
    assert_same(average.weights(), dict(oracle.module.named_parameters()))


def test_swa_equals_torch() -> None:
    """Rates 1, 0.9 ... 0.1: with ``below`` 0.7 and every second update, updates 6, 8 and 10 are averaged."""
    model = Toy()
    oracle = AveragedModel(model)
    average = build(model, kind="swa", every=2, below=0.7)
    for step in range(1, 11):
        run(average, model, step, step)
        if step in (6, 8, 10):
            oracle.update_parameters(model)
    assert int(average.state()["count"]) == 3
    assert_same(average.weights(), dict(oracle.module.named_parameters()))


def test_swa_begins_strictly_below_its_bound() -> None:
    average = build(Toy(), kind="swa", every=1, below=0.5)
    average.update(Toy(), 1, 10, 0.5)
    assert average.weights() is None
    average.update(Toy(), 2, 10, 0.49)
    assert_same(average.weights(), dict(Toy().named_parameters()), 0.0)


@pytest.mark.parametrize("kind", ["none", "swa"])
def test_nothing_but_the_live_weights(kind: str) -> None:
    model = Toy()
    average = build(model, kind=kind)
    run(average, model, 1, 3)
    assert average.weights() is None


def test_ema_starts_from_the_initial_weights() -> None:
    model = Toy()
    average = build(model, kind="ema", decay=0.9, every=5)
    run(average, model, 1, 4)
    assert_same(average.weights(), dict(Toy().named_parameters()), 0.0)


@pytest.mark.parametrize("knobs", KINDS[1:])
def test_parameters_once_and_no_buffers(knobs: dict[str, Any]) -> None:
    model = Toy()
    average = build(model, **knobs)
    run(average, model, 1, 10)
    assert set(average.weights()) == {"first", "second"}
    assert all(not t.requires_grad for t in average.state().values())


@pytest.mark.parametrize(("kind", "decay"), [("ema", {"decay": 0.997}), ("swa", {"below": 2.0})])
def test_small_steps_are_not_lost_to_bfloat16(kind: str, decay: dict[str, Any]) -> None:
    """A shadow in bf16 would stop far off: half a unit in the last place over 1 - decay, which in fp32 is under 1e-4."""
    model = Toy(torch.bfloat16)
    average = build(model, kind=kind, every=1, **decay)
    with torch.no_grad():
        model.first += 0.05
    for step in range(1, 5001):
        average.update(model, step, 5000, 1.0)
    found = average.weights()["first"]
    assert found.dtype == torch.float32
    assert (found - model.first.float()).abs().max() < 1e-4


def test_the_published_average_of_an_embedding_stalls_and_of_all_else_does_not() -> None:
    """A table 6 % away is never reached in bf16, not at ten times the share either; the very same weights in fp32 are."""
    model = nn.ModuleDict({"table": Embedding(3, 4), "matrix": Linear(4, 3)})
    for p in model.parameters():
        nn.init.ones_(p)
    averages = [build(model, kind=kind, decay=0.997, every=10) for kind in ("ema", "ema_bug828")]
    with torch.no_grad():
        for p in model.parameters():
            p *= 1.06
    for average in averages:
        for step in range(1, 8001):
            average.update(model, step, 8000, 1.0)
    right, wrong = (average.weights() for average in averages)
    assert all((w - 1.06).abs().max() < 1e-4 for w in (*right.values(), wrong["matrix.weight"]))
    assert wrong["table.weight"].dtype == torch.float32 and (1.06 - wrong["table.weight"]).min() > 0.01
    assert "average_follows_the_weights" in Average.kind_named("ema_bug828").breaks


@pytest.mark.parametrize("knobs", KINDS[1:])
def test_a_float64_model_is_averaged_in_float64(knobs: dict[str, Any]) -> None:
    model = Toy(torch.float64)
    average = build(model, **knobs)
    run(average, model, 1, 10)
    assert {t.dtype for t in average.weights().values()} == {torch.float64}


def test_every_registered_kind_is_in_the_list() -> None:
    assert {knobs["kind"] for knobs in KINDS} == set(Average.all_kinds())


@pytest.mark.parametrize("knobs", KINDS)
@pytest.mark.parametrize("stop", [3, 7])
def test_stopping_and_resuming_changes_no_bit(knobs: dict[str, Any], stop: int) -> None:
    model, whole = Toy(), build(Toy(), **knobs)
    run(whole, model, 1, 10)
    model = Toy()
    first = build(model, **knobs)
    run(first, model, 1, stop)
    second = build(model, **knobs)
    second.load({name: t.clone() for name, t in first.state().items()})
    run(second, model, stop + 1, 10)
    assert_same(second.state(), whole.state(), 0.0)
    assert (second.weights() is None) == (whole.weights() is None)


@pytest.mark.parametrize("knobs", KINDS)
def test_the_state_of_another_kind_is_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="saved state does not fit"):
        build(Toy(), **knobs).load({"elsewhere/ema": torch.zeros(1)})

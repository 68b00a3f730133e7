"""Recorded micro-batches: the numbers of those that are computed call by call, or none.

The recorder of these tests does by hand what a CUDA graph does: the same work once more, into the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_resume import RICH, sets
from test_train import loop_of

from zoo.fallback import uncompiled
from zoo.graphs import WARM, Graphs, Said
from zoo.loop import Loop

RICH_SETS = [line for line in sets(RICH) if not line.startswith(("train.", "average", "schedule"))]


class ByHand:
    """Remembers how often it recorded and replayed."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.recorded, self.replayed = loop, 0, 0

    def rehearse(self, work: Callable[[], object]) -> None:
        work()

    def record(self, work: Callable[[], Said]) -> tuple[Said, Callable[[], None]]:
        self.recorded += 1
        parameters = list(self.loop.model.parameters())
        adds = any(p.grad is not None for p in parameters)
        said = work()
        memory = [(p, p.grad) for p in parameters]

        def replay() -> None:
            self.replayed += 1
            for p, grad in memory:
                p.grad = grad if adds else None
            again = work()
            for p, grad in memory:
                if grad is not None and p.grad is not grad:
                    grad.copy_(p.grad)
                p.grad = grad
            said.nll.copy_(again.nll)
            for name, t in said.stats.items():
                t.copy_(again.stats[name])

        return said, replay


def recorded(loop: Loop) -> ByHand:
    """Let ``loop`` record by hand, as it would on a GPU."""
    recorder = ByHand(loop)
    loop.graphs = Graphs(loop.model, loop._micro_batch, recorder)
    return recorder


def numbers(loop: Loop) -> list[torch.Tensor]:
    return [torch.stack(loop.losses), *loop.model.state_dict().values()]


@pytest.mark.parametrize(
    ("more", "recordings", "replays"),
    [
        ([], 1, 9 - WARM),
        (RICH_SETS, 1, 9 - WARM),
        (["train.accumulate=3"], 2, (9 - WARM) * 3),
        (["train.short_context=8"], 2, (4 - WARM) + (5 - WARM)),
    ],
    ids=["plain", "rich", "accumulated", "short rows first"],
)
def test_a_recorded_run_ends_in_the_bits_of_one_that_is_not(
    tmp_path: Path, more: list[str], recordings: int, replays: int
):
    found = []
    for way in ("plain", "recorded"):
        loop = loop_of(tmp_path, *more, "train.steps=9")
        recorder = recorded(loop) if way == "recorded" else None
        loop.run()
        found.append(numbers(loop))
        assert loop.remarks == []
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert (recorder.recorded, recorder.replayed) == (recordings, replays)


def test_a_parameter_that_moved_is_recorded_anew(tmp_path: Path):
    found = []
    for way in ("plain", "recorded"):
        loop = loop_of(tmp_path, "train.steps=12")
        recorder = recorded(loop) if way == "recorded" else None
        for step in range(12):
            loop._update()
            if step == 5:
                weight = loop.model.layer[0].attention.query.weight
                weight.data = weight.data.clone()
        found.append(numbers(loop))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert recorder.recorded == 2


@pytest.mark.parametrize("when", ["rehearse", "record"])
def test_what_cannot_be_recorded_is_computed_call_by_call_and_said(tmp_path: Path, when: str):
    plain, other = loop_of(tmp_path, "train.steps=6"), loop_of(tmp_path, "train.steps=6")

    def refuse(work: Callable[[], Said]) -> tuple[Said, Callable[[], None]]:
        work()
        raise RuntimeError("operation not permitted when stream is capturing")

    setattr(recorded(other), when, refuse)
    for loop in (plain, other):
        loop.run()
    assert all(torch.equal(a, b) for a, b in zip(numbers(plain), numbers(other), strict=True))
    assert other.remarks == [
        "not recorded as a CUDA graph: RuntimeError: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize("lie", ["loss", "gradients"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_recording_that_says_something_else_is_not_used(tmp_path: Path, lie: str, accumulate: int):
    plain, other = (loop_of(tmp_path, "train.steps=6", f"train.accumulate={accumulate}") for _ in range(2))
    by_hand = recorded(other)
    honest = by_hand.record

    def lying(work: Callable[[], Said]) -> tuple[Said, Callable[[], None]]:
        said, replay = honest(work)

        def wrong() -> None:
            replay()
            if by_hand.recorded == (1 if accumulate == 1 else 2):
                said.nll.mul_(1.01 if lie == "loss" else 1.0)
                for p in other.model.parameters():
                    p.grad.mul_(1.1 if lie == "gradients" else 1.0)

        return said, wrong

    by_hand.record = lying
    for loop in (plain, other):
        loop.run()
    assert all(torch.equal(a, b) for a, b in zip(numbers(plain), numbers(other), strict=True))
    assert len(other.remarks) == 1 and f"replayed, the {lie if lie == 'loss' else 'norm'}" in other.remarks[0]


def test_fewer_rows_are_recorded_anew(tmp_path: Path):
    loop = loop_of(tmp_path, "train.steps=12", "train.batch=4")
    recorder = recorded(loop)
    for step in range(12):
        loop._update()
        if step == 4:
            loop.split(2)
            assert loop.graphs.kept == {}  # memory is what there is too little of
    assert recorder.recorded == 3  # four rows; two rows, first and further


def test_without_the_compiler_nothing_is_replayed_that_was_compiled(tmp_path: Path):
    loop = loop_of(tmp_path, "train.steps=12")
    recorded(loop)
    for _ in range(4):
        loop._update()
    assert loop.graphs.kept
    uncompiled(loop, "no compiler")
    assert loop.graphs.kept == {}


def test_a_replay_takes_the_factor_on_the_loss_that_it_is_given(tmp_path: Path):
    """Rows of whole documents have another one at every step."""
    loop = loop_of(tmp_path, "train.steps=12")
    recorded(loop)
    for _ in range(4):
        loop._update()
    given, found = loop._given(5, 0), []
    for scale in (1.0, 2.0):
        loop.model.zero_grad(set_to_none=True)
        said = loop.graphs(given._replace(scale=scale), True)
        found.append([said.nll, *(p.grad.clone() for p in loop.model.parameters())])
    assert all(torch.allclose(2 * a, b) for a, b in zip(*found, strict=True))

"""What every optimizer promises, and AdamW against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from updates import MATRICES, SMALL, assert_close, build, draw, give_gradients, run

import zoo.optim  # noqa: F401 (registers the kinds)
from zoo.optim.slots import Optimizer


class TestEveryKind:
    KINDS = [
        {"kind": "adamw", "lr": 0.1, "weight_decay": 0.1},
        {"kind": "muon", "weight_decay": 0.1},
        {"kind": "muon", "accumulate": "lerp", "momentum_warmup_from": 0.5, "momentum_warmup_steps": 4},
        {"kind": "muon", "ns_dtype": "bfloat16", "coefficients": "polar_express", "form": "plain"},
    ]

    def test_every_registered_kind_is_in_the_list(self) -> None:
        assert {knobs["kind"] for knobs in self.KINDS} == set(Optimizer.all_kinds())

    @pytest.mark.parametrize("knobs", KINDS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_stopping_and_resuming_changes_no_bit(self, knobs: dict[str, Any], dtype: torch.dtype) -> None:
        whole = run(build(knobs, draw(MATRICES, dtype)), 1, 6)
        first = build(knobs, draw(MATRICES, dtype))
        run(first, 1, 3, without=["p1"])
        run_whole = build(knobs, draw(MATRICES, dtype))
        run(run_whole, 1, 3, without=["p1"])
        saved = {name: t.clone() for name, t in first.state().items()}
        second = build(knobs, [(name, nn.Parameter(p.detach().clone())) for name, p in first.named])
        second.load(saved)
        for a, b in zip(run(second, 4, 6), run(run_whole, 4, 6), strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(whole[1], run_whole.named[1][1]), "the parameter without a gradient moved all the same"

    @pytest.mark.parametrize("knobs", KINDS)
    def test_no_gradient_means_left_alone(self, knobs: dict[str, Any]) -> None:
        optimizer = build(knobs, draw(MATRICES))
        before = [p.detach().clone() for _, p in optimizer.named]
        state = {name: t.clone() for name, t in optimizer.state().items()}
        after = run(optimizer, 1, 2, without=["p0", "p3"])
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == [False, True, True, False, True, True]
        for name, t in optimizer.state().items():
            assert torch.equal(t, state[name]) == name.startswith(("p0/", "p3/")), name

    @pytest.mark.parametrize("knobs", KINDS)
    def test_nobody_has_a_gradient(self, knobs: dict[str, Any]) -> None:
        optimizer = build(knobs, draw(MATRICES))
        before = [p.detach().clone() for _, p in optimizer.named]
        optimizer.step(1.0, 1)
        assert all(torch.equal(a, p) for a, (_, p) in zip(before, optimizer.named, strict=True))

    @pytest.mark.parametrize("knobs", KINDS)
    def test_gradients_are_not_written_to(self, knobs: dict[str, Any]) -> None:
        optimizer = build(knobs, draw(MATRICES))
        give_gradients(optimizer.named, 1)
        before = [p.grad.clone() for _, p in optimizer.named]
        optimizer.step(1.0, 1)
        assert all(torch.equal(g, p.grad) for g, (_, p) in zip(before, optimizer.named, strict=True))

    @pytest.mark.parametrize("knobs", KINDS)
    def test_decay_follows_the_scheduled_rate(self, knobs: dict[str, Any]) -> None:
        """With a gradient of zeros only the decay moves, by lr * scale * weight_decay and no factor of shape."""
        optimizer = build(knobs | {"lr": 0.1, "weight_decay": 0.5}, draw(MATRICES))
        before = [p.detach().clone() for _, p in optimizer.named]
        for _, p in optimizer.named:
            p.grad = torch.zeros_like(p)
        optimizer.step(0.25, 1)
        assert_close([p.detach() for _, p in optimizer.named], [b * (1 - 0.1 * 0.25 * 0.5) for b in before], 1e-15)

    @pytest.mark.parametrize("knobs", KINDS)
    def test_at_rate_zero_nothing_moves(self, knobs: dict[str, Any]) -> None:
        optimizer = build(knobs, draw(MATRICES))
        before = [p.detach().clone() for _, p in optimizer.named]
        give_gradients(optimizer.named, 1)
        optimizer.step(0.0, 1)
        assert all(torch.equal(a, p) for a, (_, p) in zip(before, optimizer.named, strict=True))

    @pytest.mark.parametrize("knobs", KINDS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_bytes_per_parameter(self, knobs: dict[str, Any], dtype: torch.dtype) -> None:
        optimizer = build(knobs, draw(MATRICES, dtype))
        size = torch.finfo(dtype).bits // 8
        numbers = sum(p.numel() for _, p in optimizer.named)
        exact = {"muon": size, "adamw": 2 * size + 8 * len(MATRICES) / numbers}[knobs["kind"]]
        assert optimizer.bytes_per_parameter() == pytest.approx(exact, rel=1e-12)
        assert round(exact * numbers) == sum(t.nbytes for t in optimizer.state().values())

    @pytest.mark.parametrize("knobs", KINDS)
    def test_a_transposed_gradient_is_read_as_what_it_is(self, knobs: dict[str, Any]) -> None:
        plain, turned = build(knobs, draw(MATRICES)), build(knobs, draw(MATRICES))
        give_gradients(plain.named, 1)
        for (_, p), (_, q) in zip(plain.named, turned.named, strict=True):
            q.grad = p.grad.mT.contiguous().mT
            assert q.grad.stride() != p.grad.stride()
        plain.step(1.0, 1)
        turned.step(1.0, 1)
        assert_close([p.detach() for _, p in turned.named], [p.detach() for _, p in plain.named], 1e-12)

    @pytest.mark.parametrize("knobs", KINDS)
    def test_the_state_of_other_parameters_is_refused(self, knobs: dict[str, Any]) -> None:
        optimizer, other = build(knobs, draw(MATRICES)), build(knobs, draw(MATRICES[:-1]))
        with pytest.raises(ValueError, match="surplus"):
            other.load(optimizer.state())
        with pytest.raises(ValueError, match=r"missing \['p5/"):
            optimizer.load(other.state())
        reshaped = build(knobs, draw([(4, 4), *MATRICES[1:]]))
        run(optimizer, 1, 1)
        before = {name: t.clone() for name, t in optimizer.state().items()}
        with pytest.raises(ValueError, match=r"p0/\w+ is \(4, 4\), not \(8, 12\)"):
            optimizer.load(reshaped.state())
        assert all(torch.equal(before[name], t) for name, t in optimizer.state().items())

    def test_an_unknown_knob_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(ValueError, match="did you mean 'weight_decay'"):
            Optimizer.parse({"kind": "muon", "weigth_decay": 0.1})


class TestAdamW:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
    @pytest.mark.parametrize("decay", [0.0, 0.3])
    def test_equals_torch(self, dtype: torch.dtype, tolerance: float, decay: float) -> None:
        knobs = {"kind": "adamw", "lr": 0.03, "weight_decay": decay, "betas": (0.8, 0.97), "eps": 1e-6}
        ours, theirs = build(knobs, draw(SMALL, dtype)), draw(SMALL, dtype)
        oracle = torch.optim.AdamW(
            [p for _, p in theirs], lr=0.03, weight_decay=decay, betas=(0.8, 0.97), eps=1e-6, foreach=False
        )
        for step in range(1, 13):
            without = ["p2"] if step in (1, 5) else []
            for named in (ours.named, theirs):
                give_gradients(named, step, without)
            oracle.param_groups[0]["lr"] = 0.03 / step
            oracle.step()
            ours.step(1.0 / step, step)
        assert_close([p.detach() for _, p in ours.named], [p.detach() for _, p in theirs], tolerance)

    def test_each_parameter_counts_its_own_updates(self) -> None:
        optimizer = build({"kind": "adamw"}, draw(SMALL))
        run(optimizer, 1, 2, without=["p1"])
        run(optimizer, 3, 5)
        assert {n: int(t) for n, t in optimizer.state().items() if n.endswith("/count")} == {
            "p0/count": 5,
            "p1/count": 3,
            "p2/count": 5,
            "p3/count": 5,
        }

    def test_parameters_of_two_dtypes(self) -> None:
        mixed = [("p0", draw([(3, 4)], torch.float32)[0][1]), ("p1", draw([(3, 4), (5,)])[1][1])]
        alone = [build({"kind": "adamw"}, [(n, nn.Parameter(p.detach().clone()))]) for n, p in mixed]
        together = run(build({"kind": "adamw"}, mixed), 1, 3)
        for ours, one in zip(together, alone, strict=True):
            assert torch.equal(ours, run(one, 1, 3)[0])

    def test_one_fused_call_holds_one_dtype_and_one_count(self) -> None:
        """A CPU takes them mixed, a GPU does not, so what is asked here is how they are grouped."""
        named = draw(SMALL) + [(f"p{i + 4}", p) for i, (_, p) in enumerate(draw(SMALL, torch.float32))]
        optimizer = build({"kind": "adamw"}, named)
        run(optimizer, 1, 1, without=["p0"])
        give_gradients(named, 2)
        assert sorted(optimizer._groups().values()) == [[0], [1, 2, 3], [4, 5, 6, 7]]

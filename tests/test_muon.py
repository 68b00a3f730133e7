"""Muon against ten clear lines in fp64, against torch's own, and its iteration against an SVD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from updates import MATRICES, Shape, assert_close, build, draw, give_gradients, run

import zoo.optim  # noqa: F401 (registers the kinds)
from zoo.core.part import ConfigError
from zoo.core.precision import bf16_is_fast
from zoo.optim import muon
from zoo.optim import newton_schulz as iteration
from zoo.optim.muon import ns_dtype
from zoo.optim.newton_schulz import KELLER, POLAR_EXPRESS, newton_schulz
from zoo.optim.slots import Optimizer


def naive_muon(w: Tensor, gradients: Sequence[Tensor], knobs: dict[str, Any]) -> Tensor:
    """One matrix in fp64, as one would write it on a blackboard."""
    c = Optimizer.parse(knobs).model_copy()
    buffer = torch.zeros_like(w)
    for step, g in enumerate(gradients, 1):
        start = c.momentum if c.momentum_warmup_from is None else c.momentum_warmup_from
        mu = start + (c.momentum - start) * min(1, (step - 1) / c.momentum_warmup_steps)
        new = g if c.accumulate == "heavy_ball" else (1 - mu) * g
        buffer = mu * buffer + new
        u = new + mu * buffer if c.accumulate == "heavy_ball" else (1 - mu) * g + mu * buffer
        x = u if c.form == "nesterov" else buffer
        x = x / (x.norm() + 1e-7) if c.coefficients == "keller" else x / (1.02 * x.norm() + 1e-6)
        for i in range(c.ns_steps):
            a, b, k = KELLER if c.coefficients == "keller" else POLAR_EXPRESS[min(i, 4)]
            x = a * x + b * (x @ x.T @ x) + k * (x @ x.T @ x @ x.T @ x)
        rows, cols = w.shape
        factor = max(1, rows / cols) ** 0.5 if c.adjust == "original" else 0.2 * max(rows, cols) ** 0.5
        w = w * (1 - c.lr / step * c.weight_decay) - c.lr / step * factor * x
    return w


MUONS = st.fixed_dictionaries(
    {
        "kind": st.just("muon"),
        "lr": st.sampled_from([0.02, 0.3]),
        "weight_decay": st.sampled_from([0.0, 0.2]),
        "momentum": st.sampled_from([0.0, 0.9]),
        "momentum_warmup_from": st.sampled_from([None, 0.3, 0.97]),
        "momentum_warmup_steps": st.integers(1, 5),
        "accumulate": st.sampled_from(["heavy_ball", "lerp"]),
        "form": st.sampled_from(["nesterov", "plain"]),
        "ns_steps": st.integers(0, 7),
        "coefficients": st.sampled_from(["keller", "polar_express"]),
        "adjust": st.sampled_from(["original", "match_rms_adamw"]),
    }
)


class TestMuon:
    @given(MUONS, st.lists(st.sampled_from(MATRICES), min_size=1, max_size=5))
    def test_equals_the_naive_twin_slice_by_slice(self, knobs: dict[str, Any], shapes: list[Shape]) -> None:
        ours = run(build(knobs, draw(shapes)), 1, 4)
        twin = draw(shapes)
        gradients: list[list[Tensor]] = []
        for step in range(1, 5):
            give_gradients(twin, step)
            gradients.append([p.grad for _, p in twin])
        for i, (_, p) in enumerate(twin):
            rows, cols = p.shape[-2:]
            pieces = p.detach().reshape(-1, rows, cols)
            histories = [[g[i].reshape(-1, rows, cols)[j] for g in gradients] for j in range(len(pieces))]
            expected = [naive_muon(w, history, knobs) for w, history in zip(pieces, histories, strict=True)]
            assert_close([ours[i].reshape(-1, rows, cols)], [torch.stack(expected)], 1e-9)

    @pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
    @pytest.mark.parametrize("form", ["nesterov", "plain"])
    def test_equals_torch_in_bfloat16(self, adjust: str, form: str) -> None:
        """Ten updates, to within the rounding of bf16, which comes to less than 1 % of the way gone."""
        shapes = [s for s in ((32, 48), (48, 32), (32, 32), (16, 64)) for _ in range(2)]
        knobs = {"kind": "muon", "lr": 0.02, "weight_decay": 0.1, "accumulate": "lerp", "ns_dtype": "bfloat16"}
        ours = build(knobs | {"adjust": adjust, "form": form}, draw(shapes, torch.float32))
        theirs = draw(shapes, torch.float32)
        start = [p.detach().clone() for _, p in theirs]
        oracle = torch.optim.Muon(
            [p for _, p in theirs], lr=0.02, weight_decay=0.1, nesterov=form == "nesterov", adjust_lr_fn=adjust
        )
        for step in range(1, 11):
            for named in (ours.named, theirs):
                give_gradients(named, step)
            oracle.param_groups[0]["lr"] = 0.02 / step
            oracle.step()
            ours.step(1.0 / step, step)
        for w, (_, a), (_, b) in zip(start, ours.named, theirs, strict=True):
            assert (a - b).norm() / (b - w).norm() < 0.01

    def test_pools_what_has_one_shape(self) -> None:
        optimizer = build({"kind": "muon"}, draw(MATRICES))
        pooled = [sorted({tuple(s.parameter.shape[-2:]) for s in chunk}) for chunk in optimizer.chunks]
        assert pooled == [[(8, 12), (12, 8)], [(8, 8)], [(6, 20)]]
        assert [sum(s.n for s in chunk) for chunk in optimizer.chunks] == [7, 1, 1]

    def test_a_pool_that_grows_too_large_is_cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = run(build({"kind": "muon"}, draw(MATRICES)), 1, 3)
        monkeypatch.setattr(muon, "CHUNK", {"cpu": 200})
        optimizer = build({"kind": "muon"}, draw(MATRICES))
        assert [len(chunk) for chunk in optimizer.chunks] == [2, 1, 1, 1, 1]
        assert_close(run(optimizer, 1, 3), whole, 1e-12)

    @pytest.mark.parametrize("knobs", [{}, {"momentum_warmup_from": 0.5, "momentum_warmup_steps": 4}])
    def test_heavy_ball_and_lerp_part_only_under_warmup(self, knobs: dict[str, Any]) -> None:
        """The first scales the second by a constant, which orthogonalising forgets, unless the momentum changes."""
        ours = [
            run(build({"kind": "muon", "accumulate": a} | knobs, draw(MATRICES)), 1, 5) for a in ("heavy_ball", "lerp")
        ]
        error = max(float((a - b).abs().max()) for a, b in zip(*ours, strict=True))
        assert error > 1e-3 if knobs else error < 1e-6

    @pytest.mark.parametrize(
        ("step", "momentum"), [(1, 0.92), (751, 0.955), (1500, 0.99 - 0.07 / 1500), (1501, 0.99), (9999, 0.99)]
    )
    def test_momentum_warms_up(self, step: int, momentum: float) -> None:
        knobs = {"kind": "muon", "momentum": 0.99, "momentum_warmup_from": 0.92, "momentum_warmup_steps": 1500}
        assert build(knobs, []).momentum_at(step) == pytest.approx(momentum, rel=1e-12)

    @pytest.mark.parametrize("shape", [(5,), ()])
    def test_takes_matrices_only(self, shape: Shape) -> None:
        with pytest.raises(ConfigError, match=r"kind = 'muon': .*p1 has shape"):
            build({"kind": "muon"}, draw([(4, 4), shape]))

    def test_match_rms_adamw_moves_entries_by_what_adamw_would(self) -> None:
        """A step's root mean square is close to 0.2 lr whatever the shape (arXiv:2502.16982, section 2.2)."""
        optimizer = build(
            {"kind": "muon", "lr": 1.0, "adjust": "match_rms_adamw"}, draw([(64, 16), (16, 64), (4, 32, 48)])
        )
        before = [p.detach().clone() for _, p in optimizer.named]
        after = run(optimizer, 1, 1)
        for a, b in zip(before, after, strict=True):
            assert 0.15 < float((b - a).square().mean().sqrt()) < 0.21


def scalar_map(s: Tensor, coefficients: str) -> Tensor:
    """What five steps do to a singular value, by the published numbers."""
    triples = {
        "keller": [(3.4445, -4.7750, 2.0315)] * 5,
        "polar_express": [
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ],
    }
    for a, b, c in triples[coefficients]:
        s = a * s + b * s**3 + c * s**5
    return s


class TestNewtonSchulz:
    @pytest.mark.parametrize("coefficients", ["keller", "polar_express"])
    @pytest.mark.parametrize("shape", [(3, 6, 6), (2, 5, 20), (1, 1, 7), (4, 1, 1)])
    def test_moves_singular_values_and_nothing_else(self, coefficients: str, shape: Shape) -> None:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        norm = s.norm(dim=-1, keepdim=True)
        scaled = s / (norm + 1e-7) if coefficients == "keller" else s / (1.02 * norm + 1e-6)
        expected = u @ torch.diag_embed(scalar_map(scaled, coefficients)) @ vh
        assert_close([newton_schulz(x, 5, coefficients)], [expected], 1e-10)

    @pytest.mark.parametrize(("coefficients", "low", "high"), [("keller", 0.68, 1.14), ("polar_express", 0.85, 1.15)])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_singular_values_end_near_one(self, coefficients: str, low: float, high: float, dtype: torch.dtype) -> None:
        """All of those that are at least 1 % of the Frobenius norm (a little wider in bf16)."""
        generator = torch.Generator().manual_seed(2)
        u, _, vh = torch.linalg.svd(torch.randn(4, 16, 40, generator=generator), full_matrices=False)
        s = torch.rand(4, 16, generator=generator) * 0.22 + 0.015
        s = s / s.norm(dim=-1, keepdim=True).clamp(min=1.0)
        found = torch.linalg.svdvals(newton_schulz((u @ torch.diag_embed(s) @ vh).to(dtype), 5, coefficients).double())
        slack = 0.05 if dtype == torch.bfloat16 else 0.001
        assert low - slack < found.min()
        assert found.max() < high + slack

    @pytest.mark.parametrize("coefficients", ["keller", "polar_express"])
    def test_zeros_stay_zeros(self, coefficients: str) -> None:
        assert torch.equal(newton_schulz(torch.zeros(2, 3, 4), 5, coefficients), torch.zeros(2, 3, 4))

    @pytest.mark.parametrize("coefficients", ["keller", "polar_express"])
    @given(
        scale=st.sampled_from([2.0**-40, 2.0**-13, 1.0, 2.0**20]),
        dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    )
    def test_the_size_of_a_gradient_does_not_matter_unless_it_vanishes(
        self, coefficients: str, scale: float, dtype: torch.dtype
    ) -> None:
        x = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(3))
        found = newton_schulz((scale * x).to(dtype), 5, coefficients).float()
        assert found.isfinite().all()
        if scale >= 1.0:
            assert_close([found], [newton_schulz(x.to(dtype), 5, coefficients).float()], 1e-3)

    def test_the_input_is_left_as_it_was(self) -> None:
        x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(4))
        before = x.clone()
        newton_schulz(x)
        assert torch.equal(x, before)

    @pytest.mark.parametrize("coefficients", ["keller", "polar_express"])
    @pytest.mark.parametrize("shape", [(2, 8, 8), (1, 9, 31), (3, 16, 17), (2, 16, 24), (1, 23, 60)])
    @pytest.mark.parametrize("decay", [0.0, 2.0, 6.0, 12.0])  # the last singular value is 10^-decay of the first
    def test_every_way_of_writing_it_is_the_same(
        self, monkeypatch: pytest.MonkeyPatch, coefficients: str, shape: Shape, decay: float
    ) -> None:
        """In fp32, by halves and by the Gram matrix, uneven bands among them, down to the smallest singular values."""
        monkeypatch.setattr(iteration, "ALONE_FROM", 1)
        monkeypatch.setattr(iteration, "BAND", 4)  # so that 16 rows and more are cut
        generator = torch.Generator().manual_seed(5)
        u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator).double(), full_matrices=False)
        x = (u * torch.logspace(0, -decay, shape[1])) @ vh
        plain = newton_schulz(x, 5, coefficients)  # fp64 goes the plain way
        assert_close([newton_schulz(x.float(), 5, coefficients).double()], [plain], 2e-4)

    def test_large_fp32_matrices_go_the_short_ways(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gone: list[str] = []
        for name in ("_by_gram", "_by_halves", "_as_it_stands"):
            original = getattr(iteration, name)
            monkeypatch.setattr(iteration, name, lambda x, t, n=name, f=original: (gone.append(n), f(x, t))[1])
        for size in ((512, 768), (512, 767), (511, 1536), (127, 512)):
            newton_schulz(torch.ones(1, *size), 1)
        newton_schulz(torch.ones(1, 512, 768, dtype=torch.float64), 1)
        newton_schulz(torch.ones(1, 128, 384, dtype=torch.bfloat16), 1)
        assert gone == ["_by_gram", "_by_halves", *["_as_it_stands"] * 4]

    @pytest.mark.parametrize("size", [511, 512, 513, 700, 1024, 1151])
    def test_bands_hold_every_row_once_and_none_is_thin(self, size: int) -> None:
        bands = iteration._bands(size)
        assert [row for start, end in bands for row in range(start, end)] == list(range(size))
        assert min(end - start for start, end in bands) >= 128
        assert (len(bands) > 1) == (size >= 512)

    def test_the_dtype_of_the_iteration(self) -> None:
        single, double = torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.float64)
        auto = torch.bfloat16 if bf16_is_fast("cpu") else torch.float32
        assert [ns_dtype(asked, single) for asked in ("auto", "bfloat16", "float32")] == [
            auto,
            torch.bfloat16,
            torch.float32,
        ]
        assert {ns_dtype(asked, double) for asked in ("auto", "bfloat16", "float32")} == {torch.float64}


def test_the_notes_warn_that_rates_mean_something_else() -> None:
    assert "not AdamW's rate" in Optimizer.parse("muon").notes()[0]
    assert Optimizer.parse({"kind": "muon", "adjust": "match_rms_adamw"}).notes() == ()
    assert Optimizer.parse("muon").lr == 0.02

"""Optimizers against torch's own, against ten clear lines in fp64, and against an SVD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo.optim  # noqa: F401 (registers the kinds)
from zoo.core.part import ConfigError
from zoo.core.precision import bf16_is_fast
from zoo.optim import muon
from zoo.optim.muon import KELLER, POLAR_EXPRESS, newton_schulz, ns_dtype
from zoo.optim.slots import Optimizer

Shape = tuple[int, ...]
SMALL: tuple[Shape, ...] = ((5,), (), (3, 4), (2, 3, 4))
MATRICES: tuple[Shape, ...] = ((8, 12), (12, 8), (8, 8), (3, 8, 12), (2, 12, 8), (6, 20))


def draw(shapes: Sequence[Shape], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (f"p{i}", nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)))
        for i, s in enumerate(shapes)
    ]


def give_gradients(named: Sequence[tuple[str, nn.Parameter]], step: int, without: Sequence[str] = ()) -> None:
    """The gradient of a parameter depends on its name, its shape and the step, and on nothing beside it."""
    for name, p in named:
        seed = step * 1000 + int(name[1:])
        drawn = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        p.grad = None if name in without else (0.1 * drawn).to(p.dtype)


def build(knobs: dict[str, Any], named: Sequence[tuple[str, nn.Parameter]]) -> Optimizer:
    return Optimizer.parse(knobs).build(named)


def run(optimizer: Optimizer, first: int, last: int, without: Sequence[str] = ()) -> list[Tensor]:
    """Updates ``first`` ... ``last``, at a rate that changes; the parameters afterwards."""
    for step in range(first, last + 1):
        give_gradients(optimizer.named, step, without)
        optimizer.step(1.0 / step, step)
    return [p.detach() for _, p in optimizer.named]


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> None:
    """Greatest difference over the greatest value, tensor by tensor."""
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        error = (a - b).abs().max() / b.abs().max()
        assert error <= tolerance, f"tensor {i}: relative error {error:.2e}"


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

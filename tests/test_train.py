"""The loop: what it optimises, what it reports, and what it never lets in."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from recipes import write
from zoo.budget import take, total_steps
from zoo.core.part import ConfigError
from zoo.judge import averaged, result_of, score
from zoo.loop import Loop
from zoo.recipe import Recipe
from zoo.trials.grid import plan
from zoo.trials.run import text_of
from zoo.trials.vocabulary import with_vocabulary


def loop_of(tmp_path: Path, *sets: str) -> Loop:
    grid = plan(write(tmp_path), device="cpu", sets=list(sets))
    text = text_of(grid.recipe, grid.folder)
    recipe = with_vocabulary(grid.recipe, text.tokenizer.vocab_size)
    return Loop(recipe, text, lambda progress: None, io.StringIO())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def test_a_target_is_the_next_token_of_the_text(tmp_path: Path) -> None:
    loop = loop_of(tmp_path)
    inputs, targets, _ = loop.batches.batch(1, 0)
    text = loop.prepared.train
    start = next(i for i in range(0, len(text), 16) if (text[i : i + 16] == inputs[0].numpy()).all())
    assert (text[start + 1 : start + 17] == targets[0].numpy()).all()


def test_unshifted_targets_are_refused_unless_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.targets = 'unshifted'.*as_published"):
        loop_of(tmp_path, "train.targets=unshifted")
    copied = loop_of(tmp_path, "train.targets=unshifted", "as_published=true", "train.steps=60")
    honest = loop_of(tmp_path, "train.steps=60")
    copied.run()
    honest.run()
    assert float(copied.losses[-1]) < float(honest.losses[-1]) - 0.5  # it learns to copy what it is shown


def test_accumulation_is_the_same_step_as_a_larger_batch(tmp_path: Path) -> None:
    whole = loop_of(tmp_path, "train.batch=4", "train.accumulate=1", "machine.dtype=float64")
    split = loop_of(tmp_path, "train.batch=2", "train.accumulate=2", "machine.dtype=float64")
    for loop in (whole, split):
        loop._update()
    assert float(whole.losses[0]) == pytest.approx(float(split.losses[0]), rel=1e-6)
    for one, other in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_an_auxiliary_loss_is_optimised_but_never_reported(tmp_path: Path) -> None:
    moe = 'model.layer.ffn={kind="moe", n_experts=4, hidden_dim=16, balance={kind="aux_loss", weight=%s}}'
    control = 'optim.control={kind="adamw", lr=3e-3}'
    light, heavy = (loop_of(tmp_path, moe % weight, control) for weight in ("1e-9", "1000.0"))
    for loop in (light, heavy):
        loop._update()
    assert float(light.losses[0]) == float(heavy.losses[0])
    routers = [loop.model.layer[0].ffn.router.weight for loop in (light, heavy)]
    assert not torch.equal(routers[0], routers[1])


def test_averaged_weights_are_scored_and_the_live_ones_come_back(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, 'average={kind="ema", decay=0.9}')
    loop.run()
    live = [p.detach().clone() for p in loop.model.parameters()]
    raw = score(loop.model, loop.recipe, loop.prepared, None).bits_per_byte
    with averaged(loop.model, loop.average):
        smooth = score(loop.model, loop.recipe, loop.prepared, None).bits_per_byte
    assert smooth != raw
    assert all(torch.equal(p, q) for p, q in zip(live, loop.model.parameters(), strict=True))


def test_the_rate_of_an_update_follows_the_schedule(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, 'schedule={kind="linear", warmup=2}', "train.steps=6")
    scales = []
    for _ in range(6):
        loop._update()
        scales.append(loop.scale)
    assert scales == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.25, 0.0])


@pytest.mark.parametrize(("budget", "steps"), [("train.tokens=65", 2), ("train.tokens=64", 1), ("train.steps=7", 7)])
def test_a_budget_in_tokens_is_rounded_up_to_whole_steps(tmp_path: Path, budget: str, steps: int) -> None:
    recipe: Recipe = plan(write(tmp_path), device="cpu", sets=[budget]).recipe
    assert total_steps(recipe) == steps


def test_a_budget_in_seconds_stores_its_steps(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, "train.seconds=0.5")
    loop.run()
    result = result_of(loop, "done", "", score(loop.model, loop.recipe, loop.prepared, None))
    assert result.steps == loop.step >= 1
    assert result.seconds >= 0.5


def test_rows_are_cut_short_at_first_and_hold_the_same_tokens(tmp_path: Path) -> None:
    whole = loop_of(tmp_path)
    cut = loop_of(tmp_path, "train.short_context=4", "train.short_share=0.5")
    seen = []
    cut.model.register_forward_pre_hook(lambda model, given: seen.append(given))
    cut.run()
    assert [len(inputs[0]) for inputs, _ in seen] == [4, 4, 4, 16, 16, 16]
    for step, (inputs, targets) in enumerate(seen, start=1):
        full, wanted, _ = whole.batches.batch(step, 0)
        assert torch.equal(inputs.flatten(), full.flatten()) and torch.equal(targets.flatten(), wanted.flatten())


def test_short_rows_know_their_documents(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, "train.short_context=8", "data.document_mask=segments")
    inputs, _, segments = take(loop.recipe, loop.batches, 1, 0, total=6)
    _, _, whole = loop.batches.batch(1, 0)
    assert inputs.shape == segments.shape == (8, 8) and torch.equal(segments.flatten(), whole.flatten())


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["train.short_context=5"], r"train\.short_context = 5.*does not divide model\.context = 16"),
        (["train.short_context=8", "data.packing=documents"], r"train\.short_context = 8.*cuts documents"),
        (["train.short_context=8", "train.short_share=1.0"], r"train\.short_share = 1\.0"),
    ],
)
def test_rows_that_cannot_be_cut_are_refused(tmp_path: Path, sets: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        loop_of(tmp_path, *sets)

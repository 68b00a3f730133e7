"""The compact recipe, published and corrected: its values, its codec's classes, its grids, and its warm-down by the clock."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from recipes import write
from zoo.artifact import weights_of
from zoo.codecs.slots import Weight
from zoo.core.params import Role
from zoo.core.part import ConfigError
from zoo.cost import cost
from zoo.loop import Loop
from zoo.optim.slots import Schedule
from zoo.recipe import Recipe
from zoo.train import train
from zoo.trials.build import meta_model
from zoo.trials.check import forecast
from zoo.trials.grid import plan
from zoo.trials.run import text_of
from zoo.trials.vocabulary import with_vocabulary

RECIPES = Path(__file__).parents[1] / "recipes"
EVALUATED = ["sliding", "ngram_as_published(base=sliding)", "ngram_backoff(base=sliding)"]


def published(variant: str = "as published", *sets: str) -> Recipe:
    return zoo.load(RECIPES / "compact_10L_published.toml", profile="full", sets=list(sets), variant=variant)


def corrected(*sets: str, profile: str = "full") -> Recipe:
    return zoo.load(RECIPES / "compact_10L.toml", profile=profile, sets=list(sets))


def test_the_published_values() -> None:
    recipe = published()
    matrix = recipe.optim[Role.MATRIX]
    assert (matrix.lr, matrix.weight_decay, matrix.ns_steps) == (0.03, 0.04, 5)
    assert (matrix.momentum_warmup_from, matrix.momentum, matrix.momentum_warmup_steps) == (0.92, 0.99, 1500)
    for role, rate in ((Role.EMBEDDING, 0.03), (Role.CONTROL, 0.02)):
        knobs = recipe.optim[role]
        assert (knobs.lr, knobs.weight_decay, knobs.betas, knobs.eps) == (rate, 0.04, (0.9, 0.95), 1e-8)
    assert (recipe.train.seconds, recipe.train.steps, recipe.train.clip) == (600, None, 0.3)
    assert (recipe.schedule.warmdown, recipe.average.decay, recipe.average.every) == (3500, 0.997, 10)
    assert recipe.train.batch * recipe.train.accumulate * recipe.model.context == 786_432
    assert recipe.data.document_mask == "none" and recipe.codec.prune == 0.03
    assert recipe.codec.coding.part.kind == "zstd" and recipe.codec.coding.level == 22
    norms = (
        recipe.model.norm,
        recipe.model.stem[1],
        recipe.model.layer.norm.norm,
        recipe.model.layer.attention.qk_norm,
    )
    assert {norm.eps for norm in norms} == {1.1920929e-7}, "what F.rms_norm takes where nobody names one"
    assert [scorer.label() for scorer in recipe.evaluate.also] == EVALUATED and recipe.evaluate.also[0].stride == 64
    outputs = [[output.part.kind for output in layer.attention.output] for layer in recipe.model.layers()]
    assert outputs == 6 * [[]] + 4 * [["xsa_bug828"]] and cost(recipe.model).parameters == 24_730_705


def test_the_published_classes_of_tensors() -> None:
    """43 small tensors and 2 tables in fp16, 20 in 5 bits, 41 in 6, none in 8; 62 tensors are pruned."""
    recipe = published()
    codec, weights = recipe.codec.build(), weights_of(meta_model(recipe))
    found: dict[str, list[Weight]] = {}
    for weight in weights:
        small = weight.tensor.numel() <= recipe.codec.small
        found.setdefault("small" if small else codec.storage(weight), []).append(weight)
        assert not small or codec.storage(weight) == "float16"
    counts = {name: (len(group), sum(w.tensor.numel() for w in group)) for name, group in found.items()}
    assert counts == {
        "small": (43, 23_633),
        "float16": (2, 655_360),
        "int5": (20, 15_728_640),
        "int6": (41, 8_323_072),
    }
    assert sum(w.tensor.numel() > recipe.codec.prune_above for w in weights) == 62


@pytest.mark.parametrize("variant", ["true xsa", "average in fp32", "gains not decayed", "corrected"])
def test_every_correction_changes_what_it_says(variant: str) -> None:
    recipe, plain = published(variant), published()
    changed = {
        "true xsa": recipe.model != plain.model,
        "average in fp32": recipe.average != plain.average,
        "gains not decayed": recipe.optim != plain.optim,
    }
    assert [name for name, differs in changed.items() if differs] == (
        list(changed) if variant == "corrected" else [variant]
    )
    same = {"model": plain.model, "average": plain.average, "optim": plain.optim, "variant": plain.variant}
    assert recipe.model_copy(update=same) == plain


def test_all_corrections_together_are_the_corrected_recipe() -> None:
    ours, theirs = corrected(), published("corrected", "train.steps=6650")
    assert (ours.model, ours.optim, ours.schedule, ours.train) == (
        theirs.model,
        theirs.optim,
        theirs.schedule,
        theirs.train,
    )
    assert ours.average == theirs.average and not ours.as_published
    assert corrected(profile="ten_minutes").train.seconds == 600 and corrected(profile="steps").train == ours.train


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('model.where=[{layers="-4:", attention={output=["xsa_bug828"]}}]', "breaks prefix_consistent"),
        ("average=ema_bug828", "breaks average_follows_the_weights"),
    ],
)
def test_a_defect_is_refused_without_as_published(change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"{said} .*as_published = true"):
        corrected(change)


def test_the_claimed_gate_is_an_arm() -> None:
    recipe = published("the claimed gate")
    assert cost(recipe.model).parameters == 24_771_745
    kinds = [[output.part.kind for output in layer.attention.output] for layer in recipe.model.layers()]
    assert kinds == 6 * [["gate"]] + 4 * [["xsa_bug828", "gate"]]


def test_each_arm_leaves_one_ingredient_out() -> None:
    grid = plan(RECIPES / "compact_10L.toml", "full", device="cpu")
    arms = {arm.name: arm.recipe for arm in grid.arms}
    assert list(arms) == ["baseline", *LEFT_OUT]
    whole = arms["baseline"]
    for name, (parameters, check) in LEFT_OUT.items():
        assert check(arms[name]) and not check(whole), name
        assert cost(arms[name].model).parameters == 24_730_705 + parameters, name
        sections = [s for s in Recipe.model_fields if s != "variant" and getattr(arms[name], s) != getattr(whole, s)]
        assert len(sections) == 1, (name, sections)


BRANCH = 512 * 512  # a key or value matrix of 8 heads instead of 4 has so many parameters more, halved
LEFT_OUT = {
    "no value residual": (0, lambda r: r.model.layer.attention.value.part.kind == "plain"),
    "no u-net": (-5 * 512, lambda r: r.model.trunk.part.kind == "plain"),
    "no x0 mixing": (-10 * 2 * 512, lambda r: r.model.layer.stem == ()),
    "full rope": (0, lambda r: r.model.layer.attention.position.dims is None),
    "no xsa": (0, lambda r: all(layer.attention.output == () for layer in r.model.layers())),
    "no ln scale": (0, lambda r: r.model.layer.norm.part.kind == "rms_norm"),
    "swiglu": (0, lambda r: r.model.layer.ffn.part.kind == "swiglu"),
    "8 kv heads": (10 * BRANCH, lambda r: r.model.layer.attention.n_kv_heads == 8),
    "no bigram": (-589_825, lambda r: "bigram_hash" not in [s.part.kind for s in r.model.stem]),
    "no smear": (-512, lambda r: "smear_gate" not in [s.part.kind for s in r.model.stem]),
    "no softcap": (0, lambda r: r.model.head.softcap is None),
    "no qk-norm": (0, lambda r: r.model.layer.attention.qk_norm.part.kind == "none"),
    "adamw": (0, lambda r: r.optim[Role.MATRIX].part.kind == "adamw" and r.optim[Role.MATRIX].weight_decay == 0.04),
    "no ema": (0, lambda r: r.average.part.kind == "none"),
    "no pruning": (0, lambda r: r.codec.prune == 0.0),
}


# -- a budget in seconds ----------------------------------------------------------------------------------------------


def loop_by_the_clock(folder: Path, *sets: str) -> Loop:
    recipe = zoo.load(write(folder), sets=["train.steps=none", *sets])
    text = text_of(recipe, folder)
    return Loop(with_vocabulary(recipe, text.tokenizer.vocab_size), text, lambda progress: None, io.StringIO())


@settings(deadline=None)
@given(step=st.integers(0, 20_000), elapsed=st.floats(0.01, 599.0), warmdown=st.integers(1, 10_000))
def test_the_warm_down_by_the_clock_is_the_published_one(clock: Loop, step: int, elapsed: float, warmdown: int) -> None:
    """The multiplier is what remains of the time over the time that the warm-down takes at the pace so far, at most 1."""
    clock.step, clock.seconds = step, elapsed if step else 0.0
    found = Schedule.parse({"kind": "warmdown", "warmdown": warmdown}).build().scale(step + 1, clock.expected_steps())
    lasts = warmdown * clock.seconds / max(step, 1)
    remaining = 600.0 - clock.seconds
    expected = remaining / lasts if remaining <= lasts else 1.0
    assert found == pytest.approx(expected, abs=1.01 / warmdown)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    return loop_by_the_clock(tmp_path_factory.mktemp("clock"), "train.seconds=600")


def test_a_run_by_the_clock_ends_with_it_and_says_that_its_warm_down_was_longer(tmp_path: Path) -> None:
    sets = ["train.steps=none", "train.seconds=0.3", "schedule.kind=warmdown", "schedule.warmdown=1_000_000"]
    recipe = zoo.load(write(tmp_path), sets=sets)
    text = text_of(recipe, tmp_path)
    recipe = with_vocabulary(recipe, text.tokenizer.vocab_size)
    result = train(recipe, text, tmp_path, lambda progress: None)
    assert 0.3 <= result.seconds < 30 and result.steps >= 1
    assert any(
        note.startswith(f"the clock allowed {result.steps:,} updates, and schedule.warmdown = 1000000: is longer")
        for note in result.notes
    )


def test_shares_that_fit_no_run_are_refused_by_the_clock_too(tmp_path: Path) -> None:
    knobs = ["train.steps=none", "train.seconds=5", "schedule.kind=warmdown", "schedule.warmdown=0.6"]
    recipe = zoo.load(write(tmp_path), sets=[*knobs, "schedule.warmup=0.6", "model.vocab_size=300"])
    with pytest.raises(ConfigError, match=r"schedule\.warmdown = 0\.6: is longer than what remains"):
        forecast(recipe)
    forecast(zoo.load(write(tmp_path), sets=[*knobs, "schedule.warmup=0.4", "model.vocab_size=300"]))


def test_a_coding_whose_library_is_missing_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    recipe = zoo.load(write(tmp_path), sets=["codec=int8", "codec.coding=zstd", "model.vocab_size=300"])
    with pytest.raises(ConfigError, match=r"codec\.coding\.kind = 'zstd': needs the package zstandard: pip install"):
        forecast(recipe)
    forecast(zoo.load(write(tmp_path), sets=["codec=int8", "model.vocab_size=300"]))

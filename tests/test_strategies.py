"""The strategies that users' own tests build on: what they draw is valid, various, and trains."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recipes import TEXT
from zoo.data.prepare import prepare
from zoo.loop import Loop
from zoo.recipe import DataConfig, Recipe, dumps
from zoo.resolve import all_parts, check_published, loads
from zoo.testing import strategies
from zoo.testing.hosts import all_kinds, label
from zoo.testing.recipes import random_recipe
from zoo.testing.values import kinds_in
from zoo.trials.vocabulary import with_vocabulary

FEW = settings(max_examples=5, suppress_health_check=list(HealthCheck))


def drawn(seed: int) -> Recipe:
    rng = random.Random(seed)
    return next(r for _ in range(99) if (r := random_recipe(rng)) is not None)


@given(data=st.data())
@FEW
def test_a_recipe_resolves_and_says_itself(data: st.DataObject) -> None:
    recipe = data.draw(strategies.recipes())
    assert loads(dumps(recipe)) == recipe
    check_published(recipe)
    assert recipe.as_published == any(part.breaks for _, part in all_parts(recipe))
    assert recipe.model.vocab_size is None


@given(data=st.data())
@FEW
def test_a_recipe_has_the_kinds_that_were_asked_for(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([k for k in all_kinds() if k.slot in ("attention", "ffn", "stem", "output")]))
    assert label(kind) in kinds_in(data.draw(strategies.recipes(kind)).model)


def test_recipes_are_various() -> None:
    recipes = [drawn(seed) for seed in range(40)]
    assert {r.schedule.part.kind for r in recipes} >= {"cosine", "warmdown"}
    assert {optimizer.part.kind for r in recipes for optimizer in r.optim.values()} == {"adamw", "muon"}
    assert len({dumps(r) for r in recipes}) == 40


@pytest.mark.parametrize("seed", range(3))
def test_a_recipe_trains(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    source = {"kind": "text", "files": [str(tmp_path / "text.txt")]}
    data = DataConfig.model_validate({"source": source, "document_mask": drawn(seed).data.document_mask})
    prepared = prepare(data, tmp_path)
    recipe = with_vocabulary(drawn(seed).model_copy(update={"data": data}), prepared.tokenizer.vocab_size)
    loop = Loop(recipe, prepared, lambda progress: None, io.StringIO())
    before = [p.detach().clone() for p in loop.model.parameters()]
    loop._update()
    assert any(not torch.equal(p, old) for p, old in zip(loop.model.parameters(), before, strict=True))
    assert bool(loop.losses[-1].isfinite())

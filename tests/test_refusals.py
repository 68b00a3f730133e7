"""What is refused before it trains: by its text, its targets, its scorer; and what a grid does with a refused trial."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import planted
from leaks_unread import LEAKS
from test_cli import call
from torch import Tensor

import zoo.budget
from recipes import TEXT, write
from zoo import guards, plugins
from zoo.data.batches import Batches
from zoo.data.prepare import Prepared
from zoo.data.yardstick import LEAST
from zoo.guards import Refused, flags, scores, text
from zoo.recipe import Recipe
from zoo.result import Result
from zoo.scoring.plain import Plain
from zoo.scoring.slots import Score, Scorer
from zoo.trials.grid import plan
from zoo.trials.run import text_of
from zoo.trials.vocabulary import with_vocabulary

plugins.discover()


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(guards, "_known", {})
    monkeypatch.setattr(plugins, "_loaded", {})  # what is planted is forgotten, and must be read again
    monkeypatch.chdir(tmp_path)


def ready(folder: Path, *sets: str, more: str = "") -> tuple[Recipe, Prepared]:
    grid = plan(write(folder, more), device="cpu", sets=list(sets))
    prepared = text_of(grid.recipe, grid.folder)
    return with_vocabulary(grid.recipe, prepared.tokenizer.vocab_size), prepared


# -- targets and text -------------------------------------------------------------------------------------------------


def test_unshifted_targets_are_refused_though_the_recipe_asks_for_them(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="targets are not shifted: each token is to be predicted from itself"):
        guards.inspect(*ready(tmp_path, "train.targets=unshifted", "as_published=true"), "code")


def test_of_the_audit_recipe_the_second_arm_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    text_here = [f'data.source={{kind="text", files=["{tmp_path / "text.txt"}"]}}', "data.tokenizer=byte"]
    grid = plan(Path(__file__).parents[1] / "recipes" / "audit_unshifted.toml", device="cpu", sets=text_here)
    prepared = text_of(grid.recipe, grid.folder)
    honest, unshifted = (with_vocabulary(arm.recipe, prepared.tokenizer.vocab_size) for arm in grid.arms)
    text.next_tokens(honest, prepared)
    with pytest.raises(guards.Leak, match="targets are not shifted"):
        text.next_tokens(unshifted, prepared)


def wrong_batches(rng: random.Random) -> dict[str, type[Batches]]:
    class Skips(Batches):
        """Predicts the token after the next one."""

        def batch(self, step: int, micro: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
            inputs, targets, documents = super().batch(step, micro)
            return inputs, torch.cat([targets[:, 1:], inputs[:, :1]], 1), documents

    class Lent(Batches):
        """Targets of the row beside."""

        def batch(self, step: int, micro: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
            inputs, targets, documents = super().batch(step, micro)
            return inputs, targets.roll(1, 0), documents

    class Merged(Batches):
        """One document, whatever was asked."""

        def batch(self, step: int, micro: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
            inputs, targets, _ = super().batch(step, micro)
            return inputs, targets, torch.zeros_like(inputs)

    return {"skips": Skips, "lent": Lent, "merged": Merged, "unread": LEAKS["one_column_unshifted"](rng, 16)}


@pytest.mark.parametrize("name", ["skips", "lent", "merged", "unread"])
def test_batches_that_are_not_the_text_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    recipe, prepared = ready(tmp_path, "data.document_mask=segments")
    words = np.random.RandomState(0).randint(0, 256, len(prepared.train)).astype(prepared.train.dtype)
    words[::7] = prepared.tokenizer.bos
    prepared = Prepared(**{**vars(prepared), "train": words})
    text.next_tokens(recipe, prepared)
    monkeypatch.setattr(zoo.budget, "Batches", wrong_batches(random.Random(name))[name])
    with pytest.raises(guards.Leak, match=r"target of token|documents do not change"):
        text.next_tokens(recipe, prepared)


@pytest.mark.parametrize("seed", range(3))
def test_validation_text_inside_training_text_is_refused(tmp_path: Path, seed: int) -> None:
    with planted():
        LEAKS["validation_within_training"](random.Random(seed), 24)
        recipe, prepared = ready(tmp_path, 'data.source={kind="unread"}', "data.duplicates=kept")
        prepared = Prepared(**{**vars(prepared), "shared_bytes": 0})  # as if nobody had compared the documents
        with pytest.raises(Refused, match="stretches of the validation text stand in the training text"):
            guards.inspect(recipe, prepared, "code")


def test_validation_documents_that_are_training_documents_are_refused(tmp_path: Path) -> None:
    for folder, files in (("train", 20), ("valid", 3)):
        (tmp_path / folder).mkdir()
        for i in range(files):
            rng = random.Random(f"{folder}/{i}" if i else "in both")
            (tmp_path / folder / f"{i}.txt").write_text(" ".join(str(rng.random()) for _ in range(200)))
    source = 'data.source={kind="text", files=["train/*"], valid_files=["valid/*"]}'
    with pytest.raises(Refused, match=r"33\.\d% of the validation text are copies of training documents"):
        guards.inspect(*ready(tmp_path, source, "data.duplicates=kept"), "code")
    guards.inspect(*ready(tmp_path, source), "code")  # which removes them


def test_repeated_stretches_are_those_of_a_naive_search() -> None:
    rng = np.random.RandomState(0)
    train, valid = rng.randint(1, 4, 3000), rng.randint(1, 4, 300)
    valid[40:80] = train[1000:1040]
    valid[200:230] = train[7:37]
    asked = [tuple(valid[s : s + 8]) for s in range(len(valid) - 7)]
    known = {tuple(train[s : s + 8]) for s in range(len(train) - 7)}
    naive = sum(stretch in known for stretch in asked) / len(asked)
    assert text.repeated(train, valid, 0, 8) == pytest.approx(naive)
    assert text.repeated(train[:5], valid, 0, 8) == 0.0


# -- scorers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [name for name, part in Scorer.kinds.items() if part.code_length])
def test_scorers_that_say_code_lengths_give_them(kind: str) -> None:
    scores.code_length(Scorer.parse(kind), 128)


def wrong_scorers() -> Iterator[type[Scorer]]:
    class Unshifted(Plain, kind="wrong_unshifted"):
        """Scores each token on itself."""

        def score(self, model: Any, tokens: Any, spans: Any, context: int, batch: int, bos: Any = None) -> Score:
            ids = torch.from_numpy(tokens[1:].astype(np.int64))[None, : context + 1]
            with torch.no_grad():
                nats = float(model(ids, ids).nll.sum()) * (len(tokens) - 1) / ids.shape[1]
            return Score(nats, len(tokens) - 1, int(spans[1:].sum()))

    class Generous(Plain, kind="wrong_generous"):
        """Adds the probability that it would have had with hindsight."""

        def score(self, model: Any, tokens: Any, spans: Any, context: int, batch: int, bos: Any = None) -> Score:
            honest = super().score(model, tokens, spans, context, batch, bos)
            return honest._replace(nats=honest.nats * 0.7)

    class Forgetful(Plain, kind="wrong_forgetful"):
        """Leaves the last tokens out."""

        def score(self, model: Any, tokens: Any, spans: Any, context: int, batch: int, bos: Any = None) -> Score:
            return super().score(model, tokens[:-5], spans[:-5], context, batch, bos)

    yield from (Unshifted, Generous, Forgetful)


@pytest.mark.parametrize("index", range(3))
def test_scorers_whose_numbers_are_no_code_lengths_are_found(index: int) -> None:
    with planted(), pytest.raises(guards.Leak, match=r"no code lengths|the scorer counts"):
        scores.code_length(list(wrong_scorers())[index].Config(), 32)


# -- in a grid --------------------------------------------------------------------------------------------------------

AHEAD = """
from zoo.core.params import Linear
from zoo.core.slots import Stem

class Ahead(Stem, kind="ahead"):
    \"\"\"Looks one token ahead. Source: none.\"\"\"
    def __init__(self, cfg, site):
        super().__init__()
        self.matrix = Linear(site.dim, site.dim)
    def forward(self, x, bus):
        return x + self.matrix(x.roll(-1, 1))
"""
GRID = "plugins = ['./ahead.py']\n[grid]\n'model.layer.stem' = [[], ['ahead']]\n"


def rows(folder: Path) -> dict[str, dict[str, str]]:
    return {row["variant"]: row for row in csv.DictReader((folder / "table.csv").open())}


def results(folder: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in folder.glob("*/result.json")]
    return {one["variant"]: one for one in found}


def test_a_leaking_arm_is_refused_by_name_and_the_grid_goes_on(tmp_path: Path) -> None:
    (tmp_path / "ahead.py").write_text(AHEAD)
    with planted():
        recipe = write(tmp_path, GRID)
        ended, table = call(recipe), rows(tmp_path / "results" / "small")
        assert ended.exit_code == 1
        assert "stem=ahead seed 0: refused: the model sees the future" in " ".join(ended.output.split())
        assert table["stem=ahead"]["status"].startswith("refused: the model sees the future")
        assert table["stem=none"]["status"] == "done"
        kept = results(tmp_path / "results" / "small")
        assert {name: one["guards"] for name, one in kept.items()} == {"stem=none": "passed", "stem=ahead": ""}
        again = call(recipe)  # a refused trial is not finished
        assert again.exit_code == 1 and again.output.count("(stored)") == 1 and "refused" in again.output


def test_without_guards_it_trains_and_is_marked_for_good(tmp_path: Path) -> None:
    (tmp_path / "ahead.py").write_text(AHEAD)
    with planted():
        recipe = write(tmp_path, GRID)
        assert call(recipe, "--only", "stem=ahead", "--no-guards").exit_code == 0
        assert results(tmp_path / "results" / "small")["stem=ahead"]["guards"] == "off"
        assert call(recipe).exit_code == 0
        table = rows(tmp_path / "results" / "small")
        assert "trained without guards (--no-guards)" in table["stem=ahead"]["notes"]
        assert "guards" not in table["stem=none"]["notes"]


def test_what_cannot_be_probed_is_refused_and_what_cannot_train_fails(tmp_path: Path) -> None:
    shy = AHEAD.replace('"ahead"', '"shy"').replace(
        "return x", "if x.dtype.itemsize > 4:\n            raise RuntimeError('shy')\n        return x"
    )
    broken = AHEAD.replace('"ahead"', '"broken"').replace(
        "return x", "if not x.is_meta:\n            raise RuntimeError('broken')\n        return x"
    )
    (tmp_path / "ahead.py").write_text(shy + broken)
    grid = GRID.replace("['ahead']", "['shy'], ['broken']")
    with planted():
        assert call(write(tmp_path, grid)).exit_code == 1
    table = rows(tmp_path / "results" / "small")
    assert table["stem=shy"]["status"] == "refused: it cannot be probed: RuntimeError: shy"
    assert table["stem=broken"]["status"] == "failed: RuntimeError: broken"


# -- the cache --------------------------------------------------------------------------------------------------------


def test_a_structure_is_probed_once_by_all_processes_and_again_when_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[str] = []
    monkeypatch.setattr(guards, "probe", lambda recipe, declared: probed.append(recipe.variant))
    recipe, prepared = ready(tmp_path)
    other = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": 7, "steps": 99})})
    for code in ("one", "one", "two"):
        guards.inspect(recipe, prepared, code)
        guards.inspect(other, prepared, code)
    assert len(probed) == 2
    monkeypatch.setattr(guards, "_known", {})  # another process
    guards.inspect(recipe, prepared, "one")
    assert len(probed) == 2
    deeper = recipe.model_copy(update={"model": recipe.model.model_copy(update={"n_layers": 3})})
    guards.inspect(deeper, prepared, "one")
    assert len(probed) == 3


def test_a_refusal_is_not_kept_for_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaks(recipe: Recipe, declared: set[str]) -> None:
        raise guards.Leak("causal", "seen")

    recipe, prepared = ready(tmp_path)
    monkeypatch.setattr(guards, "probe", leaks)
    with pytest.raises(Refused, match="seen"):
        guards.inspect(recipe, prepared, "code")
    monkeypatch.setattr(guards, "_known", {})
    monkeypatch.setattr(guards, "probe", lambda recipe, declared: None)
    guards.inspect(recipe, prepared, "code")


def test_a_cache_that_takes_nothing_is_no_reason_to_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, prepared = ready(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file" / "cache"))
    probed: list[str] = []
    monkeypatch.setattr(guards, "probe", lambda recipe, declared: probed.append(recipe.variant))
    guards.inspect(recipe, prepared, "code")
    assert len(probed) == 1

    def leaks(recipe: Recipe, declared: set[str]) -> None:
        raise guards.Leak("causal", "seen")

    monkeypatch.setattr(guards, "_known", {})
    monkeypatch.setattr(guards, "probe", leaks)
    with pytest.raises(Refused, match="seen"):
        guards.inspect(recipe, prepared, "code")
    with pytest.raises(Refused, match="stand in the training text"):
        guards.inspect(recipe, Prepared(**{**vars(prepared), "valid": prepared.train[: len(prepared.valid)]}), "code")


# -- too good to be true ----------------------------------------------------------------------------------------------


def result(**more: Any) -> Result:
    return Result(status="done", name="r", variant="v", seed=0, **more)


def test_results_far_below_a_compressor_are_flagged(tmp_path: Path) -> None:
    _, prepared = ready(tmp_path)
    assert "xz_bpb" not in prepared.facts  # too short a text to be a yardstick
    assert guards.judged(result(bits_per_byte=0.01), prepared, True).flags == ()
    prepared.facts["xz_bpb"] = "2.0"
    assert guards.judged(result(bits_per_byte=0.71), prepared, True).flags == ()
    (flag,) = guards.judged(result(bits_per_byte=0.69), prepared, True).flags
    assert flag == "too good to be true? 0.6900 bits per byte are 0.34 of what xz reaches"


def test_a_loss_below_the_unigram_entropy_at_once_is_flagged(tmp_path: Path) -> None:
    _, prepared = ready(tmp_path)
    entropy = flags.unigram_entropy(prepared.valid)
    assert guards.judged(result(early_loss=entropy * 0.95), prepared, True).flags == ()
    assert "within ten steps" in guards.judged(result(early_loss=entropy * 0.85), prepared, True).flags[0]


def test_the_yardstick_is_taken_on_a_megabyte_of_the_text(tmp_path: Path) -> None:
    import lzma

    rng = random.Random(0)
    long = "".join(f"{rng.random():.6f} {line}\n" for line in TEXT.splitlines() * 30)
    (tmp_path / "long.txt").write_text(long)
    source = 'data.source={kind="text", files=["long.txt"]}'
    _, prepared = ready(tmp_path, source)
    raw = long.encode()
    cut = int(len(long) * 0.9)
    document = raw[cut:] + raw[:cut]  # the validation text first, then the training text, which is one document
    want = 8 * len(lzma.compress(document[:2_000_000], preset=9 | lzma.PRESET_EXTREME)) / len(document[:2_000_000])
    assert len(raw) > LEAST
    assert float(prepared.facts["xz_bpb"]) == pytest.approx(want, rel=1e-3)


def test_flags_stand_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "EARLY", 100.0)
    ended = call(write(tmp_path))
    assert ended.exit_code == 0 and "too good to be true?" in ended.output
    assert "too good to be true?" in rows(tmp_path / "results" / "small")["baseline"]["notes"]

"""The executor: nothing trained twice, one trial's fault is its own."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from stored import GRID, Silent, fake_result, go, make
from stored import no_training as no_training
from stored import own_cache as own_cache

from recipes import write
from zoo.core.part import ConfigError
from zoo.recipe import Recipe
from zoo.result import Result
from zoo.trials import run as executor
from zoo.trials.grid import plan
from zoo.trials.run import make_ready
from zoo.trials.store import Store


def test_a_grid_trains_every_arm_with_every_seed_and_only_once(tmp_path: Path, no_training: None) -> None:
    ready, store = make(tmp_path, GRID)
    outcomes, view = go(tmp_path, ready, store)
    assert view.begun == ["1/4 swiglu 0", "2/4 relu2 0", "3/4 swiglu 1", "4/4 relu2 1"]
    assert [o.result.status for o in outcomes] == ["done"] * 4 and all(o.fresh and not o.stale for o in outcomes)
    again, view = go(tmp_path, ready, store)
    assert view.begun == [] and [o.result for o in again] == [o.result for o in outcomes]
    assert not any(o.fresh for o in again)


def test_a_trials_folder_can_be_read_without_the_zoo_and_run_again(tmp_path: Path) -> None:
    ready, store = make(tmp_path)
    (outcome,), view = go(tmp_path, ready, store)
    assert outcome.result.status == "done" and view.steps == 4
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name == f"baseline-seed0-{outcome.trial.address}"
    assert {"recipe.toml", "log.jsonl", "result.json"} <= {p.name for p in folder.iterdir()}
    stored = json.loads((folder / "result.json").read_text())
    assert stored["bits_per_byte"] == outcome.result.bits_per_byte and stored["address"] == outcome.trial.address
    assert [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()] == [1, 2, 4, 6]
    assert tomllib.loads((folder / "recipe.toml").read_text())["base"] == "../.."
    again = plan(folder / "recipe.toml", device="cpu")
    ready = make_ready(again, again.arms, Silent())
    assert ready.trials[0].address == outcome.trial.address
    assert store.find(ready.trials[0].address) == outcome.result


def test_the_same_trial_twice_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    ready, store = make(tmp_path)
    (one,), _ = go(tmp_path, ready, store)
    (other,), _ = go(tmp_path, ready, Store(tmp_path / "other"))
    assert other.fresh and one.result.valid_loss == other.result.valid_loss
    assert (one.result.train_loss, one.result.initial_loss) == (other.result.train_loss, other.result.initial_loss)


def test_an_arm_that_is_added_is_all_that_is_trained(tmp_path: Path, no_training: None) -> None:
    go(tmp_path, *make(tmp_path, GRID))
    ready, store = make(tmp_path, GRID.replace("'relu2'", "'relu2', 'silu'").replace("seeds = 2", "seeds = 3"))
    _, view = go(tmp_path, ready, store)
    assert view.begun == ["3/9 silu 0", "6/9 silu 1", "7/9 swiglu 2", "8/9 relu2 2", "9/9 silu 2"]


def test_a_renamed_arm_is_found_under_its_new_name(tmp_path: Path, no_training: None) -> None:
    variant = "[[grid.variant]]\nname = '{}'\nset.model.n_layers = 1\n"
    go(tmp_path, *make(tmp_path, variant.format("old")))
    ready, store = make(tmp_path, variant.format("new name"))
    (outcome,), view = go(tmp_path, ready, store)
    assert view.begun == [] and outcome.result.variant == "new name"


def fail(arms: dict[str, Callable[[Recipe], Result]]) -> Callable[..., Result]:
    """A stand-in for training that does what the table says for some arms."""

    def train(recipe: Recipe, *_: object) -> Result:
        return arms.get(recipe.variant, fake_result)(recipe)

    return train


def raising(fault: BaseException) -> Callable[[Recipe], Result]:
    def act(recipe: Recipe) -> Result:
        raise fault

    return act


def test_one_trials_fault_is_recorded_and_the_grid_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acts = {
        "swiglu": raising(RuntimeError("out of memory\nand more")),
        "relu2": lambda recipe: fake_result(recipe, "diverged", reason="diverged at step 3: last good step 2"),
        "silu": raising(ConfigError("a leak", "model.layer")),
    }
    monkeypatch.setattr(executor, "train", fail(acts))
    ready, store = make(tmp_path, "[grid]\n'model.layer.ffn' = ['swiglu', 'relu2', 'silu', 'gelu']\n")
    outcomes, _ = go(tmp_path, ready, store)
    said = [(o.result.status, o.result.reason) for o in outcomes]
    assert said == [
        ("failed", "RuntimeError: out of memory"),
        ("diverged", "diverged at step 3: last good step 2"),
        ("failed", "model.layer: a leak"),
        ("done", ""),
    ]
    assert outcomes[0].result.parameters == ready.trials[0].forecast.cost.parameters
    assert (
        "out of memory" in (store.folder(ready.trials[0].recipe, ready.trials[0].address) / "traceback.txt").read_text()
    )
    _, view = go(tmp_path, ready, store)
    assert view.begun == ["1/4 swiglu 0", "3/4 silu 0"]  # what failed is tried again, what diverged is a result


def test_a_loss_that_is_no_number_is_recorded_with_its_last_good_step(tmp_path: Path) -> None:
    more = "[grid]\n'optim.matrix.lr' = [3e-3, 1e30]\n"
    outcomes, _ = go(tmp_path, *make(tmp_path, more))
    assert [o.result.status for o in outcomes] == ["done", "diverged"]
    assert "last good step" in outcomes[1].result.reason and outcomes[1].result.bits_per_byte is None


def test_an_interrupted_trial_leaves_nothing_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "train", fail({"relu2": raising(KeyboardInterrupt())}))
    ready, store = make(tmp_path, GRID)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, ready, store)
    assert [p.name.split("-seed")[0] for p in (tmp_path / "out").iterdir()] == ["swiglu"]


def test_changed_source_marks_a_result_stale_and_refresh_trains_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, store = make(tmp_path)
    go(tmp_path, ready, store)
    monkeypatch.setattr(executor, "code_hash", lambda recipe: "changed")
    (outcome,), view = go(tmp_path, ready, store)
    assert outcome.stale and not outcome.fresh and view.begun == []
    (outcome,), view = go(tmp_path, ready, store, refresh=True)
    assert outcome.fresh and not outcome.stale and outcome.result.facts["code"] == "changed"


def test_a_vocabulary_is_the_tokenizers_and_never_smaller(tmp_path: Path) -> None:
    ready, _ = make(tmp_path)
    assert ready.trials[0].recipe.model.vocab_size == 257
    grid = plan(write(tmp_path, "[grid]\n'model.vocab_size' = [300, 100]\n"), device="cpu")
    with pytest.raises(
        ConfigError, match=r"arm 'vocab_size=100': model\.vocab_size = 100: is smaller than the tokenizer's .* 257"
    ):
        make_ready(grid, grid.arms, Silent())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.unlink(), r"small\.toml: data\.source\.files\[0\] = 'text\.txt': no such file"),
        (lambda text: text.write_bytes(b""), r"small\.toml: data\.source\.files = .*text\.txt': is empty"),
        (
            lambda text: text.write_bytes(b"caf\xe9"),
            r"small\.toml: data\.source\.files = .*text\.txt': is not UTF-8: byte 0xe9",
        ),
    ],
)
def test_text_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    grid = plan(write(tmp_path), device="cpu")
    change(tmp_path / "text.txt")
    with pytest.raises(ConfigError, match=message):
        make_ready(grid, grid.arms, Silent())
    assert not (tmp_path / "out").exists()

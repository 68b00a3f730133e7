"""The store and the executor: whole results or none, nothing trained twice, one trial's fault is not its neighbours'."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from recipes import write
from zoo.core.part import ConfigError
from zoo.recipe import Recipe, dumps
from zoo.resolve import loads
from zoo.result import Progress, Result
from zoo.trials import run as executor
from zoo.trials.address import address
from zoo.trials.grid import plan
from zoo.trials.run import Outcome, Ready, make_ready, run
from zoo.trials.store import Store, slug, write_whole


class Silent:
    """A view that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.begun: list[str] = []
        self.ended: list[Outcome] = []
        self.steps = 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def preparing(self, what: str, share: float, words: str = "") -> None:
        assert 0 <= share <= 1

    def begin(self, trial: executor.Trial, number: int, total: int) -> None:
        self.begun.append(f"{number}/{total} {trial.recipe.variant} {trial.recipe.train.seed}")

    def step(self, trial: executor.Trial, progress: Progress) -> None:
        self.steps += progress.scoring is None

    def end(self, outcome: Outcome) -> None:
        self.ended.append(outcome)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def fake_result(recipe: Recipe, status: str = "done", **more: object) -> Result:
    named = {"name": recipe.name, "variant": recipe.variant, "seed": recipe.train.seed}
    return Result.model_validate({"status": status, **named, "bits_per_byte": 2.0, **more})


def make(folder: Path, more: str = "") -> tuple[Ready, Store]:
    grid = plan(write(folder, more), device="cpu")
    return make_ready(grid, grid.arms, Silent()), Store(folder / "out")


def go(folder: Path, ready: Ready, store: Store, refresh: bool = False) -> tuple[list[Outcome], Silent]:
    view = Silent()
    return list(run(ready, store, folder, view, refresh)), view


GRID = "[grid]\n'model.layer.ffn' = ['swiglu', 'relu2']\nseeds = 2\n"


def train_nothing(recipe: Recipe, *_: object) -> Result:
    """A stand-in for training."""
    return fake_result(recipe)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "train", train_nothing)


# -- the executor -----------------------------------------------------------------------------------------------------


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


# -- the store --------------------------------------------------------------------------------------------------------

ADDRESS = "0123456789abcdef"


def test_a_draft_that_is_not_committed_vanishes(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), loads("")
    with pytest.raises(RuntimeError), store.opened(recipe, ADDRESS, tmp_path) as draft:
        (draft.folder / "log.jsonl").write_text("{}")
        assert store.find(ADDRESS) is None
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_commit_replaces_an_older_result(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), loads("")
    for status in ("failed", "done"):
        with store.opened(recipe, ADDRESS, tmp_path) as draft:
            (draft.folder / status).write_text("")
            draft.commit(fake_result(recipe, status))
    (folder,) = tmp_path.iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["done", "recipe.toml", "result.json"]
    assert store.find(ADDRESS).status == "done"


def test_a_damaged_result_counts_as_none(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), loads("")
    with store.opened(recipe, ADDRESS, tmp_path) as draft:
        draft.commit(fake_result(recipe))
    (store.folder(recipe, ADDRESS) / "result.json").write_text('{"status": "done"')
    assert store.find(ADDRESS) is None


def hidden(root: Path, name: str, checkpoint: bool = False) -> Path:
    folder = root / f".{name}-seed0-{ADDRESS}.draft"
    (folder / "resume").mkdir(parents=True)
    (folder / "resume" / ("step_00000003.safetensors" if checkpoint else "step_00000003.safetensors.partial")).touch()
    return folder


def test_what_nobody_can_go_on_with_is_swept_and_what_a_living_process_has_is_not(tmp_path: Path) -> None:
    held, kept, swept = hidden(tmp_path, "held"), hidden(tmp_path, "kept", checkpoint=True), hidden(tmp_path, "swept")
    code = "import sys, time; from pathlib import Path; from zoo.trials.lock import Lock; lock = Lock.of(Path(sys.argv[1]));"
    code += "print(lock is not None, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(held)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        Store(tmp_path).sweep()
        assert {p.name for p in tmp_path.iterdir()} == {held.name, kept.name} and not swept.exists()
        holder.kill()
    Store(tmp_path).sweep()  # a lock ends with its process, however that ends
    assert {p.name for p in tmp_path.iterdir()} == {kept.name}


def test_a_half_done_trial_is_taken_up_under_any_name_but_not_with_other_source(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), loads("")
    renamed = recipe.model_copy(update={"variant": "renamed"})
    for opened, code, goes_on in ((recipe, "a", False), (renamed, "a", True), (renamed, "b", False)):
        with store.opened(opened, ADDRESS, tmp_path, code) as draft:
            assert (draft.folder / "resume").exists() == goes_on
            (draft.folder / "resume").mkdir(exist_ok=True)
            (draft.folder / "resume" / "step_00000003.safetensors").touch()
        assert [p.name for p in tmp_path.iterdir()] == [f".{store.folder(opened, ADDRESS).name}.{code}"]


def test_two_that_open_one_trial_at_once_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.trials.store.PATIENCE", 0.2)
    store, recipe = Store(tmp_path), loads("")
    with store.opened(recipe, ADDRESS, tmp_path) as one, store.opened(recipe, ADDRESS, tmp_path) as other:
        assert one.folder != other.folder
        for draft in (one, other):
            draft.commit(fake_result(recipe))
    assert [p.name for p in tmp_path.iterdir()] == [store.folder(recipe, ADDRESS).name]


def test_a_failed_trial_keeps_its_checkpoints_and_a_finished_one_does_not(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path), loads("")
    for status, found in (("failed", False), ("failed", True), ("done", True), ("done", False)):
        with store.opened(recipe, ADDRESS, tmp_path) as draft:
            assert (draft.folder / "resume").exists() == found and not (draft.folder / "result.json").exists()
            (draft.folder / "resume").mkdir(exist_ok=True)
            (draft.folder / "resume" / "step_00000003.safetensors").touch()
            draft.commit(fake_result(recipe, status))
        assert [p.name for p in tmp_path.iterdir()] == [store.folder(recipe, ADDRESS).name]
        assert (store.folder(recipe, ADDRESS) / "resume").exists() == (status == "failed")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with (
        pytest.raises(ConfigError, match="out: cannot be written"),
        Store(tmp_path / "out").opened(loads(""), ADDRESS, tmp_path),
    ):
        pass


def dies_before_change(root: Path, n: int) -> bool:
    """Commit a result in a forked process that kills itself before its n-th change on the disk; whether it survived."""
    child = os.fork()
    if child == 0:
        left = [n]

        def watched(event: str, args: tuple[object, ...]) -> None:
            if event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1  # whatever happens in here, no second run of the tests may come out of it
        try:
            sys.addaudithook(watched)
            with Store(root).opened(loads(""), ADDRESS, Path(".")) as draft:
                (draft.folder / "log.jsonl").write_text("{}")
                draft.commit(fake_result(loads(""), reason=str(n)))
            status = 0
        finally:
            os._exit(status)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, -signal.SIGKILL)
    return ended == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork")
@pytest.mark.parametrize("earlier", [False, True])
def test_a_kill_at_any_moment_leaves_the_whole_result_or_none(tmp_path: Path, earlier: bool) -> None:
    store, survived, n = Store(tmp_path / "out"), False, 0
    while not survived:
        shutil.rmtree(store.root, ignore_errors=True)
        if earlier:
            assert dies_before_change(store.root, 1000)
        survived = dies_before_change(store.root, n)
        folders = list(store.root.glob("[!.]*"))  # hidden ones are nobody's result
        for folder in folders:
            assert {path.name for path in folder.iterdir()} == {"recipe.toml", "log.jsonl", "result.json"}
        found = store.find(ADDRESS)
        assert (found is not None) == bool(folders)
        assert not survived or found.reason == str(n)
        n += 1
    assert n > 8  # that many changes there were at which it died
    store.sweep()
    assert [path.name for path in store.root.iterdir()] == [store.folder(loads(""), ADDRESS).name]


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.md"
    write_whole(path, "one")
    write_whole(path, "two")
    assert path.read_text() == "two" and [p.name for p in path.parent.iterdir()] == ["table.md"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mla", "mla"),
        ("gqa moe, sane rate", "gqa-moe-sane-rate"),
        ("../../etc", "etc"),
        ("  ", "arm"),
        ("größe", "größe"),
    ],
)
def test_names_become_folders_that_stay_inside(name: str, folder: str) -> None:
    assert slug(name) == folder


def test_a_stored_recipe_says_everything(tmp_path: Path) -> None:
    recipe = loads("name = 'x'\n[model]\ndim = 8\n")
    with Store(tmp_path).opened(recipe, ADDRESS, tmp_path) as draft:
        text = (draft.folder / "recipe.toml").read_text()
    assert text == dumps(recipe.model_copy(update={"base": ".."}))
    assert SimpleNamespace(**tomllib.loads(text)["model"]).dim == 8


def test_when_checkpoints_are_written_is_no_part_of_the_address(tmp_path: Path) -> None:
    text = "[train]\nsteps = 3\n{}"
    one, other, longer = (
        address(loads(text.format(more)), "data", tmp_path)
        for more in ("", "checkpoint_every = 1\ncheckpoint_minutes = 'none'\n", "batch = 9\n")
    )
    assert one == other != longer

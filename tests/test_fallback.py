"""What a run does without: rows where memory runs out, the compiler where that fails; and that the result says so."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recipes import write
from zoo import machine
from zoo.judge import result_of
from zoo.loop import Loop
from zoo.model import Model
from zoo.result import Signals
from zoo.train import train
from zoo.trials.grid import plan
from zoo.trials.run import text_of, with_vocabulary


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def loop_of(tmp_path: Path, *sets: str, said: list[str] | None = None) -> Loop:
    grid = plan(write(tmp_path), device="cpu", sets=["machine.dtype=float64", "train.clip=none", *sets])
    text = text_of(grid.recipe, grid.folder)
    recipe = with_vocabulary(grid.recipe, text.tokenizer.vocab_size)
    say = (lambda line: None) if said is None else said.append
    return Loop(recipe, text, lambda progress: None, io.StringIO(), Signals(say=say))


def no_room(rows: int) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
    """A hook under which a model has room for so many rows only; the refusal is torch's own."""

    def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[0] > rows:
            torch.empty(2**50)

    return hook


@pytest.mark.parametrize(("batch", "room", "rows", "accumulate"), [(8, 3, 2, 4), (6, 1, 1, 6), (5, 2, 1, 5)])
def test_memory_that_runs_out_costs_rows_but_no_tokens(
    tmp_path: Path, batch: int, room: int, rows: int, accumulate: int
) -> None:
    said: list[str] = []
    roomy, tight = loop_of(tmp_path, f"train.batch={batch}"), loop_of(tmp_path, f"train.batch={batch}", said=said)
    tight.model.register_forward_pre_hook(no_room(room))
    for loop in (roomy, tight):
        loop.run()
    assert (tight.rows, tight.accumulate, len(tight.losses)) == (rows, accumulate, 6)
    for one, other in zip(roomy.losses, tight.losses, strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-6)
    for one, other in zip(roomy.model.parameters(), tight.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)
    result, whole = result_of(tight, "done", "", None), result_of(roomy, "done", "", None)
    marked = f"out of memory: micro-batches of {rows} instead of {batch} rows, {accumulate} instead of 1 a step"
    assert (result.micro_batch, whole.micro_batch, result.tokens) == (rows, batch, whole.tokens)
    assert [note for note in result.notes if note not in whole.notes] == [marked]
    assert said[-1] == f"step 1: {marked}"


def test_a_single_row_that_finds_no_room_is_given_up(tmp_path: Path) -> None:
    loop = loop_of(tmp_path)
    loop.model.register_forward_pre_hook(no_room(0))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        loop.run()
    assert loop.rows == 1 and loop.losses == []


@pytest.mark.parametrize(
    ("fault", "memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_lack_of_memory_is_told_from_other_faults(fault: Exception, memory: bool) -> None:
    assert machine.is_out_of_memory(fault) == memory


def failing(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
    raise RuntimeError("no C++ compiler")


@pytest.mark.parametrize("backend", ["eager", failing])
def test_a_trial_whose_compiler_fails_goes_on_without_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str | Callable
) -> None:
    compile_stages = Model.compile_stages

    def patched(self: Model, asked: str | None = "inductor") -> None:
        compile_stages(self, None if asked is None else backend)

    monkeypatch.setattr(Model, "compile_stages", patched)
    said: list[str] = []
    plain = loop_of(tmp_path)
    loop = loop_of(tmp_path, "train.compile=layers", said=said)
    for one in (plain, loop):
        one.run()
    torch._dynamo.reset()
    torch.testing.assert_close(torch.stack(loop.losses), torch.stack(plain.losses))
    result = result_of(loop, "done", "", None)
    assert result_of(plain, "done", "", None).compiled is None
    if backend == "eager":
        assert result.compiled is True and said == []
    else:
        assert result.compiled is False
        assert said == [note for note in result.notes if note.startswith("not compiled from step 1 on: ")] != []
        assert "no C++ compiler" in said[0]


def test_a_fault_of_the_model_is_not_blamed_on_the_compiler(tmp_path: Path) -> None:
    loop = loop_of(tmp_path)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    loop.model.register_forward_pre_hook(broken)
    loop.compiled = True
    with pytest.raises(ZeroDivisionError):
        loop.run()
    assert loop.compiled is True and loop.remarks == []


def test_a_compiler_that_fails_while_scoring_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph is allowed, for training; the graph of scoring is then one too many."""
    monkeypatch.setattr("zoo.loop.GRAPHS", 1)
    compile_stages = Model.compile_stages
    monkeypatch.setattr(Model, "compile_stages", lambda self, how="eager": compile_stages(self, how and "eager"))
    grid = plan(write(tmp_path), device="cpu", sets=["train.compile=layers", "model.n_layers=1"])
    text = text_of(grid.recipe, grid.folder)
    recipe = with_vocabulary(grid.recipe, text.tokenizer.vocab_size)
    with torch._dynamo.config.patch(
        recompile_limit=8, fail_on_recompile_limit_hit=False
    ):  # put back: the loop sets them
        result = train(recipe, text, tmp_path, lambda progress: None)
    torch._dynamo.reset()
    assert result.status == "done" and result.bits_per_byte is not None and result.compiled is False
    assert any("not compiled from step" in note for note in result.notes)

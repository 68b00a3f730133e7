"""Processes that train together, as tests start them: ``python tests/ranks.py FOLDER`` is what each of them does.

One start serves all scenarios, since starting takes longer than they do. Each process writes what it came to, by name, into
``FOLDER/<rank>.pt``; tests/test_parallel.py looks at that.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from recipes import write
from zoo.data.prepare import Prepared
from zoo.loop import Diverged, Loop
from zoo.parallel import ALONE, Broken, Failed, Ranks, World, join
from zoo.recipe import Recipe
from zoo.result import Signals
from zoo.resume import Stopped
from zoo.train import follow, train
from zoo.trials.grid import plan
from zoo.trials.run import text_of
from zoo.trials.vocabulary import with_vocabulary

ROOT = Path(__file__).parents[1]

MUON = 'optim.matrix={kind="muon", lr=3e-3, momentum_warmup_from=0.5, momentum_warmup_steps=9}'
CONTROL = 'optim.control={kind="adamw", lr=3e-3}'
MOE = 'model.layer.ffn={kind="moe", n_experts=4, hidden_dim=16, %s}'
LOSS_FREE = MOE % 'balance="loss_free", jitter=0.2, dropout=0.1'
AUX_LOSS = MOE % 'balance={kind="aux_loss", weight=0.1}, z_loss=0.1'
ALTERED = 'model.layer.attention={kind="gqa", n_heads=2, value="residual"}'

# name -> knobs. What is compared with one process: the same knobs, but for auxiliary losses (test_parallel.py).
AGREE: dict[str, list[str]] = {
    "adamw": [],
    "muon": [MUON],
    "accumulate": [MUON, "train.accumulate=2", 'average={kind="ema", decay=0.9}'],
    "loss_free": [MUON, CONTROL, LOSS_FREE, "train.accumulate=2"],
    "aux_loss": [MUON, CONTROL, AUX_LOSS],
    "value_unet": [MUON, CONTROL, ALTERED, "model.trunk=unet", "model.n_layers=4", "train.recompute=layers"],
    "documents": ["data.packing=documents", "data.document_mask=segments"],
}
MOST = [MUON, CONTROL, LOSS_FREE, 'average={kind="ema", decay=0.9}', "train.steps=7", "train.log_every=3"]


def trial(folder: Path, sets: Sequence[str], ranks: int, dtype: str = "float64") -> tuple[Recipe, Prepared]:
    """A small recipe and its text."""
    grid = plan(folder / "small.toml", device="cpu", sets=[f"machine.dtype={dtype}", *sets], ranks=ranks)
    text = text_of(grid.recipe, grid.folder)
    return with_vocabulary(grid.recipe, text.tokenizer.vocab_size), text


def loop_of(folder: Path, sets: Sequence[str], world: World = ALONE, dtype: str = "float64", **more: Any) -> Loop:
    recipe, text = trial(folder, sets, world.size, dtype)
    return Loop(recipe, text, lambda progress: None, io.StringIO(), Signals(**more), world)


def outcome(loop: Loop) -> dict[str, Any]:
    """What a run came to: losses, weights, buffers, the load of experts in the last update."""
    return {
        "losses": torch.stack(loop.losses).double(),
        "state": {name: t.clone() for name, t in loop.model.state_dict().items()},
        "average": {name: t.clone() for name, t in loop.average.state().items()},
        "stats": {name: t.clone() for name, t in loop.stats.items()},
        "remarks": loop.remarks,
        "steps": loop.step,
        "rows": loop.rows,
    }


def ran(loop: Loop) -> dict[str, Any]:
    loop.run()
    return outcome(loop)


def collectives(world: Ranks) -> dict[str, Any]:
    """Each of the things that processes say to each other, from other numbers in each."""
    mine = world.rank + 1
    parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    parameters[0].grad = torch.full((3,), float(mine))
    if world.rank == 1:
        parameters[1].grad = torch.full((3,), 5.0)
    world.sum_gradients(parameters)
    stacks = {}
    for n in (1, 2, 3, 4):
        stack = torch.arange(n * 6, dtype=torch.float32).view(n, 2, 3).bfloat16()
        stacks[n] = world.shared_out(lambda part: part * 2 + 1, stack)
    table = world.of_first_table(lambda: ({"a": (1, "b")}, {"x": torch.arange(4), "none": torch.empty(0, 2)}))
    return {
        "grads": [p.grad for p in parameters],
        "sum": world.sum([torch.tensor(2**53 + mine), torch.tensor([0.5, mine])]),
        "stacks": stacks,
        "most": world.most(mine, -mine),
        "of_first": world.of_first(mine),
        "words": world.words("from 1" if world.rank == 1 else ""),
        "gather": world.gather(torch.tensor([mine])),
        "table": table,
    }


def raised(work: Callable[[], Any], *kinds: type[Exception]) -> str:
    try:
        work()
    except kinds as fault:
        return f"{type(fault).__name__}: {fault}"
    return "nothing"


def faults(folder: Path, world: Ranks) -> dict[str, Any]:
    """What befalls one process, and what all make of it."""
    found = {}

    def wrong() -> None:
        if world.rank == 1:
            raise ZeroDivisionError("by me")

    found["together"] = raised(lambda: world.together(wrong), Failed)
    tight = loop_of(folder, ["train.batch=8"], world)
    if world.rank == 1:
        tight.model.register_forward_pre_hook(lambda m, inputs: torch.empty(2**50) if len(inputs[0]) > 1 else None)
    found["tight"] = ran(tight)
    broken = loop_of(folder, [], world)
    if world.rank == 1:
        broken.model.register_forward_pre_hook(lambda *_: wrong())
    found["broken"] = raised(broken.run, Failed)
    diverging = loop_of(folder, ["train.log_every=1"], world)
    if world.rank == 1:
        diverging.model.register_forward_hook(
            lambda m, inputs, out: out._replace(nll=out.nll * torch.nan) if diverging.step == 2 else None
        )
    found["diverging"] = raised(diverging.run, Diverged)
    drifting = loop_of(folder, ["train.log_every=1"], world)
    if world.rank == 1:
        with torch.no_grad():
            next(drifting.model.parameters()).view(-1)[0].add_(1e-9)
    found["drifting"] = raised(drifting.run, Broken)
    by_itself = loop_of(folder, [], world)
    with_fault = raised(lambda: _alone(world, wrong), Broken)
    return {**found, "by_itself": with_fault, "clock": _clock(by_itself, folder, world)}


def _alone(world: Ranks, wrong: Callable[[], None]) -> None:
    with world.in_step():
        wrong()


def _clock(loop: Loop, folder: Path, world: Ranks) -> dict[str, Any]:
    """A budget in seconds, where one process's clock runs twenty times as fast."""
    timed, real = loop_of(folder, ["train.seconds=0.3", "train.log_every=1000"], world), time.perf_counter
    time.perf_counter = lambda: real() * (20 if world.rank else 1)
    try:
        timed.run()
    finally:
        time.perf_counter = real
    return outcome(timed)


def resumed(folder: Path, world: Ranks) -> dict[str, Any]:
    """A run, and one that was stopped after four steps because one process was asked to, and goes on."""
    recipe, text = trial(folder, MOST, world.size)

    def go(name: str, stop_at: int | None) -> str:
        def after(loop: Loop) -> bool:
            return world.rank == 1 and loop.step == stop_at

        where, loops = folder / name, []
        update = Loop._update

        def watched(loop: Loop) -> None:
            update(loop)
            loops[:] = [loop]

        Loop._update = watched
        signals = Signals(stop=lambda: bool(loops) and after(loops[0]))
        try:
            if world.rank:
                follow(lambda: (recipe, text), world, signals)
            else:
                where.mkdir(exist_ok=True)
                train(recipe, text, where, lambda progress: None, signals, world)
        except Stopped:
            return f"stopped at {loops[0].step}"
        finally:
            Loop._update = update
        found[name] = outcome(loops[0])
        return f"ran to {loops[0].step}"

    found: dict[str, Any] = {}
    found["said"] = [go("whole", None), go("parts", 4), go("parts", None)]
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    world = join(60.0)
    assert isinstance(world, Ranks)
    found: dict[str, Any] = {"collectives": collectives(world)}
    for name, sets in AGREE.items():
        for dtype in ("float64", "float32"):
            found[name, dtype] = ran(loop_of(folder, sets, world, dtype))
    found["resumed"] = resumed(folder, world)
    found["faults"] = faults(folder, world)
    torch.save(found, folder / f"{world.rank}.pt")
    killed(folder, world)


def killed(folder: Path, world: Ranks) -> None:
    """A run in which the second process is killed in the middle of a step."""
    loop = loop_of(folder, [], world)
    if world.rank == 1:
        loop.model.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL) if loop.step == 2 else None)
    (folder / "killed.txt").write_text(f"{raised(loop.run, Broken)} after {loop.step}")


def start(size: int, command: Sequence[str], **env: str) -> list[subprocess.Popen]:
    """``size`` processes as torchrun would start them, without the one that looks after them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "TORCHELASTIC_RUN_ID": "test"}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **world, **env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]


def prepared_folder(folder: Path) -> Path:
    """A folder with the small recipe and its text."""
    write(folder)
    return folder


if __name__ == "__main__":
    main(Path(sys.argv[1]))

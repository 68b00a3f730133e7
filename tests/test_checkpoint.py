"""Checkpoints: they come back bit for bit, a damaged one is passed over, and a kill leaves a whole one or none."""

from __future__ import annotations

import json
import os
import pickletools
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo.blocks
import zoo.optim  # noqa: F401 (registers the kinds)
from zoo import checkpoint
from zoo.checkpoint import Damaged, join, latest, prune, read, save
from zoo.core.params import Role, entries
from zoo.model import Model, ModelConfig
from zoo.optim.slots import Average, Optimizer

FACTS = {"tokens": 123, "loss": 0.1 + 0.2, "name": "größe", "nested": {"list": [1, None, "x"]}}


def some_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model/matrix": torch.randn(3, 4, generator=generator),
        "model/half": torch.randn(7, generator=generator).bfloat16(),
        "model/double": torch.randn(2, 2, generator=generator).double(),
        "model/mask": torch.tensor([True, False, True]),
        "average/count": torch.tensor(5),
        "model/empty": torch.zeros(0, 3),
    }


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, t in ours.items():
        assert t.dtype == theirs[name].dtype, name
        assert torch.equal(t, theirs[name]), name


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "folder", 7, some_tensors(), FACTS)
    found, complaints = latest(path.parent)
    assert complaints == ()
    assert (found.step, found.facts, found.path) == (7, FACTS, path)
    assert_same(found.tensors, some_tensors())
    assert names(path.parent) == ["step_00000007.safetensors"]


def test_sections(tmp_path: Path) -> None:
    sections = {"model": {"a": torch.ones(1)}, "optim/matrix": {"a/momentum": torch.ones(2)}, "optim/m": {}}
    save(tmp_path, 1, join(sections), {})
    found = latest(tmp_path).checkpoint
    for name, section in sections.items():
        assert_same(found.section(name), section)


def test_a_parameter_may_be_saved_as_it_is(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(4, 4))
    save(tmp_path, 1, {"w": weight, "turned": weight.T, "rows": weight[1:3]}, {})
    found = latest(tmp_path).checkpoint.tensors
    assert_same(found, {"w": weight.data, "turned": weight.data.T, "rows": weight.data[1:3]})


def test_a_tied_tensor_is_written_once_and_comes_back_tied(tmp_path: Path) -> None:
    weight = torch.randn(64, 64)
    path = save(tmp_path, 1, {"embedding": weight, "head": weight}, {})
    assert path.stat().st_size < 1.5 * weight.nbytes
    found = read(path).tensors
    assert found["head"] is found["embedding"]
    assert torch.equal(found["head"], weight)


def test_no_pickle(tmp_path: Path) -> None:
    """The file is safetensors: a length, a JSON header, and raw numbers."""
    blob = save(tmp_path, 1, some_tensors(), FACTS).read_bytes()
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    assert json.loads(header["__metadata__"]["contents"])["facts"] == FACTS
    with pytest.raises(ValueError, match="opcode"):
        list(pickletools.genops(blob))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save(tmp_path_factory.mktemp("whole"), 2, some_tensors(2), FACTS).read_bytes()


class TestDamage:
    def fall_back(self, folder: Path, blob: bytes) -> str:
        """With ``blob`` as the newest file, step 1 is used; the one complaint."""
        save(folder, 1, some_tensors(1), {})
        (folder / "step_00000002.safetensors").write_bytes(blob)
        found, complaints = latest(folder)
        assert found.step == 1
        assert_same(found.tensors, some_tensors(1))
        assert len(complaints) == 1
        assert "step_00000002.safetensors" in complaints[0]
        return complaints[0]

    @pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
    def test_a_truncated_file_is_named_and_passed_over(self, tmp_path: Path, whole: bytes, kept: float) -> None:
        self.fall_back(tmp_path, whole[: int(kept * len(whole))])

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
    @given(data=st.data())
    def test_any_flipped_bit_is_noticed(self, tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
        blob = bytearray(whole)
        blob[data.draw(st.integers(0, len(blob) - 1), label="byte")] ^= 1 << data.draw(st.integers(0, 7), label="bit")
        path = tmp_path / "step_00000002.safetensors"
        path.write_bytes(bytes(blob))
        try:
            found = read(path)
        except Damaged as fault:
            assert str(path) in str(fault)
        else:  # padding, or a name of the format that means nothing here: what counts is that the contents are right
            assert (found.step, found.facts) == (2, FACTS)
            assert_same(found.tensors, some_tensors(2))

    def test_changed_numbers_are_a_bad_checksum(self, tmp_path: Path, whole: bytes) -> None:
        assert "sha256" in self.fall_back(tmp_path, whole[:-1] + bytes([whole[-1] ^ 1]))

    def test_a_file_of_another_make(self, tmp_path: Path) -> None:
        from safetensors.torch import save as serialise

        assert "not a checkpoint" in self.fall_back(tmp_path, serialise({"a": torch.zeros(1)}))

    def test_nothing_whole_is_left(self, tmp_path: Path) -> None:
        for step in (1, 2):
            (tmp_path / f"step_{step:08d}.safetensors").write_bytes(b"not a file")
        found, complaints = latest(tmp_path)
        assert found is None
        assert [name in line for name, line in zip(("00000002", "00000001"), complaints, strict=True)] == [True, True]


def test_no_folder(tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") == (None, ())


def test_the_newest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    for step in (99_999_999, 9, 100_000_000, 10):
        save(tmp_path, step, {}, {})
    (tmp_path / "step_final.safetensors").write_bytes(b"somebody else's")
    assert latest(tmp_path).checkpoint.step == 100_000_000


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save(tmp_path, step, {}, {})
    (tmp_path / "step_00000011.safetensors.partial").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    prune(tmp_path)
    assert names(tmp_path) == ["notes.txt", "step_00000003.safetensors", "step_00000010.safetensors"]
    prune(tmp_path, keep=1)
    assert latest(tmp_path).checkpoint.step == 10
    with pytest.raises(ValueError, match="at least 1"):
        prune(tmp_path, keep=0)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, some_tensors(1), {})

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, 1, some_tensors(2), {})
    assert names(tmp_path) == ["step_00000001.safetensors"]
    assert_same(latest(tmp_path).checkpoint.tensors, some_tensors(1))


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save(tmp_path / "never", 1, {}, {"tensor": torch.zeros(1)})
    assert names(tmp_path) == []


KILLED = """
import sys, torch
from pathlib import Path
from zoo.checkpoint import save
big = {"w": torch.arange(500_000.0)}
step = 0
while True:
    step += 1
    save(Path(sys.argv[1]), step % 3 + 1, big, {})
"""


@pytest.mark.skipif(os.name != "posix", reason="a process is killed here with SIGKILL, which only POSIX has")
def test_a_kill_at_any_moment_leaves_only_whole_files(tmp_path: Path) -> None:
    root = Path(checkpoint.__file__).parents[1]
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(root)})
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    found, complaints = latest(tmp_path)
    assert complaints == ()
    assert torch.equal(found.tensors["w"], torch.arange(500_000.0))


class Run:
    """A small training run, with all that it must save."""

    KINDS = {"matrix": {"kind": "muon"}}

    def __init__(self) -> None:
        self.model = Model(ModelConfig(vocab_size=32, dim=16, n_layers=2, context=8), seed=0)
        named: dict[Role, list[tuple[str, torch.nn.Parameter]]] = {}
        for entry in entries(self.model):
            named.setdefault(entry.role, []).append((entry.name, entry.parameter))
        self.optimizers = {
            role: Optimizer.parse(self.KINDS.get(role, {"kind": "adamw"})).build(p) for role, p in named.items()
        }
        self.average = Average.parse({"kind": "ema", "decay": 0.9}).build(self.model)

    def train(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            tokens = torch.randint(0, 32, (2, 9), generator=torch.Generator().manual_seed(step))
            self.model(tokens[:, :-1], tokens[:, 1:]).nll.mean().backward()
            for optimizer in self.optimizers.values():
                optimizer.step(1.0, step)
            self.model.zero_grad(set_to_none=True)
            self.average.update(self.model, step, 6, 1.0)

    def state(self) -> dict[str, Tensor]:
        optim = {f"optim/{role}": optimizer.state() for role, optimizer in self.optimizers.items()}
        return join({"model": self.model.state_dict(), "average": self.average.state()} | optim)


def test_a_run_that_stops_and_resumes_changes_no_bit(tmp_path: Path) -> None:
    whole = Run()
    whole.train(1, 6)
    stopped = Run()
    stopped.train(1, 3)
    save(tmp_path, 3, stopped.state(), {})
    found = latest(tmp_path).checkpoint
    resumed = Run()
    resumed.model.load_state_dict(found.section("model"))
    resumed.average.load(found.section("average"))
    for role, optimizer in resumed.optimizers.items():
        optimizer.load(found.section(f"optim/{role}"))
    resumed.train(found.step + 1, 6)
    assert_same(resumed.state(), whole.state())

"""The call with which a model checks its shapes while it is built, on whatever device that is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from faults import planted
from torch import Tensor, nn

from zoo.core.part import ConfigError
from zoo.core.slots import Site, Stem
from zoo.core.wires import Bus
from zoo.model import Model, ModelConfig


def small(**knobs: Any) -> ModelConfig:
    return ModelConfig(vocab_size=17, dim=16, context=8, **{"n_layers": 2, **knobs})


def test_a_block_that_cannot_run_where_a_model_is_built_is_left_to_training() -> None:
    """As one with an operation for GPUs alone; but shapes that do not fit are found there all the same."""
    with planted():

        class Elsewhere(Stem, kind="elsewhere"):
            """Runs on no CPU. Source: this test."""

            class Config(Stem.Config):
                wider: int = 0

            def __init__(self, cfg: Config, site: Site) -> None:
                super().__init__()
                self.wider = cfg.wider

            def forward(self, x: Tensor, bus: Bus) -> Tensor:
                if x.device.type == "cpu":
                    raise ArithmeticError("no kernel for a CPU")
                return nn.functional.pad(x, (0, self.wider))

        model = Model(small(stem=[{"kind": "elsewhere"}]))
        with pytest.raises(ArithmeticError, match="no kernel"):
            model(torch.zeros(1, 3, dtype=torch.long))
        with pytest.raises((ConfigError, RuntimeError), match=r"(?i)shape|size"):
            Model(small(stem=[{"kind": "elsewhere", "wider": 3}]))


def test_what_a_stage_answered_on_one_device_is_not_taken_on_another() -> None:
    called: dict[Any, Any] = {}
    for device in ("meta", "cpu", "meta"):
        with torch.device(device):
            Model(small(n_layers=3), seed=None, called=called)
    assert [x.device.type for x, *_ in called.values()] == ["meta", "meta", "cpu", "cpu"]  # the stem, and one layer

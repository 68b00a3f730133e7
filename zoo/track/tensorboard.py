"""Trackers `tensorboard` and `auto`: event files under the folder of results."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.track.slots import Tracker


class TensorBoard(Tracker, kind="tensorboard"):
    """TensorBoard's event files in ``tensorboard/<variant-seed>`` of the folder of results.

    Source: torch.utils.tensorboard.
    """

    def start(self, project: str, name: str, knobs: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder / "tensorboard" / name))
        rows = "\n".join(f"    {path} = {value}" for path, value in knobs.items())
        self.writer.add_text("recipe", rows)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, figures: Mapping[str, float], status: str) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(f"final/{name}", value)
        self.writer.add_text("status", status)
        self.writer.close()


class Auto(Tracker, kind="auto"):
    """TensorBoard's files where tensorboard is installed, else nothing.

    Source: torch.utils.tensorboard.
    """

    def __init__(self, config: Auto.Config, folder: Path) -> None:
        super().__init__(config, folder)
        installed = importlib.util.find_spec("tensorboard") is not None
        self.inner = TensorBoard(TensorBoard.Config(), folder) if installed else None

    def start(self, project: str, name: str, knobs: Mapping[str, Any]) -> None:
        if self.inner:
            self.inner.start(project, name, knobs)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if self.inner:
            self.inner.log(step, figures)

    def finish(self, figures: Mapping[str, float], status: str) -> None:
        if self.inner:
            self.inner.finish(figures, status)

"""The slot of trackers: where the figures of a running trial are written beside its own log."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.core.part import Part


class Tracker(Part, slot="tracker"):
    """Sends one trial's figures to a library that people watch runs with. A new object serves each trial.

    Whatever a tracker raises is said once and ends the tracking of that trial, never the trial.
    """

    def __init__(self, config: Tracker.Config, folder: Path) -> None:
        self.config, self.folder = config, folder

    def start(self, project: str, name: str, knobs: Mapping[str, Any]) -> None:
        """A trial begins.

        Args:
            project: the grid's name.
            name: variant and seed.
            knobs: the resolved recipe, flat: dotted path -> value.
        """
        raise NotImplementedError

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of a logged step by name, such as ``loss`` in nats per token."""
        raise NotImplementedError

    def finish(self, figures: Mapping[str, float], status: str) -> None:
        """The trial is over: ``done``, ``failed`` or another status of a result, with its final figures."""
        raise NotImplementedError

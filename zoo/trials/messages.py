"""What a process that trains tells the one that started it: named tuples, so that they can be sent and taken apart."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from zoo.result import Progress, Result
from zoo.trials.check import Forecast


class Job(NamedTuple):
    """A trial as it is sent to a worker: the recipe travels as text, since a plug-in's classes cannot."""

    text: str
    address: str
    forecast: Forecast
    guarded: bool
    store: Path


class Said(NamedTuple):
    """A line for whoever watches."""

    line: str


class Stepped(NamedTuple):
    """How far the trial is."""

    progress: Progress


class Halted(NamedTuple):
    """Why no trial at all can be trained; the last message."""

    why: str


class Ended(NamedTuple):
    """What the trial came to, stored where the job said."""

    result: Result


class Sent(NamedTuple):
    """The same from a machine that does not see the results folder: with the trial's files by their path in its folder."""

    result: Result
    files: dict[str, bytes]
    where: str  # the machine's name


class Gone(NamedTuple):
    """The process that trained has died or was given up, and why."""

    why: str


Message = Said | Stepped | Halted | Ended | Sent | Gone

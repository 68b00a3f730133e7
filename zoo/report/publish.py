"""What a grid leaves for people to look at: a card in each trial's folder, pictures, and a page."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from zoo.core.part import ConfigError
from zoo.report import card
from zoo.report.study import study_of
from zoo.trials.grid import Arm
from zoo.trials.run import Outcome, Ready, data_key
from zoo.trials.store import Store

PAGE = "report.html"


def get_ready() -> None:
    """Load what tables and pictures need in a thread: for a grid whose last trials are running."""
    threading.Thread(target=_load, daemon=True).start()


def _load() -> None:
    with suppress(Exception):  # whoever then draws says what is missing
        import scipy.stats  # noqa: F401  (no more than imports: the converter itself holds the interpreter's lock for seconds)
        import vl_convert  # noqa: F401

        import zoo.report.page  # noqa: F401


class Cards:
    """Model cards in the folders of a grid's trials, an arm's as soon as its last seed is over: other trials train meanwhile.

    Args:
        ready: the grid's own trials and their text.
        store: where results live.
        seeds: how many trials an arm has.
    """

    def __init__(self, ready: Ready, store: Store, seeds: int) -> None:
        self.ready, self.store, self.seeds = ready, store, seeds
        self.arms: dict[str, list[Outcome]] = {}
        self.written: set[str] = set()

    def add(self, outcome: Outcome) -> None:
        """One more trial is over."""
        own = self.arms.setdefault(outcome.trial.arm.name, [])
        own.append(outcome)
        if len(own) == self.seeds:
            self._write(own)
            self.written.add(outcome.trial.arm.name)

    def finish(self, outcomes: Sequence[Outcome]) -> None:
        """The cards that are still missing, of all trials that are known."""
        arms: dict[str, list[Outcome]] = {}
        for outcome in outcomes:
            arms.setdefault(outcome.trial.arm.name, []).append(outcome)
        for name, own in arms.items():
            if name not in self.written or len(own) != self.seeds:
                self._write(own)

    def _write(self, own: Sequence[Outcome]) -> None:
        """A card for each trial of an arm that has none yet, and for all of them where one is new."""
        changed = any(outcome.fresh for outcome in own)
        for outcome in own:
            folder = self.store.folder(outcome.trial.recipe, outcome.trial.address)
            if folder.is_dir() and (changed or not (folder / card.CARD).is_file()):
                prepared = self.ready.prepared.get(data_key(outcome.trial.recipe))
                tokenizer = None if prepared is None else prepared.tokenizer
                card.write_card(folder, [o.result for o in own], tokenizer)


def write_pictures(
    outcomes: Sequence[Outcome],
    name: str,
    baseline: Arm,
    store: Store,
    root: Path,
    facts: dict[str, str],
    say: Callable[[str], None],
) -> list[str]:
    """Pictures and page of a grid; returns the names of the files.

    Where the drawing library is not installed, that is said and nothing is drawn.

    Raises:
        ConfigError: a folder that cannot be written.
    """
    try:
        from zoo.report.page import write_page
        from zoo.report.pictures import draw
    except ImportError as fault:
        say(f"No pictures and no {PAGE}: {fault.name} is not installed (pip install altair vl-convert-python)")
        return []
    study = study_of(name, baseline, outcomes, store, facts)
    try:
        written = draw(study, root)
        write_page(study, root / PAGE)
    except OSError as fault:
        raise ConfigError(f"{root}: cannot be written: {fault.strerror}") from None
    return [*(path.name for path in written), PAGE]

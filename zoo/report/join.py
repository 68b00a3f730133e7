"""Results of many runs in one table, and two trials side by side, from nothing but their folders."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from rich.console import Console

from zoo import plugins
from zoo.core.part import ConfigError, faults, nearest
from zoo.report import table
from zoo.report.rows import Entry, Row, plan_hash, rows_from
from zoo.report.terminal import say
from zoo.report.where import matching
from zoo.result import Result, understood
from zoo.trials.address import NAMES
from zoo.trials.store import RESULT


class Stored(NamedTuple):
    """A trial as it lies on the disk; the recipe is not resolved again, so it may be of another version, or a plug-in gone."""

    folder: Path
    recipe: Mapping[str, Any]
    result: Result


class Joined(NamedTuple):
    """What the folders hold: a row per arm, the trials behind them, and what could not be read."""

    rows: list[Row]
    trials: list[Stored]
    said: list[str]


def join(folders: Sequence[Path], where: Sequence[str] = (), sort: str = "", baseline: str | None = None) -> Joined:
    """One table of all trials under ``folders``.

    Seeds of one arm come together even from several runs: an arm is a resolved recipe without its seed and names, on the
    same text, by the same evaluation plan. A trial that lies in two places counts once.

    Args:
        folders: trials, or folders of trials at any depth.
        where: conditions that all have to hold of a trial, see zoo.report.where.
        sort: a column of the rows; with a minus sign in front, the largest first.
        baseline: the arm that is compared with; None: in each evaluation plan the first.

    Raises:
        ConfigError: a folder without trials, a condition or column that cannot be, a baseline that no arm is called.
    """
    plugins.discover()  # the kinds' defaults, which the table leaves out
    trials, said = _trials(folders)
    for text in where:
        kept = matching([{**t.recipe, **t.result.model_dump(mode="json")} for t in trials], text)
        trials = [t for t, keep in zip(trials, kept, strict=True) if keep]
    arms: dict[str, list[Stored]] = {}
    for trial in trials:
        arms.setdefault(_identity(trial), []).append(trial)
    entries: list[Entry] = []
    names = _names([own[0] for own in arms.values()])
    for name, own in zip(names, arms.values(), strict=True):
        kept = {t.result.seed: t for t in reversed(own)}  # the first of each seed
        said += [f"{t.folder}: left out, a trial of {name} with seed {t.result.seed} stands already" for t in own
                 if kept[t.result.seed] is not t]  # fmt: skip
        remarks = _remarks(own)
        entries += [Entry(name, t.recipe, t.result, remarks) for t in own if kept[t.result.seed] is t]
    if baseline is not None and baseline not in names:
        raise ConfigError(f"--baseline {baseline}: no such arm, {nearest(baseline, names)}")
    return Joined(_sorted(rows_from(entries, baseline), sort), trials, said)


def _trials(folders: Sequence[Path]) -> tuple[list[Stored], list[str]]:
    found: dict[str, Stored] = {}
    said: list[str] = []
    for root in folders:
        paths = sorted(root.rglob(RESULT), key=lambda path: path.parts)
        paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)]
        if not paths:
            why = "no trial lies in it" if root.is_dir() else "no such folder"
            raise ConfigError(f"{root}: {why}")
        for path in paths:
            trial = _read(path.parent)
            if isinstance(trial, str):
                said.append(trial)
                continue
            key = trial.result.address or str(path.resolve())
            if key not in found or found[key].result.status != "done":
                found[key] = trial
    if not found:
        raise ConfigError("; ".join(said))
    return list(found.values()), said


def _read(folder: Path) -> Stored | str:
    """A trial, or why it cannot be read."""
    try:
        result = understood(json.loads((folder / RESULT).read_text(encoding="utf-8")))
        return Stored(folder, tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8")), result)
    except ValidationError as fault:
        return f"{folder}: left out, cannot be read: no {RESULT} of a trial: {'; '.join(map(str, faults(fault)))[:200]}"
    except (OSError, ValueError, AttributeError) as fault:
        return f"{folder}: left out, cannot be read: {' '.join(str(fault).split())[:200]}"


def _identity(trial: Stored) -> str:
    """Equal for trials of one arm."""
    recipe = {name: value for name, value in trial.recipe.items() if name not in NAMES or name == "plugins"}
    recipe["train"] = {name: value for name, value in recipe["train"].items() if name != "seed"}
    plan = plan_hash(Entry("", trial.recipe, trial.result))
    return json.dumps([recipe, plan, trial.result.facts.get("data")], sort_keys=True, default=str)


def _names(arms: Sequence[Stored]) -> list[str]:
    """A name for each arm: its variant, with the recipe's name in front and a number behind where that is not enough."""
    variants = [t.result.variant for t in arms]
    names = [v if variants.count(v) == 1 else f"{t.result.name}: {v}" for v, t in zip(variants, arms, strict=True)]
    return [f"{name} #{names[:i].count(name) + 1}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _remarks(own: Sequence[Stored]) -> tuple[str, ...]:
    others = dict.fromkeys(t.result.variant for t in own if t.result.variant != own[0].result.variant)
    codes = {t.result.facts.get("code") for t in own}
    mixed = [f"its seeds were trained by {len(codes)} versions of the source code"] if len(codes) > 1 else []
    return (*(f"the same recipe as {name!r}" for name in others), *mixed)


def _sorted(rows: list[Row], column: str) -> list[Row]:
    """Rows by a column, those without a value last; the order of evaluation plans stays."""
    if not column:
        return rows
    name, down = column.removeprefix("-"), column.startswith("-")
    if name not in Row._fields or name == "scores":
        known = [field for field in Row._fields if field != "scores"]
        raise ConfigError(f"--sort {column}: no such column, {nearest(name, known)}")
    with_value = [row for row in rows if getattr(row, name) is not None]
    with_value.sort(key=lambda row: getattr(row, name), reverse=down)
    plans = list(dict.fromkeys(row.plan for row in rows))
    return sorted(
        [*with_value, *(row for row in rows if getattr(row, name) is None)], key=lambda r: plans.index(r.plan)
    )


FORMATS = ("md", "csv", "json", "latex")


def print_joined(joined: Joined, form: str | None, console: Console, warn: Callable[[str], None]) -> None:
    """The table in one of ``FORMATS`` on standard output, or for the terminal.

    Args:
        joined: what ``join`` found.
        form: None: for people at a terminal.
        console: where to.
        warn: told what could not be read; it must not stand in the table's text.

    Raises:
        ConfigError: no such format.
    """
    if form is not None and form not in FORMATS:
        raise ConfigError(f"--format {form}: no such format, {nearest(form, FORMATS)}")
    for line in joined.said:
        warn(line)
    title = " and ".join(dict.fromkeys(trial.result.name for trial in joined.trials))
    if form is None:
        table.print_rows(console, joined.rows, title)
        lines = table.remarks(joined.rows)
    elif form == "md":
        lines = [table.markdown(joined.rows, title, table.shared_facts(t.result for t in joined.trials)).rstrip()]
    else:
        lines = [{"csv": table.csv_text, "json": table.json_text, "latex": table.latex}[form](joined.rows).rstrip()]
    for line in lines:
        say(console, line)

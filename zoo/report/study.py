"""A grid as its pictures and its page want it: curves over seeds, final figures, and what each trial's folder holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zoo.recipe import dumps
from zoo.report.card import SAMPLES
from zoo.report.rows import Row, rows_of
from zoo.trials.grid import Arm
from zoo.trials.names import differences, spell
from zoo.trials.run import Outcome
from zoo.trials.store import Store

POINTS = 160  # of one curve; more are not seen, and a page stays small


class Entry(NamedTuple):
    """One trial with what its folder holds."""

    outcome: Outcome
    folder: Path
    log: tuple[dict[str, Any], ...]  # lines of log.jsonl
    samples: tuple[dict[str, Any], ...]

    @property
    def variant(self) -> str:
        return self.outcome.trial.arm.name

    def recipe_text(self) -> str:
        """The resolved recipe as TOML."""
        return dumps(self.outcome.trial.recipe)

    def changed(self, baseline: Arm) -> tuple[str, ...]:
        """``path: baseline's value -> own`` for every knob that differs."""
        found = differences(self.outcome.trial.recipe, baseline.recipe)
        skip = ("train.seed", "model.vocab_size")
        return tuple(f"{path}: {spell(a)} -> {spell(b)}" for path, (a, b) in found.items() if path not in skip)


class Study(NamedTuple):
    """All trials of a grid."""

    name: str
    baseline: Arm
    entries: tuple[Entry, ...]
    rows: tuple[Row, ...]
    facts: dict[str, str]  # that stand beside every figure

    @property
    def variants(self) -> list[str]:
        """Names of arms in the order of the table."""
        return [row.variant for row in self.rows]

    def drawn(self, many: int, few: int) -> list[str]:
        """The variants whose curves are drawn: all, or of more than ``many`` the baseline and the ``few`` best."""
        return self.variants if len(self.rows) <= many else self.ranked()[: few + 1]

    def ranked(self) -> list[str]:
        """The baseline, then the others from the fewest bits per byte to those that have none."""

        def place(row: Row) -> tuple[bool, bool, float]:
            return row.variant != self.baseline.name, row.bits_per_byte is None, row.bits_per_byte or 0.0

        return [row.variant for row in sorted(self.rows, key=place)]

    def curves(self) -> list[dict[str, Any]]:
        """One row per variant, measure and logged step: mean, least and greatest over seeds.

        ``steps``, ``tokens``, ``seconds`` and ``FLOPs`` are what had been spent by then (seconds as a mean over seeds).
        ``measure`` is ``loss`` (training, nats per token) or ``bits per byte`` (validation text).
        """
        found: list[dict[str, Any]] = []
        for variant in self.variants:
            own = [entry for entry in self.entries if entry.variant == variant]
            for measure, points in (("loss", _losses(own)), ("bits per byte", _scores(own))):
                steps = sorted(points)
                for step in _thinned(steps):
                    found.append({"variant": variant, "measure": measure, "steps": step, **_over_seeds(points[step])})
        return found

    def finals(self) -> list[dict[str, Any]]:
        """One row per variant that was scored: its figures as numbers."""
        fields = (
            "bits_per_byte",
            "parameters",
            "active_parameters",
            "flops_per_token",
            "tokens_per_second",
            "peak_memory",
        )
        rows = []
        for row in self.rows:
            if row.bits_per_byte is not None:
                kept = [p for e in self.entries if e.variant == row.variant for p in [_artifact(e)] if p is not None]
                known = {name: getattr(row, name) for name in fields}
                rows.append({"variant": row.variant, **known, "artifact_bytes": kept[0] if kept else None})
        return rows

    def loads(self) -> list[dict[str, Any]]:
        """Share of tokens per expert, layer and logged step of the first seed of each variant that has experts."""
        found, seen = [], set()
        for entry in self.entries:
            told = [line for line in entry.log if "load" in line]
            if entry.variant in seen or not told:
                continue
            seen.add(entry.variant)
            for line in (told[i] for i in _thinned(range(len(told)), 40)):
                for layer, counts in line["load"].items():
                    total = sum(counts) or 1
                    busiest = max(counts) * len(counts) / total - 1
                    for expert, n in enumerate(counts):
                        share = n / total
                        base = {"variant": entry.variant, "layer": layer, "steps": line["step"], "MaxVio": busiest}
                        found.append({**base, "expert": expert, "share": share})
        return found


def study_of(name: str, baseline: Arm, outcomes: Iterable[Outcome], store: Store, facts: dict[str, str]) -> Study:
    """Read what the folders hold; files that are missing or cannot be read count as empty."""
    entries = []
    outcomes = list(outcomes)
    for outcome in outcomes:
        folder = store.folder(outcome.trial.recipe, outcome.trial.address)
        kept = _json(folder / SAMPLES)
        samples = tuple(kept) if isinstance(kept, list) else ()
        entries.append(Entry(outcome, folder, _lines(folder / "log.jsonl"), samples))
    return Study(name, baseline, tuple(entries), tuple(rows_of(outcomes, baseline)), facts)


def _losses(entries: Sequence[Entry]) -> dict[int, list[dict[str, float]]]:
    points: dict[int, list[dict[str, float]]] = {}
    for entry in entries:
        per_token = entry.outcome.result.flops_per_token
        for line in entry.log:
            points.setdefault(line["step"], []).append(_point(line["loss"], line["tokens"], line["elapsed"], per_token))
    return points


def _scores(entries: Sequence[Entry]) -> dict[int, list[dict[str, float]]]:
    """Scores during training where there are any, else the final one.

    Those during training are of a part of the validation text, so the final one is no point of their curve.
    """
    during: dict[int, list[dict[str, float]]] = {}
    final: dict[int, list[dict[str, float]]] = {}
    for entry in entries:
        result = entry.outcome.result
        for line in entry.log:
            if line.get("valid_bpb") is not None:
                point = _point(line["valid_bpb"], line["tokens"], line["elapsed"], result.flops_per_token)
                during.setdefault(line["step"], []).append(point)
        if result.status == "done" and result.bits_per_byte is not None:
            point = _point(result.bits_per_byte, result.tokens, result.seconds, result.flops_per_token)
            final.setdefault(result.steps, []).append(point)
    return during or final


def _point(value: float, tokens: int, seconds: float, flops_per_token: float) -> dict[str, float]:
    return {"value": value, "tokens": tokens, "seconds": seconds, "FLOPs": tokens * flops_per_token}


def _over_seeds(points: Sequence[dict[str, float]]) -> dict[str, float]:
    values = [p["value"] for p in points if math.isfinite(p["value"])]
    spent = {k: math.fsum(p[k] for p in points) / len(points) for k in ("tokens", "seconds", "FLOPs")}
    if not values:
        return {"mean": None, "low": None, "high": None, **spent}
    return {"mean": math.fsum(values) / len(values), "low": min(values), "high": max(values), **spent}


def _thinned(steps: Sequence[int], most: int = POINTS) -> list[int]:
    """At most about ``most`` of them, evenly, the first and the last among them."""
    steps = list(steps)
    if len(steps) <= most:
        return steps
    chosen = {round(i * (len(steps) - 1) / (most - 1)) for i in range(most)}
    return [step for i, step in enumerate(steps) if i in chosen]


def _artifact(entry: Entry) -> int | None:
    """Bytes of the trial's packed artifact where one was written, else None."""
    return getattr(entry.outcome.result, "artifact_bytes", None) or None


def _lines(path: Path) -> tuple[dict[str, Any], ...]:
    try:
        return tuple(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return ()


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

"""The rows of a table: one per arm over its seeds, compared with the baseline of its own evaluation plan.

Rows come of results and recipes as plain tables, so that results of many runs, of other recipes, and with plug-ins that are
gone can stand in one table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from zoo.core.tables import tabulate
from zoo.report.scores import mean_scores, score_headings
from zoo.result import Result
from zoo.trials.grid import Arm
from zoo.trials.names import changes, differences, spell
from zoo.trials.run import Outcome
from zoo.trials.statistics import Comparison, compare, paired, spread, with_verdicts

BASELINE = "baseline"  # the verdict of the row that all others of its plan are compared with


class Entry(NamedTuple):
    """One trial as a table sees it."""

    arm: str
    recipe: Mapping[str, Any]  # resolved, as plain tables
    result: Result
    remarks: tuple[str, ...] = ()  # beside the notes of the result


class Row(NamedTuple):
    """One arm over its seeds. Means are over trials that are done; ``sd`` needs two of them, as all of statistics does."""

    variant: str
    parameters: int
    active_parameters: int
    flops_per_token: float
    tokens_per_second: float | None
    peak_memory: int | None
    train_loss: float | None
    valid_loss: float | None
    bits_per_byte: float | None
    sd: float | None  # of bits per byte over seeds
    difference: float | None  # mean over the seeds that arm and baseline both have
    pairs: int  # how many those are
    sd_of_differences: float | None
    interval_low: float | None  # 95 %, Student's t
    interval_high: float | None
    bootstrap_low: float | None  # 95 %, by resampling seeds
    bootstrap_high: float | None
    p: float | None
    holm_p: float | None  # corrected for the number of arms
    smallest_effect: float | None  # that as many seeds find in 80 of 100 cases
    verdict: str
    seeds: int
    done: int
    changes: tuple[str, ...]  # ``path: baseline's value -> own``, a swap of kind in one piece
    differs: tuple[str, ...]  # the same, knob by knob
    status: str
    notes: tuple[str, ...]
    plan: str  # hash of the evaluation plan: rows of different plans are never ranked together
    group: str  # that plan in words
    tokens: str  # hash of the tokenizer: nats per token are compared only where it is equal
    artifact_bytes: int | None = None  # of the largest seed's, code left out
    scores: tuple[tuple[str, float | None], ...] = ()  # of further scorers: heading of the column, mean bits per byte


def rows_of(outcomes: Iterable[Outcome], baseline: Arm) -> list[Row]:
    """A row for each arm of a grid, in the order in which arms first occur.

    Args:
        outcomes: of any arms and seeds.
        baseline: the arm that all are compared with; it need not have been trained.
    """
    entries = [Entry(o.trial.arm.name, tabulate(o.trial.recipe), o.result, _remarks(o)) for o in outcomes]
    return rows_from(entries, baseline.name, tabulate(baseline.recipe))


def rows_from(entries: Iterable[Entry], baseline: str | None, recipe: Mapping[str, Any] | None = None) -> list[Row]:
    """A row for each arm, in the order in which arms first occur.

    Args:
        entries: trials of any arms and seeds.
        baseline: the arm that all of its evaluation plan are compared with; None: in each plan its first arm.
        recipe: the baseline's, in case it has not been trained.
    """
    arms: dict[str, list[Entry]] = {}
    for entry in entries:
        arms.setdefault(entry.arm, []).append(entry)
    plans: dict[str, list[list[Entry]]] = {}
    for own in arms.values():
        plans.setdefault(plan_hash(own[0]), []).append(own)
    rows: dict[str, Row] = {}
    for group in plans.values():
        theirs = arms.get(baseline, []) if baseline is not None else group[0]
        rows |= {row.variant: row for row in _group(group, theirs, recipe)}
    headings = score_headings(e.result for own in arms.values() for e in own)
    scores = {name: mean_scores([e.result for e in own], headings) for name, own in arms.items()}
    return [rows[name]._replace(scores=scores[name]) for name in arms]


def _group(group: Sequence[list[Entry]], theirs: list[Entry], recipe: Mapping[str, Any] | None) -> list[Row]:
    """The rows of one plan."""
    if theirs:
        recipe = theirs[0].recipe
    baseline = _scores(theirs) if theirs and plan_hash(theirs[0]) == plan_hash(group[0][0]) else {}
    found = [Comparison(0) if own is theirs else compare(paired(_scores(own), baseline)) for own in group]
    return [_row(own, c, own is theirs, recipe) for own, c in zip(group, with_verdicts(found), strict=True)]


def _row(own: Sequence[Entry], c: Comparison, is_baseline: bool, baseline: Mapping[str, Any] | None) -> Row:
    first = own[0]
    against = first.recipe if baseline is None else baseline
    done = [e.result for e in own if e.result.status == "done"]
    scores = np.array(list(_scores(own).values()))
    low, high = c.interval or (None, None)
    bootstrap_low, bootstrap_high = c.bootstrap or (None, None)
    return Row(
        variant=first.arm,
        parameters=first.result.parameters,
        active_parameters=first.result.active_parameters,
        flops_per_token=first.result.flops_per_token,
        tokens_per_second=_mean(r.tokens_per_second for r in done),
        peak_memory=max((r.peak_memory for r in done), default=None),
        train_loss=_mean(r.train_loss for r in done),
        valid_loss=_mean(r.valid_loss for r in done),
        bits_per_byte=_mean(r.bits_per_byte for r in done),
        sd=spread(scores) if len(scores) > 1 else None,
        difference=c.difference,
        pairs=c.seeds,
        sd_of_differences=c.sd,
        interval_low=low,
        interval_high=high,
        bootstrap_low=bootstrap_low,
        bootstrap_high=bootstrap_high,
        p=c.p,
        holm_p=c.holm,
        smallest_effect=c.smallest,
        verdict=BASELINE if is_baseline else c.verdict,
        seeds=len(own),
        done=len(done),
        changes=_said(changes(first.recipe, against)),
        differs=_said({path: (spell(a), spell(b)) for path, (a, b) in differences(first.recipe, against).items()}),
        status=_status(own),
        notes=_notes(own),
        plan=plan_hash(first),
        group=plan_in_words(first),
        artifact_bytes=max((r.artifact_bytes for r in done if r.artifact_bytes is not None), default=None),
        tokens=first.result.plan.tokens if first.result.plan else first.result.facts.get("data", ""),
    )


def of_one_plan(outcomes: Sequence[Outcome], baseline: str) -> tuple[list[Outcome], list[str]]:
    """The outcomes that may be compared with the baseline (if it has none: with the first), and the names of other arms."""
    entries = [Entry(o.trial.arm.name, tabulate(o.trial.recipe), o.result) for o in outcomes]
    plans = [plan_hash(entry) for entry in entries]
    wanted = next((p for e, p in zip(entries, plans, strict=True) if e.arm == baseline), plans[0] if plans else "")
    kept = [o for o, plan in zip(outcomes, plans, strict=True) if plan == wanted]
    return kept, list(dict.fromkeys(e.arm for e, plan in zip(entries, plans, strict=True) if plan != wanted))


def plan_hash(entry: Entry) -> str:
    """Equal for trials whose scores may be compared."""
    return entry.result.plan.hash if entry.result.plan else plan_in_words(entry)


def plan_in_words(entry: Entry) -> str:
    """The evaluation plan for people; of a result without one, what its recipe and facts tell of it."""
    plan, recipe = entry.result.plan, entry.recipe
    if plan is None:
        context, scorer = recipe["model"]["context"], recipe["evaluate"]["scorer"]
        text = f"no plan recorded, data {entry.result.facts.get('data', '?')}"
    else:
        context, scorer = plan.context, plan.scorer
        text = f"{plan.bytes:,} bytes of {plan.split} text {plan.text}"
    return f"{text}, context {context}, scorer {spell(scorer)}"


def _scores(own: Sequence[Entry]) -> dict[int, float]:
    """Bits per byte by seed, of the trials that are done."""
    done = (e.result for e in own if e.result.status == "done")
    return {r.seed: r.bits_per_byte for r in done if r.bits_per_byte is not None}


PLACES = ("train.seed", "base", "plugins")  # in which arms differ without being different


def _said(changed: Mapping[str, tuple[str, str]]) -> tuple[str, ...]:
    return tuple(f"{path}: {a} -> {b}" for path, (a, b) in changed.items() if path not in PLACES)


def _status(own: Sequence[Entry]) -> str:
    """``done``, or how many are and why the others are not."""
    results = [e.result for e in own]
    faults = [r for r in results if r.status != "done"]
    if not faults:
        return "done"
    seed = len(own) > 1
    said = [f"{r.status}{f' (seed {r.seed})' if seed else ''}: {r.reason}" for r in faults]
    return "; ".join([*([f"{len(own) - len(faults)} of {len(own)} done"] if seed else []), *said])


def _notes(own: Sequence[Entry]) -> tuple[str, ...]:
    """What is to be said of an arm, each once: doubts first, then notes, then what only the grid knows."""
    found = [flag for e in own for flag in e.result.flags] + [note for e in own for note in e.result.notes]
    found += ["trained without guards (--no-guards)" for e in own if e.result.guards == "off"]
    return tuple(dict.fromkeys([*found, *(remark for e in own for remark in e.remarks)]))


def _remarks(outcome: Outcome) -> tuple[str, ...]:
    """What only the grid knows of a trial."""
    trial = outcome.trial
    found = [*trial.arm.notes, *(f"the same recipe as {name!r}" for name in trial.arm.also)]
    found += [f"optim.{role} is not used: no such parameters" for role in trial.forecast.unused]
    found += ["stale: trained by other source code; --refresh trains it again"] if outcome.stale else []
    return tuple(found)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None

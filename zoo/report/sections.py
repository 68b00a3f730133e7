"""What a design's results say beside the table: envelope, effects, path, race."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.report.budgets import race, ranking
from zoo.report.rows import of_one_plan
from zoo.report.section import Section, resolved, spoken
from zoo.report.units import significant
from zoo.trials.effects import Cell, effects, missing
from zoo.trials.envelope import BEST, Curve, gaps, warnings, word
from zoo.trials.grid import Grid
from zoo.trials.names import short_paths
from zoo.trials.run import Outcome
from zoo.trials.scores import base_of, curves, score
from zoo.trials.stages import ladder_of
from zoo.trials.statistics import compare, paired


def sections(grid: Grid, seen: Sequence[Outcome]) -> list[Section]:
    """The sections that this design has, from all outcomes that were scored by the baseline's evaluation plan."""
    once, others = of_one_plan([*{(o.trial.arm.name, o.result.seed): o for o in seen}.values()], grid.arms[0].name)
    found = [section(grid, once) for section in (_envelope, _effects, _path, race, ranking)]
    left = (f"left out, since another evaluation plan scored them: {', '.join(others)}",) if others else ()
    return [section._replace(remarks=(*section.remarks, *left)) for section in found if section is not None]


# -- the learning-rate envelope ---------------------------------------------------------------------------------------

ENVELOPE = (
    "Bits per byte of every arm at every rate, means over seeds. A difference at one rate asks which arm is better at the rate "
    "that somebody chose; best against best asks which is better once each has its own. Differences are paired by seed, in "
    "brackets their 95 % interval (t, one comparison at a time); negative is better."
)


def _envelope(grid: Grid, seen: Sequence[Outcome]) -> Section | None:
    found = curves(seen)
    if grid.ladder is None or not any(curve.best is not None for curve in found):
        return None
    label = grid.ladder.label
    rates = sorted({rate for curve in found for rate in curve.scores})
    scored = [_curve_row(curve, rates, grid) for curve in found]
    tables = [("bits per byte", scored)]
    if len(found) > 1:
        against = []
        for curve in found[1:]:
            said = {gap.where: gap for gap in gaps(curve, found[0], label)}
            row = {"variant": curve.arm, **{label(rate): "" for rate in rates}, BEST: ""}
            against.append(row | {where: spoken(gap.comparison) for where, gap in said.items()})
            alone = BEST in said and said[BEST].comparison.seeds == 1
            against[-1]["verdict"] = "one seed" if alone else word(said[BEST]) if BEST in said else ""
        tables.append((f"difference to {found[0].arm}", against))
    return Section("envelope", f"{grid.name}, learning rates", ENVELOPE, tuple(tables), tuple(warnings(found, label)))


def _curve_row(curve: Curve, rates: Sequence[float], grid: Grid) -> dict[str, str]:
    cells = {grid.ladder.label(r): significant(curve.mean(r)) if curve.scores.get(r) else "" for r in rates}
    own = {r for r in curve.scores if not curve.scores[r]}
    cells |= {grid.ladder.label(r): "no score" for r in own}
    at = "" if curve.best is None else f"{significant(curve.mean(curve.best))} at {grid.ladder.label(curve.best)}"
    return {"variant": curve.arm, **cells, "best": at}


# -- main effects and interactions ------------------------------------------------------------------------------------

EFFECTS = (
    "A main effect is the mean over all settings of the other axes; an interaction is by how much an effect changes with the "
    "other axis (difference of differences). Bits per byte, formed seed by seed, in brackets the 95 % interval (t, one "
    "contrast at a time); negative is better."
)


def _effects(grid: Grid, seen: Sequence[Outcome]) -> Section | None:
    axes: dict[str, dict[str, None]] = {}
    for arm in grid.arms:
        for path, label in arm.levels:
            axes.setdefault(path, {})[label] = None
    axes = {path: labels for path, labels in axes.items() if len(labels) > 1}
    if grid.study.design != "factorial" or len(axes) < 2:
        return None
    scores: dict[Cell, dict[int, float]] = {}
    levels = {base_of(arm): dict(arm.levels) for arm in grid.arms}
    for name, own in _best_scores(seen).items():
        if levels.get(name):
            scores[tuple(levels[name][path] for path in axes)] = own
    names = {path: tuple(labels) for path, labels in axes.items()}
    lost = missing(names, scores)
    short = short_paths(names)
    rows = [
        {
            "effect": " x ".join(effect.values),
            "axes": " x ".join(short[path] for path in effect.axes),
            "bits/byte": spoken(effect.comparison),
            "seeds": str(effect.comparison.seeds),
            "reading": resolved(effect.comparison),
        }
        for effect in effects(names, scores)
        if effect.comparison.difference is not None
    ]
    if not rows:
        return None
    said = [f"not in any contrast, since it has no score: {' '.join(cell)}" for cell in lost]
    if grid.ladder is not None:
        said.append("every cell stands at its own best rate")
    return Section(
        "effects", f"{grid.name}, effects", EFFECTS, (("main effects, then interactions", rows),), tuple(said)
    )


def _best_scores(seen: Sequence[Outcome]) -> dict[str, dict[int, float]]:
    """Scores by seed of every arm, at its best rate where it has several."""
    found = {curve.arm: curve.scores[curve.best] for curve in curves(seen) if curve.best is not None}
    for outcome in seen:
        if outcome.trial.arm.rate is None and (bits := score(outcome)) is not None:
            found.setdefault(outcome.trial.arm.name, {})[outcome.result.seed] = bits
    return found


# -- paths ------------------------------------------------------------------------------------------------------------

PATH = (
    "Every rung keeps what the rungs before it changed. Bits per byte, paired by seed, in brackets the 95 % interval (t, one "
    "comparison at a time); negative is better."
)


def _path(grid: Grid, seen: Sequence[Outcome]) -> Section | None:
    if grid.study.design != "path":
        return None
    scores = _best_scores(seen)
    for arm in grid.arms:  # an ingredient that changes nothing goes by another arm's name
        scores |= {name: scores[arm.name] for name in arm.also if arm.name in scores}
    first = grid.study.drafts[0].name
    greedy = grid.study.greedy
    names = ladder_of(grid, seen)[0] if greedy else [draft.name for draft in grid.study.drafts[1:]]
    rungs = [first, *(name for name in names if scores.get(name))]
    if not scores.get(first) or len(rungs) < 2:
        return None
    means = {name: sum(scores[name].values()) / len(scores[name]) for name in rungs}
    rows, below = [], None
    for name in rungs:
        step = None if below is None else compare(paired(scores[name], scores[below]))
        whole = None if below is None else compare(paired(scores[name], scores[first]))
        rows.append(
            {
                "rung": name,
                "bits/byte": significant(means[name]),
                "to the rung before": spoken(step),
                f"to {first}": spoken(whole),
                "reading of the step": "" if step is None else resolved(step),
            }
        )
        below = name
    said = [f"lowest: {min(rungs, key=means.__getitem__)}"]
    if greedy:
        said.append(
            "each rung was chosen as the best of several by the same scores that are shown, so its step looks better than it "
            "is; train the chosen ladder with fresh seeds to say how much"
        )
    return Section("path", f"{grid.name}, path", PATH, (("in order" if not greedy else "greedily", rows),), tuple(said))

"""What a design's results say beside the table: envelope, effects, path, race. Printed, and written as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console

from zoo.report.rows import of_one_plan
from zoo.report.table import escaped
from zoo.report.terminal import print_table, say
from zoo.report.units import significant
from zoo.trials.effects import Cell, effects, missing
from zoo.trials.envelope import BEST, Curve, gaps, warnings, word
from zoo.trials.follow import agreement, follow_of, ranked
from zoo.trials.grid import Grid
from zoo.trials.names import short_paths
from zoo.trials.racing import Heat, at_steps
from zoo.trials.run import Outcome
from zoo.trials.stages import base_of, by_arm, curves, followed, ladder_of, own_steps, race_standing, score
from zoo.trials.statistics import UNRESOLVED, Comparison, compare, paired

Rows = list[dict[str, str]]


class Section(NamedTuple):
    """Tables with words above and remarks below."""

    name: str  # of its file, without .md
    title: str
    words: str
    tables: tuple[tuple[str, Rows], ...]  # caption, rows of equal keys
    remarks: tuple[str, ...]


def sections(grid: Grid, seen: Sequence[Outcome]) -> list[Section]:
    """The sections that this design has, from all outcomes that were scored by the baseline's evaluation plan."""
    once, others = of_one_plan([*{(o.trial.arm.name, o.result.seed): o for o in seen}.values()], grid.arms[0].name)
    found = [section(grid, once) for section in (_envelope, _effects, _path, _race, _ranking)]
    left = (f"left out, since another evaluation plan scored them: {', '.join(others)}",) if others else ()
    return [section._replace(remarks=(*section.remarks, *left)) for section in found if section is not None]


def markdown(section: Section) -> str:
    """A section as a file of its own."""
    lines = [f"# {escaped(section.title)}", "", section.words, ""]
    for caption, rows in section.tables:
        lines += [caption, "", "| " + " | ".join(map(escaped, rows[0])) + " |", "|" + " --- |" * len(rows[0])]
        lines += ["| " + " | ".join(escaped(cell) for cell in row.values()) + " |" for row in rows]
        lines.append("")
    lines += [f"- {escaped(remark)}" for remark in section.remarks]
    return "\n".join(lines).rstrip() + "\n"


def print_section(console: Console, section: Section) -> None:
    """A section in the terminal."""
    for caption, rows in section.tables:
        print_table(console, f"{section.title}: {caption}", rows, ())
    for remark in section.remarks:
        say(console, remark)


def spoken(comparison: Comparison | None) -> str:
    """``-0.0123 [-0.0200, -0.0046]``: bits per byte, with the 95 % interval where there is one."""
    if comparison is None or comparison.difference is None:
        return ""
    interval = comparison.interval
    return f"{comparison.difference:+.4f}" + ("" if interval is None else f" [{interval[0]:+.4f}, {interval[1]:+.4f}]")


def resolved(comparison: Comparison) -> str:
    """What the interval of one comparison says, no correction for others made."""
    interval = comparison.interval
    if interval is None:
        return "one seed" if comparison.seeds == 1 else ""
    return UNRESOLVED if interval[0] <= 0.0 <= interval[1] else "lower" if interval[1] < 0 else "higher"


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


# -- races ------------------------------------------------------------------------------------------------------------

RACE = (
    "Every rung is a training of its own whose schedule runs to its end. An arm is stopped only where the 95 % interval of its "
    "paired difference to the rung's best lies wholly on the worse side. Bits per byte; negative is better."
)


def _race(grid: Grid, seen: Sequence[Outcome]) -> Section | None:
    if "race" not in grid.study.words:
        return None
    state = race_standing(grid, seen)
    if not state.heats:
        return None
    rows = [_heat_row(heat, state.heats) for heat in state.heats]
    saved = 1.0 - state.spent / state.whole
    plain = (
        f"{state.spent:,} updates; every arm at full length with the same {len(grid.seeds)} seeds takes {state.whole:,}"
    )
    said = [f"spent {plain}: {saved:.0%} saved" if saved >= 0 else f"spent {plain}: {-saved:.0%} more"]
    if len(grid.seeds) == 1:
        said.append("with one seed there is no interval, so no arm is ever stopped")
    if len(state.seeds) > len(grid.seeds):
        added = ", ".join(map(str, state.seeds[len(grid.seeds) :]))
        said.append(f"seeds added at full length where arms were not told apart from the best: {added}")
    if state.wanted:
        said.append(f"not over: {len(state.wanted)} trials are still wanted")
    return Section("race", f"{grid.name}, race", RACE, (("rung by rung", rows),), tuple(said))


def _heat_row(heat: Heat, heats: Sequence[Heat]) -> dict[str, str]:
    mean = sum(heat.scores.values()) / len(heat.scores) if heat.scores else None
    last = heat.steps == max(other.steps for other in heats)
    state = "stopped" if heat.stopped else "best of its rung" if heat.comparison is None else ""
    if not state:
        state = resolved(heat.comparison).replace("higher", "worse") if last else "goes on"
    return {
        "variant": heat.arm,
        "updates": f"{heat.steps:,}",
        "seeds": str(len(heat.scores)),
        "bits/byte": significant(mean),
        "to the rung's best": spoken(heat.comparison),
        "state": state,
    }


# -- longer runs ------------------------------------------------------------------------------------------------------

RANKING = (
    "Arms were ranked by short runs; some of them, the best and others evenly spread over the rest, were trained again for "
    "longer, each with its schedule run to its end. Bits per byte, ranks in parentheses; rho is Spearman's rank correlation "
    "over the arms that both budgets have."
)


def _ranking(grid: Grid, seen: Sequence[Outcome]) -> Section | None:
    asked = follow_of(grid.study.origin, grid.study.words.get("follow"))
    longer = {arm.name for arm in followed(grid, seen)}
    if asked is None or not longer & set(by_arm(seen)):
        return None
    arms = {arm.name: arm for arm in grid.arms}
    scores, budgets = by_arm(seen), [1, *asked.times]
    at: list[dict[str, dict[int, float]]] = []
    for times in budgets:
        own = {n: n if times == 1 else at_steps(a, times * own_steps(a)).name for n, a in arms.items()}
        at.append({name: scores[there] for name, there in own.items() if there in scores})
    steps = own_steps(grid.arms[0])
    heads = [f"{times * steps:,} updates" for times in budgets]
    shown = [name for name in ranked(at[0]) if name in at[1]]
    rows = [{"variant": name, **dict(zip(heads, (_place(name, side) for side in at), strict=True))} for name in shown]
    said = []
    for i, j in [(0, k) for k in range(1, len(at))] + [(k, k + 1) for k in range(1, len(at) - 1)]:
        found = agreement(at[i], at[j])
        if found is not None:
            rho = "not defined" if found.rho is None else f"{found.rho:+.2f} (p = {found.p:.2g})"
            said.append(
                f"{heads[i]} against {heads[j]}: rho {rho} over {found.arms} arms; the best of the shorter runs comes "
                f"{found.best_becomes} of {found.arms} in the longer ones"
            )
    return Section(
        "ranking", f"{grid.name}, longer runs", RANKING, (("the arms that were followed", rows),), tuple(said)
    )


def _place(name: str, scores: dict[str, dict[int, float]]) -> str:
    """``2.4567 (3 of 74)``."""
    order = ranked(scores)
    if name not in order:
        return ""
    return f"{significant(sum(scores[name].values()) / len(scores[name]))} ({order.index(name) + 1} of {len(order)})"

"""Sections on trials of several lengths: races, and rankings of short runs held against longer ones."""

from __future__ import annotations

from collections.abc import Sequence

from zoo.report.section import Section, resolved, spoken
from zoo.report.units import significant
from zoo.trials.follow import agreement, follow_of, ranked
from zoo.trials.grid import Grid
from zoo.trials.racing import Heat, at_steps
from zoo.trials.run import Outcome
from zoo.trials.scores import by_arm
from zoo.trials.stages import followed, own_steps, race_standing

# -- races ------------------------------------------------------------------------------------------------------------

RACE = (
    "Every rung is a training of its own whose schedule runs to its end. An arm is stopped only where the 95 % interval of its "
    "paired difference to the rung's best lies wholly on the worse side. Bits per byte; negative is better."
)


def race(grid: Grid, seen: Sequence[Outcome]) -> Section | None:
    """Where a race stands: who was stopped when and why, what it has saved; None for a grid without one."""
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


def ranking(grid: Grid, seen: Sequence[Outcome]) -> Section | None:
    """Whether the ranking of short trials holds for longer ones; None until one of the longer ones is over."""
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

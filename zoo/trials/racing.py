"""Racing: many arms at small budgets, fewer at larger ones, and further seeds where two arms cannot be told apart.

``grid.race = { rungs = [250, 1000], budget = 30_000 }``: every arm is trained for 250 updates with every seed, those that are
left for 1,000, those then left for the recipe's own number. A rung is a training of its own with its schedule run to the end
(a loss in mid-schedule ranks arms otherwise than their last one), so an arm's earlier rungs are spent, not continued. An arm
is dropped at a rung only where the 95 % interval of its paired difference to the rung's best lies wholly on the worse side:
with one seed nothing is ever dropped. After the last rung the best arm and those not told apart from it get one seed more
at a time, for as long as the updates of all trials together stay within ``budget``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from zoo.core.part import ConfigError, nearest
from zoo.trials.grid import Arm
from zoo.trials.statistics import Comparison, compare, paired

Pair = tuple[Arm, int]  # an arm and a seed
Scores = Mapping[str, Mapping[int, float | None]]  # arm's name at its budget -> seed -> bits per byte, None: no score


class Race(NamedTuple):
    """The rungs of a race in updates, the last of them the recipe's own; and what may be spent."""

    rungs: tuple[int, ...]
    budget: int | None  # updates of all trials together; None: no further seeds


class Heat(NamedTuple):
    """One arm at one rung."""

    arm: str
    steps: int
    scores: dict[int, float]  # by seed
    comparison: Comparison | None  # with the rung's best; None for the best itself
    stopped: str  # why it went no further; empty: it did, or this is the last rung


class Standing(NamedTuple):
    """How far a race is."""

    wanted: tuple[Pair, ...]  # to be trained next; empty: it is over
    heats: tuple[Heat, ...]  # complete ones, rung by rung
    spent: int  # updates so far
    whole: int  # updates of every arm at full length with the grid's seeds
    seeds: tuple[int, ...]  # of the last rung, the added ones included


def race_of(origin: str, value: Any, steps: Mapping[str, int | None]) -> Race | None:
    """What ``grid.race`` says.

    Args:
        origin: the file.
        value: of ``race``.
        steps: the updates of each arm.

    Raises:
        ConfigError: no rising rungs below the arms' own budget, or arms of different budgets.
    """
    if value is None:
        return None
    place = f"{origin}: grid.race"
    if not isinstance(value, Mapping) or "rungs" not in value:
        raise ConfigError(f"{place} = {value!r}: write race = {{ rungs = [250, 1000] }}, in updates")
    for key in value:
        if key not in ("rungs", "budget"):
            raise ConfigError(f"{place}.{key}: unknown key, {nearest(key, ('rungs', 'budget'))}")
    lengths = set(steps.values())
    if len(lengths) > 1 or None in lengths:
        raise ConfigError(f"{place}: arms that race need one budget in steps or tokens; these have several, or seconds")
    full, rungs, budget = lengths.pop(), value["rungs"], value.get("budget")
    fine = isinstance(rungs, list) and rungs and all(type(r) is int and 0 < r < full for r in rungs)
    if not fine or sorted(set(rungs)) != rungs:
        raise ConfigError(
            f"{place}.rungs = {rungs!r}: must be rising numbers of updates below the recipe's own {full:,}"
        )
    if budget is not None and (type(budget) is not int or budget < 1):
        raise ConfigError(f"{place}.budget = {budget!r}: must be a number of updates, of all trials together")
    return Race((*rungs, full), budget)


def at_steps(arm: Arm, steps: int) -> Arm:
    """The arm with another number of updates, by its own name; its schedule runs to its end within them."""
    train = arm.recipe.train.model_copy(update={"steps": steps, "tokens": None, "seconds": None})
    name = f"{arm.name} @{steps}"
    return arm._replace(name=name, also=(), recipe=arm.recipe.model_copy(update={"train": train, "variant": name}))


def standing(race: Race, arms: Sequence[Arm], seeds: Sequence[int], scores: Scores) -> Standing:
    """Where a race stands with these scores, and what it wants next; the same scores always give the same answer.

    Args:
        race: its rungs.
        arms: at full length, the baseline first.
        seeds: of every rung.
        scores: of what was trained, by the names that ``at_steps`` gives (at full length: the arm's own).
    """
    heats: list[Heat] = []
    live, spent = list(arms), 0
    whole = len(arms) * len(seeds) * race.rungs[-1]
    for steps in race.rungs:
        last = steps == race.rungs[-1]
        entered = [arm if last else at_steps(arm, steps) for arm in live]
        wanted = tuple((arm, seed) for seed in seeds for arm in entered if seed not in scores.get(arm.name, {}))
        spent += steps * (len(entered) * len(seeds) - len(wanted))
        if wanted:
            return Standing(wanted, tuple(heats), spent, whole, tuple(seeds))
        run = [_scored(scores[arm.name], seeds) for arm in entered]
        judged = _heats([arm.name for arm in live], steps, run, last)
        heats += judged
        live = [arm for arm, heat in zip(live, judged, strict=True) if not heat.stopped]
    return _added(race, live, list(seeds), scores, heats, spent, whole)


def _added(
    race: Race, live: Sequence[Arm], seeds: list[int], scores: Scores, heats: list[Heat], spent: int, whole: int
) -> Standing:
    """One seed after the other for the best and what is not told apart from it, while the budget allows."""
    full = race.rungs[-1]
    before, final = heats[: len(heats) - len(live)], heats[len(heats) - len(live) :]
    while race.budget is not None:
        open_ = [heat.arm for heat in final if heat.comparison is not None and undecided(heat)]
        best = next((heat.arm for heat in final if heat.comparison is None and heat.scores), None)
        pool = [arm for arm in live if arm.name in (*open_, best)]
        if not open_ or best is None or spent + len(pool) * full > race.budget:
            break
        seed = max(seeds) + 1
        seeds.append(seed)
        wanted = tuple((arm, seed) for arm in pool if seed not in scores.get(arm.name, {}))
        if wanted:
            spent += full * (len(pool) - len(wanted))
            return Standing(wanted, (*before, *final), spent, whole, tuple(seeds))
        spent += len(pool) * full
        run = [_scored(scores[arm.name], seeds) for arm in live]
        final = _heats([arm.name for arm in live], full, run, True)
    return Standing((), (*before, *final), spent, whole, tuple(seeds))


def undecided(heat: Heat) -> bool:
    """Whether a heat's difference to the best may still be none."""
    interval = heat.comparison.interval
    return bool(heat.scores) and (interval is None or interval[0] <= 0.0)


def _scored(found: Mapping[int, float | None], seeds: Sequence[int]) -> dict[int, float]:
    return {seed: found[seed] for seed in seeds if found.get(seed) is not None}


def _heats(names: Sequence[str], steps: int, run: Sequence[dict[int, float]], last: bool) -> list[Heat]:
    """The arms of one rung against its best, by the mean over their seeds; one that lost a seed cannot be the best."""
    most = max(map(len, run), default=0)
    means = [math.fsum(r.values()) / len(r) if r and (last or len(r) == most) else math.inf for r in run]
    best = min(range(len(run)), key=means.__getitem__)
    heats = []
    for i, (name, scored) in enumerate(zip(names, run, strict=True)):
        against = None if i == best and scored else compare(paired(scored, run[best]))
        heats.append(Heat(name, steps, scored, against, "" if last else _stop(steps, scored, against, names[best])))
    return heats


def _stop(steps: int, scored: dict[int, float], against: Comparison | None, best: str) -> str:
    if not scored:
        return f"after {steps:,} updates: no run came to a score"
    if against is None or against.interval is None or against.interval[0] <= 0.0:
        return ""
    low, high = against.interval
    return f"after {steps:,} updates: {against.difference:+.4f} [{low:+.4f}, {high:+.4f}] bits/byte behind {best}"

"""Which trials come next: all at once for most grids, and decided from results where a design says so.

A race drops arms between its rungs, a greedy path chooses its next ingredient, an envelope extends its range. Each decision
follows from stored results alone, so a grid that was stopped goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from zoo.budget import total_steps
from zoo.core.part import ConfigError
from zoo.result import Result, notes
from zoo.scoring.plan import Plan, plan_of
from zoo.trials.designs import rung
from zoo.trials.envelope import beyond, moved
from zoo.trials.follow import chosen, follow_of, ranked
from zoo.trials.grid import Arm, Grid, arms_of
from zoo.trials.racing import Pair, Race, Standing, at_steps, race_of, standing
from zoo.trials.run import Outcome, Ready, Trial, View, data_key, make_ready
from zoo.trials.scores import base_of, best_means, by_arm, curves, score

EXTEND = 3  # rates that lr_extend = true may add to an arm


def staged(
    grid: Grid,
    wanted: Sequence[Arm],
    everything: Ready,
    train: Callable[[Ready], Iterator[Outcome]],
    view: View,
) -> Iterator[Outcome]:
    """Train what the design asks for, stage by stage.

    Args:
        grid: as planned.
        wanted: the arms that were asked for; where these are not all, there is one stage.
        everything: the grid's own trials and their text.
        train: trains the trials of a Ready and yields their outcomes.
        view: told of text being prepared.
    """
    names = {arm.name for arm in wanted}
    if len(names) < len(grid.arms) or not is_staged(grid):
        yield from train(everything._replace(trials=tuple(t for t in everything.trials if t.arm.name in names)))
        return
    _check_plans(grid, everything)
    seen: list[Outcome] = []
    while pairs := further(grid, seen):
        count = len(seen)
        for outcome in train(_ready(grid, pairs, everything, view)):
            seen.append(outcome)
            yield outcome
        if len(seen) == count:
            return


def check_stages(grid: Grid) -> None:
    """Whether what ``[grid]`` says of later stages can be.

    Raises:
        ConfigError: it cannot, and why.
    """
    limit_of(grid)
    race(grid)
    if follow_of(grid.study.origin, grid.study.words.get("follow")) is not None:
        for arm in grid.arms:
            own_steps(arm)


def is_staged(grid: Grid) -> bool:
    """Whether some trials are only known from the results of others."""
    return grid.study.greedy or bool(limit_of(grid)) or bool({"race", "follow"} & set(grid.study.words))


def limit_of(grid: Grid) -> int:
    """How many rates may be added to an arm.

    Raises:
        ConfigError: ``lr_extend`` is neither true, false, nor a number.
    """
    value = grid.study.words.get("lr_extend", 0)
    if type(value) not in (bool, int) or value < 0:
        raise ConfigError(f"{grid.study.origin}: grid.lr_extend = {value!r}: must be true, false or a number of rates")
    return EXTEND if value is True else int(value)


def _ready(grid: Grid, pairs: Sequence[Pair], everything: Ready, view: View) -> Ready:
    """The trials of these pairs: the grid's own where it has them, new ones made ready."""
    known = {(t.arm.name, t.recipe.train.seed): t for t in everything.trials}
    new = {arm.name: arm for arm, seed in pairs if (arm.name, seed) not in known}
    prepared = everything.prepared
    if new:
        seeds = tuple(dict.fromkeys(seed for _, seed in pairs))
        larger = grid._replace(arms=(*grid.arms, *new.values()), seeds=seeds)  # a role may be used by other arms alone
        made = make_ready(larger, tuple(new.values()), view)
        known |= {(t.arm.name, t.recipe.train.seed): t for t in made.trials if t.arm.name in new}
        prepared = prepared | made.prepared
    ready = Ready(tuple(known[arm.name, seed] for arm, seed in pairs), prepared)
    _check_plans(grid, ready)
    return ready


def _check_plans(grid: Grid, ready: Ready) -> None:
    """Nothing is decided between arms whose scores cannot be compared.

    Raises:
        ConfigError: a race, a greedy path or a choice of arms to follow over several evaluation plans.
    """
    if not grid.study.greedy and not {"race", "follow"} & grid.study.words.keys():
        return
    plans = {_plan_of(trial, ready).hash: trial.arm.name for trial in ready.trials}
    if len(plans) > 1:
        one, other, *_ = plans.values()
        why = f"{one!r} and {other!r} are scored on other text, at another context or by another scorer"
        raise ConfigError(f"{grid.study.origin}: grid: {why}, so nothing can be decided between them")


def _plan_of(trial: Trial, ready: Ready) -> Plan:
    return plan_of(trial.recipe.evaluate.scorer, trial.recipe.model.context, ready.prepared[data_key(trial.recipe)])


def further(grid: Grid, seen: Sequence[Outcome]) -> list[Pair]:
    """What is to be trained next, given everything that was trained; empty: nothing."""
    if "race" in grid.study.words:
        return list(race_standing(grid, seen).wanted)
    arms = {arm.name: arm for arm in (*grid.arms, *(o.trial.arm for o in seen))}
    for more in (tuple(arms.values()), _extended(grid, seen), _next_rung(grid, seen), followed(grid, seen)):
        have = {(o.trial.arm.name, o.result.seed) for o in seen}
        pairs = [(arm, seed) for seed in grid.seeds for arm in more if (arm.name, seed) not in have]
        if pairs:
            return pairs
    return []


# -- races ------------------------------------------------------------------------------------------------------------


def race(grid: Grid) -> Race | None:
    """The grid's race, checked."""
    words = grid.study.words
    if "race" in words and (grid.study.greedy or limit_of(grid) or "follow" in words):
        raise ConfigError(f"{grid.study.origin}: grid.race: goes with no greedy path, no lr_extend and no follow")
    return race_of(grid.study.origin, words.get("race"), {arm.name: total_steps(arm.recipe) for arm in grid.arms})


def race_standing(grid: Grid, seen: Sequence[Outcome]) -> Standing:
    """Where the grid's race stands."""
    found: dict[str, dict[int, float | None]] = {}
    for outcome in seen:
        found.setdefault(outcome.trial.arm.name, {})[outcome.result.seed] = score(outcome)
    return standing(race(grid), grid.arms, grid.seeds, found)


def stopped(grid: Grid, seen: Sequence[Outcome], everything: Ready) -> list[Outcome]:
    """A stand-in for each full-length trial that a race did not come to, so that it stays in the table."""
    if "race" not in grid.study.words:
        return []
    why = {heat.arm: heat.stopped for heat in race_standing(grid, seen).heats if heat.stopped}
    found = [trial for trial in everything.trials if trial.arm.name in why]
    return [_stopped(t, why[t.arm.name], everything) for t in found]


def _stopped(trial: Trial, why: str, everything: Ready) -> Outcome:
    cost = trial.forecast.cost
    result = Result(
        status="stopped",
        reason=why,
        name=trial.recipe.name,
        variant=trial.recipe.variant,
        seed=trial.recipe.train.seed,
        parameters=cost.parameters,
        active_parameters=cost.active_parameters,
        flops_per_token=cost.flops_per_token,
        plan=_plan_of(trial, everything),
        facts=dict(everything.prepared[data_key(trial.recipe)].facts),
        notes=notes(trial.recipe),
    )
    return Outcome(trial, result, False, False)


def beyond_plan(grid: Grid, seen: Sequence[Outcome]) -> list[Outcome]:
    """What later stages trained at the grid's own length, for the table: added rates and rungs, added seeds."""
    full = {arm.name for arm in grid.arms}
    if "race" in grid.study.words:
        return [o for o in seen if o.trial.arm.name in full and o.result.seed not in grid.seeds]
    longer = {arm.name for arm in followed(grid, seen)}
    return [o for o in seen if o.trial.arm.name not in full | longer]


# -- envelopes and greedy paths ---------------------------------------------------------------------------------------


def _extended(grid: Grid, seen: Sequence[Outcome]) -> tuple[Arm, ...]:
    """For each arm whose best rate is the last on its side, the next one there."""
    limit = limit_of(grid)
    if not limit or grid.ladder is None:
        return ()
    new = []
    for curve in curves(seen):
        value = beyond(curve, grid.ladder.values, limit)
        if value is not None:
            like = next(o.trial.arm for o in seen if base_of(o.trial.arm) == curve.arm)
            name = f"{curve.arm} {grid.ladder.label(value)}"
            recipe = moved(like.recipe, value / like.rate.value).model_copy(update={"variant": name})
            rate = like.rate._replace(value=value)
            new.append(like._replace(name=name, recipe=recipe, rate=rate, also=()))
    return tuple(new)


def ladder_of(grid: Grid, seen: Sequence[Outcome]) -> tuple[list[str], tuple[Arm, ...]]:
    """A greedy path as far as the results carry it: the rungs chosen, and the arms between which the next is decided."""
    means = best_means(seen)
    chosen, left, rungs = [], list(grid.study.ingredients), []
    while left:
        drafts = [rung(grid.study, [*chosen, draft]) for draft in left]
        if any(draft.name not in means for draft in drafts):
            return rungs, arms_of(grid, drafts)
        best = min(range(len(left)), key=lambda i: means[drafts[i].name])
        chosen.append(left.pop(best))
        rungs.append(drafts[best].name)
    return rungs, ()


def _next_rung(grid: Grid, seen: Sequence[Outcome]) -> tuple[Arm, ...]:
    return ladder_of(grid, seen)[1] if grid.study.greedy else ()


# -- longer runs ------------------------------------------------------------------------------------------------------


def followed(grid: Grid, seen: Sequence[Outcome]) -> tuple[Arm, ...]:
    """The longer runs that the results of the grid's own arms ask for, the shortest first."""
    asked = follow_of(grid.study.origin, grid.study.words.get("follow"))
    if asked is None:
        return ()
    arms = {arm.name: arm for arm in grid.arms}
    names = ranked(by_arm([o for o in seen if o.trial.arm.name in arms]))
    longer = []
    for times, n in zip(asked.times, asked.arms, strict=True):
        names = chosen(names, n)
        longer += [at_steps(arms[name], times * own_steps(arms[name])) for name in names]
    return tuple(longer)


def own_steps(arm: Arm) -> int:
    """The updates of an arm.

    Raises:
        ConfigError: a budget in seconds.
    """
    steps = total_steps(arm.recipe)
    if steps is None:
        raise ConfigError("grid.follow: arms with a budget in seconds have no number of updates to multiply")
    return steps

"""Outcomes of trials that nobody trained, for tests of what is shown of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from zoo.cost import Cost
from zoo.resolve import loads
from zoo.result import Result
from zoo.scoring.plan import Plan, plan_of
from zoo.trials.check import Forecast
from zoo.trials.grid import Arm, trial_recipe
from zoo.trials.run import Outcome, Trial


def plan(text: str = "abc", n_bytes: int = 1000, tokens: str = "t", toml: str = "") -> Plan:
    recipe = loads(toml)
    told = SimpleNamespace(valid_text=text, valid_bytes=n_bytes, tokenizer=SimpleNamespace(fingerprint=lambda: tokens))
    return plan_of(recipe.evaluate.scorer, recipe.model.context, told)


COST = Cost(1_234_567, {}, {}, 234_567, 9.5e6, 10)


def outcome(name: str, bits: float | None, seed: int = 0, status: str = "done", toml: str = "", **more: Any) -> Outcome:
    recipe = loads(toml).model_copy(update={"variant": name})
    arm = Arm(name, recipe)
    trial = Trial(arm, trial_recipe(arm, seed), Forecast(COST, 10, 64, frozenset(), ()), f"{name}{seed}")
    more = {"plan": plan(toml=toml), **more}
    result = Result(
        status=status,
        name="r",
        variant=name,
        seed=seed,
        bits_per_byte=bits,
        valid_loss=bits,
        parameters=COST.parameters,
        active_parameters=COST.active_parameters,
        flops_per_token=COST.flops_per_token,
        **more,
    )
    return Outcome(trial, result, fresh=True, stale=False)

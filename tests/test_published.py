"""The recipes reproduce the published systems: counts, rates, and losses before the first update."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import zoo
from zoo.core.wires import noise_key
from zoo.cost import cost
from zoo.recipe import Recipe

RECIPES = Path(__file__).parents[1] / "recipes"


def full(name: str, *sets: str) -> Recipe:
    return zoo.load(RECIPES / f"{name}.toml", profile="full", sets=list(sets))


def test_deepseek_12l_has_exactly_the_published_parameters() -> None:
    counted = cost(full("deepseek_12L").model)
    layers = sum(n for part, n in counted.by_part.items() if part.startswith("layer."))
    assert counted.parameters == 159_019_568
    assert counted.by_part["embedding"] == 25_165_824
    assert layers == 108_687_408
    assert counted.by_part["norm"] == 512
    assert counted.by_part["head"] == 25_165_824
    assert counted.active_parameters == 108_626_480


def test_compact_10l_has_exactly_the_published_parameters() -> None:
    assert cost(full("compact_10L").model).parameters == 24_730_705


def test_compact_10l_with_the_claimed_gate_has_more_than_ran() -> None:
    gate = 'model.layer.attention.output=[{kind="gate", per="headwise", bias=0.0}]'
    gated = full("compact_10L", "model.where=[]", gate)
    assert cost(gated.model).parameters == 24_771_745


@pytest.mark.parametrize(
    ("sets", "parameters", "active"),
    [((), 679_809_792, 226_824_960), (("model.layer.ffn.expert_bias=0.0",), 680_350_464, 226_960_128)],
)
def test_deepseek_24l_has_exactly_the_derived_parameters(sets: tuple[str, ...], parameters: int, active: int) -> None:
    counted = cost(full("deepseek_24L", *sets).model)
    assert (counted.parameters, counted.active_parameters) == (parameters, active)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (10, 1.5e-05),
        (100, 1.5e-04),
        (250, 3.75e-04),
        (1000, 1.5e-03),
        (1500, 1.41667e-03),
        (2500, 1.25e-03),
        (5000, 8.33333e-04),
        (9000, 1.66667e-04),
        (10_000, 0.0),
    ],
)
def test_deepseek_24l_logs_the_published_rates(step: int, rate: float) -> None:
    recipe = full("deepseek_24L")
    for optimizer in recipe.optim.values():
        now = optimizer.lr * recipe.schedule.build().scale(step, recipe.train.steps)
        assert f"{now:.6g}" == f"{rate:.6g}" or now == pytest.approx(rate, rel=5e-6)


def first_loss(recipe: Recipe) -> float:
    torch.manual_seed(0)
    tokens = torch.randint(0, recipe.model.vocab_size, (4, 65))
    model = zoo.Model(recipe.model, seed=0)
    with torch.no_grad():
        return float(model(tokens[:, :-1], tokens[:, 1:], noise=noise_key(0)).nll.mean())


@pytest.mark.parametrize("name", ["deepseek_24L", "deepseek_12L", "compact_10L", "quickstart"])
def test_the_first_loss_is_that_of_a_uniform_guess(name: str) -> None:
    recipe = zoo.load(RECIPES / f"{name}.toml", profile="full" if name == "quickstart" else "cpu")
    if recipe.model.vocab_size is None:
        sized = recipe.model.model_copy(update={"vocab_size": 1024})
        recipe = recipe.model_copy(update={"model": sized})
    assert first_loss(recipe) == pytest.approx(math.log(recipe.model.vocab_size), abs=0.1)


def test_the_cards_first_loss_follows_from_its_first_draw() -> None:
    """ln V + D std^2 / 2, the mean of a log-sum of exponentials of N(0, D std^2) logits, at full width and vocabulary."""
    recipe = full("deepseek_24L", "model.n_layers=1", "model.layer.ffn.n_experts=2", "model.layer.ffn.hidden_dim=64")
    expected = math.log(49_152) + 768 * 0.02**2 / 2
    assert first_loss(recipe) == pytest.approx(expected, abs=0.05)
    assert expected == pytest.approx(10.956, abs=5e-4)


@pytest.mark.parametrize("name", ["deepseek_24L", "deepseek_12L", "compact_10L"])
def test_the_small_profile_keeps_every_layer_and_every_kind(name: str) -> None:
    def kinds(recipe: Recipe) -> set[str]:
        from zoo.resolve import parts_of

        return {part.kind for layer in recipe.model.layers() for _, part in parts_of(layer)}

    big, small = full(name), zoo.load(RECIPES / f"{name}.toml", profile="cpu")
    assert small.model.n_layers == big.model.n_layers
    assert kinds(small) == kinds(big)

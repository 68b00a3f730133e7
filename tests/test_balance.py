"""What keeps the load of experts even: the losses against transformers, the biases by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from mixtures import DIM, E, K, build, run, stream
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.core.slots import Balance, Site
from zoo.core.wires import Bus
from zoo.model import Model, ModelConfig


@pytest.mark.parametrize("balance", ["none", "aux_loss", "loss_free"])
def test_the_load_counts_every_choice_while_training(balance: str):
    block, x = build(balance=balance), stream(3, 7, DIM)
    _, _, stats = run(block, x)
    assert stats["/load"].sum() == K * 21
    assert stats["/load"].dtype == torch.int64
    assert {key: value.tolist() for key, value in stats.items()} == dict.fromkeys(stats, stats["/load"].tolist())
    assert stats.keys() == ({"/load", "balance/load"} if balance == "loss_free" else {"/load"})


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_aux_loss_equals_transformers_for_one_layer(top_k: int):
    logits = stream(64, E, dtype=torch.float32)
    expected = load_balancing_loss_func((logits,), E, top_k)
    probs = logits.softmax(-1)
    counts = torch.bincount(probs.topk(top_k, -1).indices.flatten(), minlength=E)
    for at_balance, factor in (("k", 1.0), ("one", 1 / top_k)):
        balance, bus = (
            Balance.parse({"kind": "aux_loss", "weight": 0.5, "at_balance": at_balance}).build(Site(E)),
            Bus(),
        )
        balance.observe(probs, counts, bus)
        loss = bus.close()[1].losses["/balance"]
        torch.testing.assert_close(loss, 0.5 * factor * expected)
        (grad,), (want,) = (torch.autograd.grad(t, logits, retain_graph=True) for t in (loss, expected))
        torch.testing.assert_close(grad, 0.5 * factor * want)


@pytest.mark.parametrize(("at_balance", "even", "collapsed"), [("one", 1.0, E / K), ("k", K, E)])
def test_aux_loss_at_an_even_load_and_at_full_collapse(at_balance: str, even: float, collapsed: float):
    balance = Balance.parse({"kind": "aux_loss", "weight": 1.0, "at_balance": at_balance}).build(Site(E))

    def loss(probs: Tensor, counts: list[int]) -> float:
        bus = Bus()
        balance.observe(probs, torch.tensor(counts), bus)
        return bus.close()[1].losses["/balance"].item()

    assert loss(torch.full((E, E), 1 / E), [K] * E) == pytest.approx(even)
    two = torch.zeros(10, E)
    two[:, :K] = 1 / K
    assert loss(two, [10] * K + [0] * (E - K)) == pytest.approx(collapsed)


def test_aux_loss_sees_sigmoid_scores_normalised_over_experts():
    block, x = build(score="sigmoid", balance={"kind": "aux_loss", "weight": 1.0}), stream(3, 7, DIM)
    _, losses, stats = run(block, x)
    scores = (x.flatten(0, 1) @ block.router.weight.T).sigmoid()
    mean = (scores / scores.sum(-1, keepdim=True)).mean(0)
    torch.testing.assert_close(losses["balance/balance"], E / K * (stats["/load"] / 21 * mean).sum())
    assert list(losses) == ["balance/balance"]


def test_z_loss_equals_transformers():
    block, x = build(z_loss=0.1, router_bias=0.0), stream(3, 7, DIM)
    logits = x @ block.router.weight.T + block.router.bias
    torch.testing.assert_close(run(block, x)[1]["/router_z"], 0.1 * router_z_loss_func(logits))


def loss_free(**knobs: Any) -> Balance:
    return Balance.parse({"kind": "loss_free", **knobs}).build(Site(4))


def test_loss_free_moves_each_bias_by_the_rate_against_its_load():
    balance = loss_free(rate=0.5)
    balance.after_step({"load": torch.tensor([10, 0, 4, 2])})  # the mean is 4
    assert balance.bias.tolist() == [-0.5, 0.5, 0.0, 0.5]
    balance.after_step({"load": torch.tensor([3, 3, 3, 7])})
    assert balance.bias.tolist() == [0.0, 1.0, 0.5, 0.0]


def test_loss_free_centred_moves_keep_the_sum_of_the_biases():
    balance = loss_free(rate=0.5, centre="mean")
    balance.after_step({"load": torch.tensor([10, 0, 4, 2])})
    assert balance.bias.tolist() == [-0.625, 0.375, -0.125, 0.375]


def test_loss_free_judges_by_a_running_average():
    balance = loss_free(rate=0.5, update="running", decay=0.75)
    balance.after_step({"load": torch.tensor([16, 0, 0, 0])})
    assert balance.bias.tolist() == [-0.5, 0.5, 0.5, 0.5]
    assert balance.average.tolist() == [0.25, 0.0, 0.0, 0.0]
    balance.after_step({"load": torch.tensor([0, 4, 6, 6])})  # still the first expert has had the most
    torch.testing.assert_close(balance.average, torch.tensor([0.1875, 0.0625, 0.09375, 0.09375]))
    assert balance.bias.tolist() == [-1.0, 1.0, 1.0, 1.0]


def test_loss_free_bias_is_saved_and_is_no_parameter():
    block = build(balance={"kind": "loss_free", "update": "running"})
    assert {"balance.bias", "balance.average"} <= block.state_dict().keys()
    assert not [name for name, _ in block.named_parameters() if "balance" in name]


def test_loss_free_evens_out_a_skewed_router():
    """MaxVio, the excess of the largest load over the mean, falls from over 1 to under 0.15."""
    balance, generator = Balance.parse("loss_free").build(Site(E)), torch.Generator().manual_seed(0)
    skew, violation = torch.linspace(-1, 1, E), []
    for _ in range(500):
        scores = (torch.randn(512, E, generator=generator) + skew).sigmoid()
        load = torch.bincount(balance.select(scores).topk(K, -1).indices.flatten(), minlength=E)
        violation.append((load.max() / load.double().mean() - 1).item())
        balance.after_step({"load": load})
    assert violation[0] > 1
    assert sum(violation[-20:]) / 20 < 0.15


def test_the_model_gives_each_layer_its_own_load():
    layer = {"kind": "pre_norm", "ffn": {"kind": "moe", "hidden_dim": 8}}
    sizes = {"vocab_size": 32, "context": 16, "dim": 16, "n_layers": 2}
    model = Model(ModelConfig.model_validate({**sizes, "layer": layer}))
    out = model(torch.arange(16)[None], torch.arange(16)[None])
    model.after_step(out.stats)
    for i, layer in enumerate(model.layer):
        load = out.stats[f"layer.{i}.ffn.balance/load"].float()
        torch.testing.assert_close(layer.ffn.balance.bias, 1e-3 * torch.sign(load.mean() - load))
    assert not torch.equal(model.layer[0].ffn.balance.bias, model.layer[1].ffn.balance.bias)

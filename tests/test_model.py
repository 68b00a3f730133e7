"""The model: wires that fit, patches of layers, first draws that a neighbour cannot change, nothing remembered."""

from __future__ import annotations

import copy
import random
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from faults import planted
from pydantic import ValidationError
from torch import Tensor, nn

from zoo.core.model_config import select
from zoo.core.params import Role, roles
from zoo.core.part import ConfigError
from zoo.core.slots import Site, Stem
from zoo.core.tables import tabulate
from zoo.core.wires import Bus, Wire, noise_key
from zoo.model import Model, ModelConfig, Stage
from zoo.testing.hosts import SITE, Place, all_kinds, describe, label, places
from zoo.testing.training import objective, trace
from zoo.testing.values import put, random_model


def small(**knobs: Any) -> ModelConfig:
    return ModelConfig(**{"vocab_size": 23, "dim": 16, "n_layers": 3, "context": 16} | knobs)


TOKENS = torch.arange(18).view(2, 9)


# Layers and patches


def test_a_selection_reads_as_python_does():
    assert select("-2:", 5) == [3, 4]
    assert select("::2", 5) == [0, 2, 4]
    assert select("1,-1", 5) == [1, 4]
    assert select(3, 5) == [3]
    assert select("all", 2) == [0, 1]
    for wrong in ("7", "x", "", "3:1", None):
        with pytest.raises(ConfigError, match="selects none of the 5 layers"):
            select(wrong, 5)


def test_patches_change_the_layers_they_select_in_order():
    where = [{"layers": "1:", "ffn": "relu2"}, {"layers": "-1", "ffn": {"hidden_dim": 8}, "attention": {"n_heads": 2}}]
    layers = small(where=where).layers()
    assert [layer.ffn.part.kind for layer in layers] == ["swiglu", "relu2", "relu2"]
    assert [layer.ffn.hidden_dim for layer in layers] == [None, None, 8]
    assert [layer.attention.n_heads for layer in layers] == [4, 4, 2]


def test_of_equal_layers_one_is_tried_on_the_meta_device(monkeypatch: pytest.MonkeyPatch):
    called = []
    forward = Stage.forward
    monkeypatch.setattr(Stage, "forward", lambda self, *given: called.append(self) or forward(self, *given))
    with torch.device("meta"):
        alike = Model(small(n_layers=6), seed=None)
        assert called == alike.stages[:2] and alike.training
        called.clear()
        other = Model(small(n_layers=6, where=[{"layers": "3", "ffn": "relu2"}]), seed=None)
        assert called == [other.stages[i] for i in (0, 1, 4)]
        called.clear()
        layer = {"attention": {"kind": "gqa", "value": "residual"}}
        handing_on = Model(small(n_layers=6, layer={"kind": "pre_norm", **layer}), seed=None)
    assert called == handing_on.stages[:3]  # the first layer writes what the others are given


def test_a_patch_that_does_not_fit_is_named():
    with pytest.raises(ValidationError, match=r"where\[0\].*unknown key, did you mean 'attention'"):
        small(where=[{"layers": "0", "attenton": "gqa"}])


# Wires

SAID = Wire("said", "B T D")


def speaker(reads: tuple[Wire, ...] = (), writes: tuple[Wire, ...] = ()) -> type[Stem]:
    class Speaker(Stem, kind=f"speaker_{len(reads)}{len(writes)}"):
        """Reads and writes wires."""

        def __init__(self, cfg: Stem.Config, site: Site) -> None:
            super().__init__()

        def forward(self, x: Tensor, bus: Bus) -> Tensor:
            for wire in type(self).writes:
                bus[wire] = 2 * x
            return x + sum(bus[wire] for wire in type(self).reads)

    Speaker.reads, Speaker.writes = reads, writes
    return Speaker


def test_a_wire_that_nobody_writes_is_named_while_building():
    with planted():
        speaker(reads=(SAID,))
        with pytest.raises(ConfigError, match=r"layer.1 reads wire 'said', which nothing before it writes"):
            Model(small(where=[{"layers": "1", "stem": ["speaker_10"]}]))


def test_a_wire_of_another_shape_is_named_with_both_layers():
    with planted():
        speaker(writes=(SAID,))
        speaker(reads=(Wire("said", "B T H"),))
        where = [{"layers": "0", "stem": ["speaker_01"]}, {"layers": "2", "stem": ["speaker_10"]}]
        with pytest.raises(
            ConfigError, match=r"'said' is written by layer.0 as \(B T D\) but layer.2 takes it as \(B T H"
        ):
            Model(small(where=where))


def test_a_wire_goes_from_the_layer_that_writes_to_the_layer_that_reads():
    with planted():
        speaker(writes=(SAID,))
        speaker(reads=(SAID,))
        mute = {"ffn": {"kind": "relu2"}, "attention": "gqa"}
        where = [{"layers": "0", "stem": ["speaker_01"]}, {"layers": "2", "stem": ["speaker_10"]}]
        model = Model(
            small(norm="none", layer={"kind": "pre_norm", "norm": "none", **mute}, where=where, head="untied")
        )
        for name, p in model.named_parameters():
            if name.endswith(("projection.weight", "down.weight")):
                nn.init.zeros_(p)  # every branch is silent: the stream is the embedding
        stream = model.embedding(TOKENS)
        torch.testing.assert_close(model(TOKENS).logits, model.head.logits(stream + 2 * stream))


def test_a_stage_hands_in_exactly_what_its_blocks_declare():
    with planted():
        nosy = speaker(writes=(SAID,))

        def look(self: Stem, x: Tensor, bus: Bus) -> Tensor:
            return x + bus[SAID]

        deaf = speaker()
        deaf.forward = look
        assert nosy.writes == (SAID,)
        where = [{"layers": "0", "stem": ["speaker_01"]}, {"layers": "1", "stem": ["speaker_00"]}]
        with pytest.raises(KeyError):
            Model(small(where=where))


def test_heads_that_cannot_share_values_are_named_while_building():
    shared = {"kind": "pre_norm", "attention": {"kind": "gqa", "value": "residual"}}
    with pytest.raises(ConfigError, match=r"layer.1: wire 'v0' carries .* from an earlier layer"):
        Model(small(layer=shared, where=[{"layers": "1", "attention": {"n_kv_heads": 2}}]))


# First draws

BASE = {"kind": "pre_norm", "ffn": {"kind": "moe", "balance": "none", "hidden_dim": 8}}
HOSTS = {None, "pre_norm", "gqa", "moe"}  # of the base: None is the model
SWAPS = [
    (label(part), place)
    for part in all_kinds()
    for place in places(part)
    if part.slot != "init"
    and {step.host.part.kind if step.host is not ModelConfig else None for step in place} <= HOSTS
]


@pytest.mark.parametrize(("name", "place"), SWAPS, ids=lambda item: item if isinstance(item, str) else describe(item))
def test_swapping_one_block_leaves_every_other_initial_tensor_as_it_was(name: str, place: Place):
    sizes = {"vocab_size": 23, "dim": 16, "n_layers": 2}
    swapped = {"layer": copy.deepcopy(BASE)}
    put(swapped, place, {"kind": name.split(".")[1]})
    try:
        after = dict(Model(ModelConfig(**sizes, **swapped), seed=3).named_parameters())
    except ConfigError:
        assert (name, describe(place)) == ("stem.x0_mix", "model.stem")
        return
    before = dict(Model(ModelConfig(**sizes, layer=BASE), seed=3).named_parameters())
    knobs = [step.knob for step in place]
    outside = r"layer\." if knobs[0] == "layer" else ""
    inside = r"\d+\." + "".join(rf"{k}\." for k in knobs[1:-1]) if len(knobs) > 1 else ""
    own = re.compile(f"{outside}{inside}.*{knobs[-1][-4:] if len(knobs) > 1 or not outside else ''}")
    others = {n for n in before.keys() | after.keys() if not own.match(n)}
    assert all(torch.equal(before[n], after[n]) for n in others)
    assert len(others) >= 2


def test_the_draw_follows_from_seed_and_name_alone():
    config = small(head="untied")
    first = dict(Model(config, seed=5).named_parameters())
    torch.rand(100)
    double = dict(Model(config, seed=5).double().named_parameters())
    torch.set_default_dtype(torch.float64)
    try:
        born_double = dict(Model(config, seed=5).named_parameters())
    finally:
        torch.set_default_dtype(torch.float32)
    for name, p in first.items():
        assert torch.equal(p.double(), double[name])
        assert torch.equal(p.double(), born_double[name].double())
    other = dict(Model(config, seed=6).named_parameters())
    assert not any(torch.equal(p, other[name]) for name, p in first.items() if p.ndim > 1)
    twins = [first[f"layer.{i}.attention.query.weight"] for i in range(3)]
    assert not torch.equal(twins[0], twins[1])


def test_roles_survive_a_deep_copy_and_a_copy_shares_nothing():
    model = Model(small(stem=["bigram_hash", "smear_gate"], trunk="unet"))
    twin = copy.deepcopy(model)
    assert roles(twin) == roles(model)
    assert {Role.MATRIX, Role.EMBEDDING, Role.SCALAR, Role.CONTROL} <= set(roles(twin).values())
    nn.init.zeros_(twin.embedding.weight)
    assert not torch.equal(model(TOKENS).logits, twin(TOKENS).logits)
    assert twin(TOKENS).logits.unique().numel() == 1  # its tied head reads its own embedding


def test_the_state_is_named_as_the_recipe_is():
    config = small(layer={"kind": "pre_norm", "ffn": {"kind": "moe", "balance": "loss_free"}}, trunk="unet")
    names = set(Model(config).state_dict())
    assert {"embedding.weight", "layer.2.attention.query.weight", "layer.0.ffn.balance.bias", "trunk.skip"} <= names
    assert not [name for name in names if name.startswith("stages")]


# Calls


def test_with_targets_there_are_no_logits_and_without_no_loss():
    model = Model(small())
    assert model(TOKENS).nll is None
    assert model(TOKENS, TOKENS).logits is None
    assert model(TOKENS, TOKENS).nll.shape == (2, 9)


def test_losses_are_summed_over_layers_and_stats_are_told_apart():
    moe = {"kind": "moe", "balance": {"kind": "aux_loss"}, "z_loss": 0.1}
    model = Model(small(layer={"kind": "pre_norm", "ffn": moe})).train()
    out = model(TOKENS, TOKENS)
    assert set(out.losses) == {"balance", "router_z"}
    assert set(out.stats) >= {f"layer.{i}.ffn/load" for i in range(3)}
    single = Model(small(n_layers=1, layer={"kind": "pre_norm", "ffn": moe})).train()(TOKENS, TOKENS)
    assert out.losses["balance"].item() > 2 * single.losses["balance"].item()
    assert objective(out).item() == pytest.approx(out.nll.mean().item() + sum(v.item() for v in out.losses.values()))


def test_after_step_gives_each_block_its_own_counts_and_nobody_elses():
    moe = {"kind": "moe", "balance": {"kind": "loss_free", "rate": 0.5}, "n_experts": 4, "top_k": 1}
    model = Model(small(layer={"kind": "pre_norm", "ffn": moe}, n_layers=2)).train()
    uneven = torch.tensor([9, 0, 0, 0])
    names = [name for name in model(TOKENS, TOKENS).stats if name.startswith("layer.1.ffn")]
    model.after_step(dict.fromkeys(names, uneven))
    assert model.layer[0].ffn.balance.bias.tolist() == [0.0] * 4
    assert model.layer[1].ffn.balance.bias.tolist() == [-0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("seed", range(8))
def test_a_call_leaves_no_trace_in_any_module(seed: int):
    rng = random.Random(seed)
    config = next(c for _ in range(200) if (c := random_model(rng, site=replace(SITE, dim=16))) is not None)
    model = Model(config).train()
    before = {name: snapshot(module) for name, module in model.named_modules()}
    trace(model, torch.randint(SITE.vocab_size, (2, 10)))
    model.eval()
    with torch.no_grad():
        model(TOKENS % SITE.vocab_size, cache=model.cache(2, 12))
    model.train()
    after = {name: snapshot(module) for name, module in model.named_modules()}
    assert before == after


def snapshot(module: nn.Module) -> dict[str, Any]:
    """What a module holds: plain attributes as text, tensors by identity and version (its count of changes in place)."""
    held = {name: repr(value) for name, value in vars(module).items() if not name.startswith("_")}
    tensors = [*module._buffers.items(), *module._parameters.items()]
    return held | {name: None if t is None else (id(t), t._version) for name, t in tensors}


def test_layers_of_one_structure_hold_the_same_plain_values():
    """A number that differs between layers makes the compiler build a graph for each."""
    for part in all_kinds():
        config = None
        for seed in range(50):
            config = config or random_model(random.Random(seed), (part,), replace(SITE, n_layers=2), layers="alike")
        first, second = Model(config).layer
        for (name, a), (_, b) in zip(first.named_modules(), second.named_modules(), strict=True):
            plain = {k: v for k, v in vars(a).items() if isinstance(v, int | float | str | tuple | type(None))}
            assert plain == {k: vars(b)[k] for k in plain}, (label(part), name)


def test_noise_of_a_shared_block_is_the_same_whatever_stands_beside_it(monkeypatch: pytest.MonkeyPatch):
    moe, noise, drawn = {"kind": "moe", "jitter": 0.3, "balance": "none"}, Bus.noise, []
    monkeypatch.setattr(Bus, "noise", lambda *args: drawn.append(noise(*args)) or drawn[-1])
    for attention in ("gqa", "mla"):
        model = Model(small(layer={"kind": "pre_norm", "ffn": moe, "attention": attention})).train()
        model(TOKENS, TOKENS, noise=noise_key(0, 4))
    beside_gqa, beside_mla = drawn[:3], drawn[3:]
    assert all(torch.equal(a, b) for a, b in zip(beside_gqa, beside_mla, strict=True))
    assert not torch.equal(beside_gqa[0], beside_gqa[1])


def test_a_model_without_a_vocabulary_is_refused():
    with pytest.raises(ConfigError, match="vocab_size"):
        Model(ModelConfig())


def test_a_patch_written_in_python_is_the_patch_that_toml_says() -> None:
    stem = {"kind": "ngram_hash", "orders": (2, 3)}
    config = small(n_layers=2, where=[{"layers": "1", "stem": (stem,)}])
    assert ModelConfig.model_validate(tabulate(config)) == config
    assert config.where[0]["stem"] == [{"kind": "ngram_hash", "orders": [2, 3]}]

"""Multi-head latent attention: DeepSeek's own figures, transformers' classes, and the absorbed way of decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import DIM, HEADS, ORACLES, build, compare, decode, relative, run_ours
from torch import Tensor

from zoo.blocks.mla import MLA
from zoo.core.part import ConfigError
from zoo.core.slots import Attention, Site
from zoo.core.tree import merge
from zoo.core.wires import Bus, Past

SIZES = {"kv_lora_rank": 20, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 14}
TABLE: dict[str, Any] = {"kind": "mla", "n_heads": HEADS, **SIZES}
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 4 + [2] * 8, [0] + [1] * 16])
WAYS = {"absorbed": True, "expanded": False}


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def force(patch: pytest.MonkeyPatch, way: str) -> None:
    patch.setattr(MLA, "_absorbing_pays", lambda self, n_new, n_seen: WAYS[way])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "documents"])
@pytest.mark.parametrize("name", [name for name in ORACLES if "deepseek" in name])
def test_transformers_agrees(name: str, documents: Tensor | None, dtype: torch.dtype) -> None:
    compare(name, dtype, documents)


@pytest.mark.parametrize(
    ("dim", "heads", "q_rank", "rank", "nope", "rope", "value", "parameters"),
    [
        (7168, 128, 1536, 512, 128, 64, 128, 187_107_328),  # DeepSeek-V3
        (64, 4, None, 32, 16, 8, 24, 20_000),
        (64, 4, 48, 32, 16, 8, 24, 21_584),
        (768, 12, None, 192, 64, 32, 64, 1_941_696),
        (512, 8, None, 128, 64, 32, 64, 868_480),
    ],
)
def test_parameters(
    dim: int, heads: int, q_rank: int | None, rank: int, nope: int, rope: int, value: int, parameters: int
) -> None:
    table = {"kind": "mla", "n_heads": heads, "q_lora_rank": q_rank, "kv_lora_rank": rank}
    widths = {"qk_nope_head_dim": nope, "qk_rope_head_dim": rope, "v_head_dim": value}
    with torch.device("meta"):
        block = Attention.parse({**table, **widths}).build(Site(dim=dim))
    assert sum(p.numel() for p in block.parameters()) == parameters
    assert block.cache_elements() == rank + rope


def test_widths_that_are_not_given_follow_the_head() -> None:
    """In DeepSeek-V3's proportions: its head of 128 gives its 512, 128, 64 and 128."""
    block = Attention.parse({"kind": "mla", "n_heads": 4, "head_dim": 128}).build(Site(dim=64))
    assert (block.rank, block.nope, block.rope, block.wide) == (512, 128, 64, 128)
    small = Attention.parse({"kind": "mla", "n_heads": 4}).build(Site(dim=40))
    assert (small.rank, small.nope, small.rope, small.wide) == (40, 10, 4, 10)
    given = Attention.parse({**TABLE, "n_heads": 3}).build(Site(dim=40))  # 40 / 3 is never asked for
    assert (given.rank, given.nope, given.rope, given.wide) == (20, 10, 6, 14)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("q_rank", [None, 9])
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "documents"])
@pytest.mark.parametrize("pieces", [[1] * 17, [17], [5, 1, 8, 3]], ids=["tokens", "prompt", "pieces"])
def test_both_ways_of_decoding(
    way: str, q_rank: int | None, documents: Tensor | None, pieces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left padding is a document of its own: the second row has one token of it."""
    force(monkeypatch, way)
    block = build({**TABLE, "q_lora_rank": q_rank, "output": ["xsa", "gate"]})
    for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        block, x = block.to(dtype), rand(2, 17, DIM, dtype=dtype)
        full = run_ours(block, x, documents)
        got, per_token = decode(block, x, pieces, documents)
        assert relative(got, full) < bound
        assert per_token == block.cache_elements() == 20 + 6


def test_absorbing_really_absorbs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The expansion is not applied to what was remembered, only to the new token."""
    force(monkeypatch, "absorbed")
    block, x, seen = build(TABLE).double(), rand(2, 17, DIM), []
    block.expansion.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[1]))
    decode(block, x, [1] * 17)
    assert set(seen) == {1}


def test_the_cheaper_way_is_taken() -> None:
    """DeepSeek-V3: one token against many latents is absorbed, a prompt is expanded."""
    with torch.device("meta"):
        block = Attention.parse({"kind": "mla", "n_heads": 128, "kv_lora_rank": 512, "head_dim": 128}).build(
            Site(dim=7168)
        )
    assert block._absorbing_pays(1, 2) and block._absorbing_pays(1, 4096)
    assert not block._absorbing_pays(1, 1) and not block._absorbing_pays(4096, 4096)
    assert not block._absorbing_pays(1024, 4096)

    def products(new: int, seen: int, absorbed: bool) -> int:
        rank, nope, rope, value = 512, 128, 64, 128
        if absorbed:
            return new * (nope * rank + seen * (rank + rope) + seen * rank + rank * value)
        return seen * rank * (nope + value) + new * seen * (nope + rope + value)

    for new in (1, 10, 100, 150, 200, 1000):
        for seen in (new, new + 1, 2 * new, 50 * new):
            assert block._absorbing_pays(new, seen) is (products(new, seen, True) < products(new, seen, False))


def test_the_remembered_key_is_shared_and_turned() -> None:
    """What lies in memory is [normed latent | rotated key], one row per token whatever the number of heads."""
    block, x = build(TABLE).double(), rand(2, 5, DIM)
    bus = Bus({}, Past({}, 0, 5))
    block(x, bus)
    (kept,) = bus.close()[2].values()
    latent, key = block.latent(x).split([20, 6], -1)
    assert kept.shape == (2, 1, 5, 26)
    assert torch.allclose(kept[:, 0, :, :20], block.latent_norm(latent), atol=1e-12)
    assert torch.allclose(kept[:, :, :, 20:], block.position(key[:, None], Bus()), atol=1e-12)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one", "documents"])
def test_changed_values_are_remembered_by_head(documents: Tensor | None) -> None:
    block, x = build({**TABLE, "value": "residual", "output": ["xsa"]}).double(), rand(2, 17, DIM)
    got, per_token = decode(block, x, [4, 1, 1, 11], documents)
    assert torch.allclose(got, run_ours(block, x, documents), atol=1e-9)
    assert per_token == block.cache_elements() == HEADS * (10 + 6 + 14)


def test_a_reader_is_told_of_knobs_that_mean_something_else() -> None:
    assert Attention.parse("mla").notes() == ()
    partial = Attention.parse({"kind": "mla", "position": {"kind": "rope", "dims": 4}}).notes()
    assert len(partial) == 1 and "position.dims" in partial[0]
    residual = Attention.parse({"kind": "mla", "value": "residual"}).notes()
    assert len(residual) == 1 and "residual" in residual[0] and "expanded" in residual[0]
    assert Attention.parse({"kind": "gqa", "value": "residual"}).notes() == ()


def test_a_swap_keeps_the_knobs_of_every_attention() -> None:
    gqa = {"kind": "gqa", "n_heads": 8, "n_kv_heads": 4, "qk_gain": 1.5, "value": "residual", "output": ["xsa"]}
    swapped = merge(Attention.Config, merge(Attention.Config, None, gqa), "mla")
    config = Attention.parse(swapped)
    assert config.n_heads == 8 and config.value.part.kind == "residual"
    assert [o.part.kind for o in config.output] == ["xsa"]


@pytest.mark.parametrize(
    ("knobs", "path", "value"),
    [
        ({"position": {"kind": "rope", "dims": 8}}, "position.dims", 8),  # wider than the part that turns
        ({"n_heads": 5, "v_head_dim": None}, "n_heads", 5),
    ],
)
def test_what_cannot_be(knobs: dict[str, Any], path: str, value: int) -> None:
    with pytest.raises(ConfigError) as fault:
        Attention.parse({**TABLE, **knobs}).build(Site(dim=DIM))
    assert (fault.value.path, fault.value.value) == (path, value)


def test_an_odd_rotary_width_is_refused() -> None:
    with pytest.raises(ValueError, match="qk_rope_head_dim"):
        Attention.parse({**TABLE, "qk_rope_head_dim": 5})

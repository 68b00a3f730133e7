"""One layer's notebook: wires, reports, what is remembered while decoding, and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from zoo.core.attend import positions, previous
from zoo.core.part import ConfigError
from zoo.core.wires import NOISE, SEGMENTS, Bus, Past, Wire, _salt, mix, noise_key

V, W = Wire("v", "B T"), Wire("w", "B T")


def test_a_wire_is_written_once():
    bus, t = Bus(), torch.ones(2, 3)
    bus[V] = t
    assert bus[V] is t
    assert V in bus
    assert W not in bus
    with pytest.raises(ConfigError, match="written once"):
        bus[V] = t
    with pytest.raises(ConfigError, match="written once"):
        Bus({V: t})[V] = t


def test_first_is_what_the_first_layer_said():
    said, later = torch.ones(2, 3), torch.zeros(2, 3)
    speaking, listening = Bus(), Bus({V: said})
    assert speaking.first(V, said) is said
    assert listening.first(V, later) is said
    assert speaking.close()[0] == {V: said}
    assert listening.close()[0] == {}
    with pytest.raises(ConfigError, match=r"wire 'v' carries \(2, 3\) from an earlier layer, but here it is \(2, 4\)"):
        listening.first(V, torch.zeros(2, 4))


def test_reports_are_scoped_detached_and_said_once():
    bus, t = Bus(), torch.ones((), requires_grad=True)
    bus.at("attention").loss("z", t)
    bus.at("ffn").loss("z", 2 * t)
    bus.at("ffn").stat("z", 2 * t)
    with pytest.raises(ConfigError, match="'ffn/z' reported twice"):
        bus.at("ffn").loss("z", t)
    _, report, _ = bus.close()
    assert set(report.losses) == {"attention/z", "ffn/z"}
    assert report.losses["ffn/z"].requires_grad
    assert not report.stats["ffn/z"].requires_grad


def test_extend_is_the_identity_in_training_and_remembers_while_decoding():
    t = torch.arange(12.0).view(1, 6, 2)
    assert Bus().extend("k", t) is t
    buffers: dict[str, Tensor] = {}
    for start, end in ((0, 3), (3, 4), (4, 6)):
        bus = Bus(past=Past(buffers, start, 8)).at("here")
        assert torch.equal(bus.extend("k", t[:, start:end]), t[:, :end])
        last = bus.extend("x", t[:, start:end], keep=2)
        assert torch.equal(last, t[:, max(0, start - 2) : end])
        buffers = bus.close()[2]
    assert buffers["here/k"].shape == (1, 8, 2)
    assert torch.equal(buffers["here/x"], t[:, 4:])


def test_predecessors_end_at_documents_and_survive_between_calls():
    tokens = torch.tensor([[5, 6, 7, 8]])
    segments = torch.tensor([[0, 0, 1, 1]])
    before, exists = previous(Bus({SEGMENTS: segments}), "t", tokens, dim=-1)
    assert before[exists].tolist() == [5, 7]
    assert exists.tolist() == [[False, True, False, True]]
    first = Bus({SEGMENTS: segments[:, :2]}, Past({}, 0, 4))
    previous(first, "t", tokens[:, :2], dim=-1)
    second = Bus({SEGMENTS: segments}, Past(first.close()[2], 2, 4))
    before, exists = previous(second, "t", tokens[:, 2:], dim=-1)
    assert before.tolist() == [[6, 7]]
    assert exists.tolist() == [[False, True]]


def test_positions_start_again_with_each_document():
    segments = torch.tensor([[0, 0, 1, 1, 1], [7, 8, 8, 9, 9]])
    found = positions(Bus({SEGMENTS: segments}), 4, segments.device)
    assert found.tolist() == [[1, 0, 1, 2], [0, 1, 0, 1]]
    assert positions(Bus(past=Past({}, 3, 9)), 2, segments.device).tolist() == [3, 4]


# Noise


def draw(key: Tensor, scope: str = "a", name: str = "n", size: int = 20_000) -> np.ndarray:
    return Bus({NOISE: key}).at(scope).noise(name, (size,)).numpy()


def test_noise_is_uniform_and_consecutive_keys_are_independent():
    drawn = [draw(noise_key(0, step)) for step in range(5)]
    for one in drawn:
        assert one.min() >= 0.0
        assert one.max() < 1.0
        assert stats.kstest(one.astype(np.float64), "uniform").pvalue > 1e-4
    pairs = [(a, b) for i, a in enumerate(drawn) for b in drawn[:i]] + [(one[1:], one[:-1]) for one in drawn]
    assert max(abs(np.corrcoef(a, b)[0, 1]) for a, b in pairs) < 0.04  # 5.6 standard deviations of chance


def test_noise_follows_from_seed_step_micro_step_path_and_name_alone():
    base = draw(noise_key(1, 2, 3))
    assert np.array_equal(base, draw(noise_key(1, 2, 3)))
    torch.rand(3)
    assert np.array_equal(base, draw(noise_key(1, 2, 3)))
    assert np.array_equal(base[:100], draw(noise_key(1, 2, 3), size=100))
    others = [draw(noise_key(2, 2, 3)), draw(noise_key(1, 3, 3)), draw(noise_key(1, 2, 4)), draw(noise_key(1, 3, 2))]
    others += [draw(noise_key(1, 2, 3), scope="b"), draw(noise_key(1, 2, 3), name="m")]
    assert all((base == other).mean() < 0.01 for other in others)


def test_noise_without_a_key_and_noise_drawn_twice_are_refused():
    with pytest.raises(ConfigError, match=r"model\.eval\(\)"):
        Bus().noise("n", (2,))
    bus = Bus({NOISE: noise_key(0)})
    bus.noise("n", (2,))
    with pytest.raises(ConfigError, match="drawn twice"):
        bus.noise("n", (2,))


def test_every_input_bit_of_the_hash_moves_half_of_its_output():
    x = torch.randint(2**32, (4000,), generator=torch.Generator().manual_seed(0))
    for bit in range(32):
        changed = mix(x) ^ mix(x ^ (1 << bit))
        share = sum(((changed >> i) & 1).double().mean() for i in range(32)) / 32
        assert 0.47 < float(share) < 0.53


@pytest.mark.parametrize(("text", "salt"), [("", 0x811C9DC5), ("a", 0xE40C292C), ("foobar", 0xBF9CF968)])
def test_names_are_hashed_as_fnv_1a_is_published(text: str, salt: int) -> None:
    assert _salt(text) == salt


def test_noise_begins_at_step_and_micro_step_zero() -> None:
    assert noise_key(3) == noise_key(3, 0, 0) != noise_key(3, 1, 0)


@pytest.mark.parametrize("parts", [(0, 0, 0), (3, 5, 2), (2**40 + 1, 10_000, 7)])
def test_a_noise_key_is_the_stated_hash(parts: tuple[int, int, int]):
    """Plain integers as an oracle: a key decides every draw of a step, so it must stay what it was."""

    def lowbias32(x: int) -> int:
        x &= 0xFFFFFFFF
        x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        return x ^ (x >> 16)

    key = parts[0]
    for part in parts[1:]:
        key = lowbias32(lowbias32(key) + part)
    assert int(noise_key(*parts)) == key

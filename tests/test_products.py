"""Products while text is made: however they are said, and however many at once, they have the bits of the model's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.test_replay import GQA, LAYERS, Compared, drawn
from zoo.core.slots import Site, Stem
from zoo.core.wires import Bus
from zoo.generate import lines, products, write

WIDE = {"attention": GQA, "ffn": {"kind": "swiglu", "hidden_dim": 96}}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(products, "found", {})


@pytest.fixture
def sources(monkeypatch):
    """The sources of the steps that are written."""
    seen: list[str] = []

    def run(source: str, values: dict) -> None:
        seen.append("\n".join(_readable(line, values) for line in source.splitlines()))
        exec(source, values)

    monkeypatch.setattr(write, "exec", run, raising=False)
    return seen


def _readable(line: str, values: dict) -> str:
    for name, value in values.items():
        if callable(value) and name in line:
            line = line.replace(name, getattr(value, "__name__", "?"))
    return line


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 1, 48), (2, 3, 48)])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_product_in_parts_is_the_product(shape, dtype, n):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=generator).to(dtype), torch.randn(24, 48, generator=generator).to(dtype)
    made = products.multiplied(x.view(-1, 48), weight, n).view(*shape[:-1], 24)
    torch.testing.assert_close(made, F.linear(x, weight))


def test_a_way_is_taken_only_if_it_gives_the_same_bits(monkeypatch):
    x, weight = torch.randn(1, 1, 64), torch.randn(32, 64)
    assert products.parts(x, weight) >= products.ONCE
    wrong = products.multiplied(x.view(1, 64), weight, 1) * (1 + 1e-6)
    monkeypatch.setattr(products, "multiplied", lambda *_: wrong)
    products.found.clear()
    assert products.parts(x, weight) == products.AS_IT_IS


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_weight_is_cut_where_that_is_faster_and_as_its_rows_allow(threads, monkeypatch):
    x, weight, measured = torch.randn(1, 1, 64), torch.randn(32, 64), iter(range(10_000))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    clock = iter(t for _ in range(products.ROUNDS) for n in (1, 2) for t in (0.0, 1.0 / n))
    monkeypatch.setattr(products.time, "perf_counter", lambda: next(clock) if threads > 1 else next(measured))
    assert products.parts(x, weight) == (1 if threads == 1 else 2)
    slow = iter(t for _ in range(products.ROUNDS) for n in (1, 2) for t in (0.0, 1.0 / n**0.1))
    monkeypatch.setattr(products.time, "perf_counter", lambda: next(slow))
    products.found.clear()
    assert products.parts(x, weight) == 1


def test_what_lies_otherwise_or_elsewhere_is_left_as_it_is():
    x, weight = torch.randn(2, 3, 16), torch.randn(8, 16)
    assert products.parts(x.transpose(0, 1), weight) == products.AS_IT_IS
    assert products.parts(x, torch.randn(16, 8).T) == products.AS_IT_IS
    assert products.parts(x.to("meta"), weight.to("meta")) == products.AS_IT_IS


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@torch.inference_mode()
def test_a_step_with_its_products_in_parts_says_what_the_model_says(layer, n, rows, monkeypatch):
    taken: list[int] = []

    def parts(x: Tensor, weight: Tensor) -> int:
        same = weight.shape[0] % n == 0 and products.multiplied(x.view(rows, -1), weight, n).equal(
            F.linear(x, weight)[:, 0]
        )
        taken.append(n if same else products.AS_IT_IS)
        return taken[-1]

    monkeypatch.setattr(write, "parts", parts)
    both = Compared(drawn(layer), rows)
    for _ in range(12):
        both.step(rows)
    assert n in taken and both.asked < 12 and not both.steps.refused and not both.steps.as_recorded


@torch.inference_mode()
def test_a_step_is_said_as_it_was_recorded_where_products_in_parts_are_others_after_all(monkeypatch, sources):
    monkeypatch.setattr(write, "parts", lambda x, weight: products.ONCE)
    monkeypatch.setattr(lines, "cut", lambda weight, n: products.cut(weight * (1 + 1e-3), n))
    both = Compared(drawn(WIDE), 1)
    for _ in range(12):
        both.step(1)
    assert ["linear(" in source for source in sources] == [False, True]
    assert both.asked == 6 and not both.steps.refused


@pytest.mark.parametrize(("rows", "asked"), [(1, 4), (2, 7)])
@torch.inference_mode()
def test_products_of_one_row_are_made_side_by_side(rows, asked, sources):
    both = Compared(drawn(WIDE, n_layers=1), rows)
    for _ in range(6):
        both.step(rows)
    (source,) = sources
    # queries, keys and values; their output; gate and up; down; and the head, whose embedding is tied
    assert source.count("mm(") == asked + 1 and "linear(" not in source and both.asked == 3


@torch.inference_mode()
def test_large_weights_are_not_copied(sources, monkeypatch):
    monkeypatch.setattr(lines, "SIDE_BY_SIDE", 96 * 32 + 1)
    both = Compared(drawn(WIDE, n_layers=1), 1)
    for _ in range(6):
        both.step(1)
    assert sources[0].count("mm(") == 5 + 1  # queries, keys and values together have 2,048 elements, gate and up 6,144


@torch.inference_mode()
def test_products_that_are_not_the_same_together_stay_alone(sources, monkeypatch):
    monkeypatch.setattr(lines, "multiplied", lambda row, weight, n: torch.randn(1, weight.shape[0]))
    both = Compared(drawn(WIDE, n_layers=1), 1)
    for _ in range(6):
        both.step(1)
    assert sources[0].count("mm(") == 7 + 1


class Twice(Stem):
    """Two products of a row that is changed between them. Source: none, it exists here alone."""

    def __init__(self, cfg: Stem.Config, site: Site) -> None:
        super().__init__()
        self.register_buffer("first", torch.randn(site.dim, site.dim, generator=torch.Generator().manual_seed(3)))
        self.register_buffer("second", self.first.T.contiguous())

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        y = x * 1.5
        z = F.linear(y, self.first)
        y.add_(1.0)
        return z + F.linear(y, self.second)


@torch.inference_mode()
def test_a_row_that_changes_between_two_products_is_multiplied_twice(monkeypatch, sources):
    monkeypatch.setitem(Stem.kinds, "twice_here", Twice)
    monkeypatch.setattr(Twice, "kind", "twice_here")
    both = Compared(drawn(WIDE | {"stem": ["twice_here"]}, n_layers=1), 1)
    for _ in range(6):
        both.step(1)
    assert not both.steps.refused and sources[0].count("mm(") == 4 + 1 + 2


class Longer(Stem):
    """A product of all rows so far, one more with every token. Source: none, it exists here alone."""

    def __init__(self, cfg: Stem.Config, site: Site) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(site.dim, site.dim, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        return x + F.linear(bus.extend("x", x, dim=1), self.weight).sum(1, keepdim=True)


@pytest.mark.parametrize("rows", [1, 2])
@torch.inference_mode()
def test_rows_that_become_more_with_every_token_are_all_multiplied(rows, monkeypatch):
    monkeypatch.setitem(Stem.kinds, "longer_here", Longer)
    monkeypatch.setattr(Longer, "kind", "longer_here")
    both = Compared(drawn(WIDE | {"stem": ["longer_here"]}, n_layers=1), rows)
    for _ in range(8):
        both.step(rows)
    assert not both.steps.refused and both.asked == 3


@pytest.mark.parametrize("number", [3, 0.7])
@torch.inference_mode()
def test_numbers_are_made_tensors_once(number, sources, monkeypatch):
    monkeypatch.setitem(Stem.kinds, "number_here", Number)
    monkeypatch.setattr(Number, "kind", "number_here")
    monkeypatch.setattr(Number, "number", number, raising=False)
    both = Compared(drawn({"stem": ["number_here"]}), 1)
    for _ in range(6):
        both.step(1)
    assert f", {number})" not in sources[0] and both.asked == 3


class Number(Stem):
    """Arithmetic with a number. Source: none, it exists here alone."""

    def __init__(self, cfg: Stem.Config, site: Site) -> None:
        super().__init__()

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        return x.mul(self.number).sub(self.number).div(self.number).add_(self.number)

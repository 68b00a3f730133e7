"""In which knobs an arm differs, in short, and what a reader is told of the chosen kinds."""

from __future__ import annotations

import pytest
from faults import planted
from hypothesis import given
from hypothesis import strategies as st

from zoo.core.slots import Attention, FeedForward
from zoo.core.tables import tabulate
from zoo.optim.slots import Optimizer
from zoo.resolve import loads
from zoo.result import notes
from zoo.trials.names import changes, differences

BASE = """
[model.layer]
attention = { kind = "gqa", n_heads = 4, n_kv_heads = 2 }
ffn = { kind = "swiglu", hidden_dim = 256 }
[optim]
matrix = { kind = "muon", lr = 0.02 }
"""


def said(toml: str, base: str = BASE) -> list[str]:
    return [f"{path}: {a} -> {b}" for path, (a, b) in changes(loads(toml), loads(base)).items()]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"swiglu", hidden_dim = 256', '"relu2", hidden_dim = 256', ["model.layer.ffn: swiglu -> relu2"]),
        ('"swiglu", hidden_dim = 256', '"relu2", hidden_dim = 64', ["model.layer.ffn: swiglu -> relu2(hidden_dim=64)"]),
        ('"swiglu", hidden_dim = 256', '"swiglu", hidden_dim = 64', ["model.layer.ffn.hidden_dim: 256 -> 64"]),
        ('"gqa", n_heads = 4, n_kv_heads = 2', '"mla", n_heads = 4', ["model.layer.attention: gqa -> mla"]),
        (
            '"gqa", n_heads = 4, n_kv_heads = 2',
            '"mla", n_heads = 2, kv_lora_rank = 9, position = { kind = "rope", dims = 16 }',
            ["model.layer.attention: gqa -> mla(n_heads=2, position=rope(dims=16), kv_lora_rank=9)"],
        ),
        ('"muon", lr = 0.02', '"adamw", lr = 3e-3', ["optim.matrix: muon -> adamw(lr=0.003)"]),
        ('"muon", lr = 0.02', '"adamw", lr = 0.02', ["optim.matrix: muon -> adamw"]),
        ('kind = "gqa"', 'output = ["xsa"], kind = "gqa"', ["model.layer.attention.output: none -> xsa"]),
    ],
)  # fmt: skip
def test_a_swap_is_said_with_what_nobody_could_guess(old: str, new: str, words: list[str]) -> None:
    assert old in BASE
    assert said(BASE.replace(old, new)) == words


def test_every_knob_of_a_swap_stays_available() -> None:
    other = loads(BASE.replace('"gqa", n_heads = 4, n_kv_heads = 2', '"mla", n_heads = 4'))
    whole = differences(other, loads(BASE))
    assert whole["model.layer.attention.kind"] == ("gqa", "mla") and len(whole) > 3
    assert differences(tabulate(other), tabulate(loads(BASE))) == whole  # as recipe.toml gives it


def test_of_a_kind_that_nobody_registers_every_knob_is_said() -> None:
    with planted():

        class Guest(Attention, kind="guest"):
            """A plug-in."""

            class Config(Attention.Config):
                size: int = 3

        base = tabulate(loads(BASE))
        table = tabulate(loads(BASE.replace('"gqa", n_heads = 4, n_kv_heads = 2', '"guest", n_heads = 4')))
        assert changes(table, base) == {"model.layer.attention": ("gqa", "guest")}
    assert changes(table, base) == {"model.layer.attention": ("gqa", "guest(size=3)")}


@given(st.data())
def test_nothing_that_differs_goes_unsaid(data: st.DataObject) -> None:
    """Each change lies above or at a difference, and every difference below or at a change."""
    kinds = st.sampled_from(["swiglu", "relu2", "silu"])
    dims, rates = st.sampled_from([32, 64]), st.sampled_from([0.02, 0.01])

    def drawn() -> str:
        ffn = f'ffn = {{ kind = "{data.draw(kinds)}", hidden_dim = {data.draw(dims)} }}'
        optim = f'matrix = {{ kind = "{data.draw(st.sampled_from(["muon", "adamw"]))}", lr = {data.draw(rates)} }}'
        return f"model.dim = {data.draw(dims)}\n[model.layer]\n{ffn}\n[optim]\n{optim}\n"

    one, other = loads(drawn()), loads(drawn())
    short, whole = changes(one, other), differences(one, other)
    assert all(any(path == s or path.startswith(f"{s}.") for s in short) for path in whole)
    assert all(any(path == s or path.startswith(f"{s}.") for path in whole) for s in short)


# -- notes ------------------------------------------------------------------------------------------------------------


def test_notes_of_every_part_reach_the_result() -> None:
    assert any(note.startswith("muon: lr is") for note in notes(loads(BASE)))
    assert not any("muon" in note for note in notes(loads(BASE.replace('"muon"', '"adamw"'))))
    with planted():

        class Loud(FeedForward, kind="loud"):
            """Says something."""

            breaks = {"causal": "it peeks"}

            class Config(FeedForward.Config):
                def notes(self) -> tuple[str, ...]:
                    return ("listen",)

        class Slow(Optimizer, kind="slow"):
            """Says the same."""

            class Config(Optimizer.Config):
                def notes(self) -> tuple[str, ...]:
                    return ("listen", "be patient")

        loud = 'as_published = true\nmodel.layer.ffn = "loud"\noptim.matrix = "slow"\n'
        assert notes(loads(loud)) == ("listen", "be patient", "loud breaks causal: it peeks")
        where = '[[model.where]]\nlayers = ":"\nffn = "swiglu"\n'
        assert "listen" not in notes(loads('model.layer.ffn = "loud"\n'.join(["as_published = true\n", where])))

"""The mechanism: parts and their Configs, the Bus, the cache, parameters and their first draws, the floors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from faults import planted
from pydantic import ValidationError
from torch import nn

import zoo.blocks
import zoo.core.precision
from zoo.core.cache import Cache
from zoo.core.params import Constant, Embedding, Linear, Normal, Orthogonal, Role, Rows, Uniform, entries, roles
from zoo.core.part import ConfigError, Part, PartConfig, build_child, faults
from zoo.core.slots import Attention, FeedForward, Layer, Norm, Site, Stem

FLOORS = {
    "core": 0,
    "collector": 0,
    "blocks": 1,
    "model": 1,
    "cost": 1,
    "saved": 1,
    "machine": 1,
    "plugins": 1,
    "parallel": 1,
    "optim": 2,
    "data": 2,
    "scoring": 2,
    "track": 2,
}
FLOORS |= {
    "codecs": 2,
    "checkpoint": 2,
    "recipe": 3,
    "files": 3,
    "resolve": 3,
    "result": 4,
    "judge": 4,
    "resume": 4,
    "fallback": 4,
    "budget": 4,
    "graphs": 4,
    "loop": 4,
    "train": 4,
    "guards": 4,
}
FLOORS |= {
    "artifact": 4,
    "generate": 4,
    "proof": 5,
    "trials": 5,
    "report": 5,
    "testing": 5,
    "api": 5,
    "command": 6,
    "__init__": 6,
}


def imports(source: Path) -> set[tuple[str, ...]]:
    """The modules of ours that a file imports, as paths below ``zoo``."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "zoo":
            inner = node.module.split(".")[1:]
            found |= {tuple(inner)} if inner else {(alias.name,) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")[1:]) for a in node.names if a.name.startswith("zoo.")}
    return found


def test_a_file_imports_only_from_its_floor_and_below():
    root, wrong = Path(zoo.__path__[0]), []
    for file in sorted(root.rglob("*.py")):
        own = file.relative_to(root).with_suffix("").parts
        for target in imports(file):
            upwards = FLOORS[target[0]] > FLOORS[own[0]]
            sideways = own[0] == target[0] == "blocks"
            blindly = target[0] == "blocks" and own in {("model",), ("train",)}
            if upwards or sideways or blindly:
                wrong.append(f"{'/'.join(own)} imports {'.'.join(target)}")
    assert wrong == []


# Parts


def test_a_class_statement_registers_and_a_second_claim_raises():
    with planted():

        class One(Norm, kind="one"):
            """One."""

        assert Norm.kinds["one"] is One
        assert One.Config.part is One
        with pytest.raises(TypeError, match=r"two parts claim the norm kind 'one': .*One and .*Two"):

            class Two(Norm, kind="one"):
                """Two."""


def test_a_definition_that_is_read_again_replaces_itself():
    def declare() -> type[Part]:
        class Again(Norm, kind="again"):
            """Again."""

        return Again

    with planted():
        first, second = declare(), declare()
        assert first is not second
        assert Norm.kinds["again"] is second


def test_a_kind_needs_a_slot_and_a_config_of_its_slot():
    with pytest.raises(TypeError, match="fills no slot"):

        class Nowhere(Part, kind="nowhere"):
            """Nowhere."""

    with pytest.raises(TypeError, match="Config must extend its slot's Config"):

        class Strange(Attention, kind="strange"):
            """Strange."""

            class Config(PartConfig):
                """Not an attention's."""

    assert "strange" not in Attention.kinds


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no attention is called 'gqq', did you mean 'gqa'\?"):
        Attention.parse("gqq")
    with pytest.raises(ConfigError, match=r"no ffn is called 'zzz', there are: .*swiglu"):
        FeedForward.parse("zzz")
    with pytest.raises(ValidationError, match=r"unknown key, did you mean 'n_kv_heads'\?"):
        Attention.parse({"kind": "gqa", "n_kv_head": 2})
    with pytest.raises(ConfigError, match="needs a kind"):
        Attention.parse({"n_heads": 2})


def test_a_word_a_table_and_a_config_say_the_same():
    config = Attention.parse("gqa")
    assert Attention.parse({"kind": "gqa"}) == config
    assert Attention.parse(config) is config
    assert Attention.parse(config.model_dump()) == config
    with pytest.raises(ValidationError, match="frozen"):
        config.n_heads = 2


def test_a_fault_carries_its_dotted_path_and_value():
    with pytest.raises(ValidationError) as caught:
        Layer.parse({"kind": "pre_norm", "attention": {"kind": "gqa", "position": {"kind": "rope", "dims": 1}}})
    (fault,) = [f for f in faults(caught.value) if f.value == 1]
    assert fault.path == "attention.position.dims"


def test_a_fault_while_building_comes_out_with_the_knobs_path():
    layer = Layer.parse({"kind": "pre_norm", "attention": {"kind": "gqa", "n_heads": 3}})
    with pytest.raises(ConfigError, match=r"^attention.n_heads = 3: does not divide dim = 16"):
        layer.build(Site(16))
    stems = Layer.parse({"kind": "pre_norm", "stem": ["rms_norm", {"kind": "smear_gate", "form": "additive"}]})
    with pytest.raises(ConfigError, match=r"^stem\[1\].channels = 12: exceeds dim = 4"):
        build_child(stems, "stem", Site(4))


def test_norms_are_guests_of_stems_and_stems_are_not_norms():
    assert Stem.parse("rms_norm") == Norm.parse("rms_norm")
    with pytest.raises(ConfigError, match="no norm is called 'smear_gate'"):
        Norm.parse("smear_gate")


# The cache


def test_a_cache_refuses_other_batches_and_more_tokens_than_it_has_room_for():
    cache = Cache(2, 4, 1)
    with pytest.raises(ConfigError, match="made for 2 rows, this call has 3"):
        cache.admit(torch.zeros(3, 1, dtype=torch.long), None)
    with pytest.raises(ConfigError, match=r"0 \+ 5 tokens exceed the cache's capacity of 4"):
        cache.admit(torch.zeros(2, 5, dtype=torch.long), None)


def test_new_tokens_go_on_with_the_last_document_of_their_row():
    cache, tokens = Cache(2, 8, 1), torch.zeros(2, 2, dtype=torch.long)
    assert cache.admit(tokens, None) is None
    cache.length = 2
    assert cache.admit(tokens, torch.tensor([[0, 1], [0, 0]])).tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    cache.length = 4
    assert cache.admit(tokens[:, :1], None).tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    cache.reorder(torch.tensor([1, 1]))
    cache.length = 5
    assert cache.admit(tokens[:, :1], None).tolist() == [[0] * 6, [0] * 6]


# Parameters


class Bare(nn.Module):
    def __init__(self, n_dims: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty([2] * n_dims))
        self.inits = {"weight": Normal(1.0)}


def test_a_bare_parameter_is_a_scalar_or_has_to_be_named():
    assert roles(nn.ModuleDict({"inner": Bare(1)})) == {"inner.weight": Role.SCALAR}
    with pytest.raises(TypeError, match=r"inner.weight is a bare 2-D parameter: name its role in Bare.roles"):
        roles(nn.ModuleDict({"inner": Bare(2)}))
    silent = Bare(1)
    silent.inits = {}
    with pytest.raises(TypeError, match=r"weight has no first value: name a rule for it in Bare.inits"):
        roles(silent)


def test_a_shared_matrix_is_one_parameter_with_the_role_it_first_had():
    first, second = Embedding(3, 2), Linear(2, 3, role=Role.HEAD)
    second.weight = first.weight
    assert [(e.name, e.role) for e in entries(nn.ModuleList([first, second]))] == [("0.weight", Role.EMBEDDING)]


def test_rules_draw_what_they_say():
    generator, t = torch.Generator().manual_seed(0), torch.empty(200, 300)
    Normal(0.3)(t, generator)
    assert t.std().item() == pytest.approx(0.3, rel=0.02)
    Uniform(0.5)(t, generator)
    assert t.abs().max().item() == pytest.approx(0.5, rel=0.01)
    assert t.std().item() == pytest.approx(0.5 / 3**0.5, rel=0.02)
    Orthogonal(2.0)(t, generator)
    torch.testing.assert_close(t @ t.T, 4.0 * torch.eye(200), atol=1e-4, rtol=0)
    stack = torch.empty(3, 4, 6)
    Orthogonal()(stack, generator)
    torch.testing.assert_close(stack @ stack.transpose(1, 2), torch.eye(4).expand(3, 4, 4), atol=1e-5, rtol=0)
    Rows((1.0, 0.0))(t[:2], generator)
    assert t[0].unique().tolist() == [1.0]
    assert t[1].unique().tolist() == [0.0]
    Constant(7.0)(t, generator)
    assert t.unique().tolist() == [7.0]


def test_linear_works_in_the_dtype_of_its_input():
    layer = Linear(3, 2, bias=1.0)
    nn.init.ones_(layer.weight)
    nn.init.ones_(layer.bias)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        y = layer(torch.ones(4, 3, dtype=dtype))
        assert y.dtype == dtype
        assert y.unique().tolist() == [4.0]


@pytest.mark.parametrize(("flags", "fast"), [("fpu avx512_bf16 x", True), ("amx_bf16", True), ("avx512", False)])
def test_a_cpu_is_fast_at_bf16_where_it_says_so(
    flags: str, fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(zoo.core.precision, "Path", lambda name: file)
    assert not zoo.core.precision._cpu_has_bf16()  # a system without that file says nothing
    file.write_text(f"processor : 0\nflags : {flags}\n", encoding="utf-8")
    assert zoo.core.precision._cpu_has_bf16() is fast

"""On a GPU everything computes what it computes on a processor; without one there is nothing to ask."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from test_contract import STANDS
from test_graphs import RICH_SETS
from torch import Tensor
from typer.testing import CliRunner
from updates import build as build_optimizer
from updates import draw, run

from ablate import app
from recipes import write
from zoo import graphs
from zoo.core.attend import attend
from zoo.core.experts import Experts
from zoo.core.grouped_mm import grouped_mm
from zoo.core.slots import Layer
from zoo.core.wires import SEGMENTS, Bus, noise_key
from zoo.data.slots import Tokenizer
from zoo.generate import Sampling, generate
from zoo.loop import Loop
from zoo.model import Model, ModelConfig
from zoo.testing.hosts import Place, Subject, find
from zoo.trials.grid import plan
from zoo.trials.run import text_of
from zoo.trials.vocabulary import with_vocabulary

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use")

NAMES = sorted(dict(reversed(STANDS)).items())  # each kind where it stands first
MIXED = {"kind": "moe", "n_experts": 4, "hidden_dim": 64, "jitter": 0.1, "dropout": 0.1}
TINY = ModelConfig(
    vocab_size=257, context=64, dim=64, n_layers=3, stem=("bigram_hash", "smear_gate"), trunk="unet",
    head={"kind": "tied", "softcap": 30.0},
    layer={"kind": "pre_norm", "attention": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2}, "ffn": MIXED},
)  # fmt: skip


def far(mine: Tensor, other: Tensor) -> float:
    """The norm of the difference over the norm."""
    a, b = mine.detach().double().cpu(), other.detach().double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


def answers(model: Model, tokens: Tensor) -> dict[str, Tensor]:
    """The loss of each token, and every gradient, in training mode with noise."""
    model.zero_grad(set_to_none=True)
    out = model.train()(tokens[:, :-1], tokens[:, 1:], noise=noise_key(0, 1))
    sum(out.losses.values(), out.nll.mean()).backward()
    return {"nll": out.nll, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize(("name", "place"), NAMES, ids=[name for name, _ in NAMES])
def test_every_kind_computes_what_it_computes_on_a_processor(name: str, place: Place):
    subject = Subject(find(name), {}, place)
    tokens = subject.tokens(2, 17)
    wanted = answers(subject.fresh(), tokens)  # fp64
    for dtype, stream, bound in ((torch.float32, None, 1e-4), (torch.float32, torch.bfloat16, 0.15)):
        found = answers(subject.fresh(dtype, stream).cuda(), tokens.cuda())
        assert found.keys() == wanted.keys()
        worst = {k: far(found[k], wanted[k]) for k in (wanted if stream is None else ["nll"])}
        assert max(worst.values()) < bound, {k: v for k, v in worst.items() if v >= bound}


def test_first_weights_and_noise_are_the_processors():
    model, tokens = Model(TINY), torch.randint(257, (2, 33), generator=torch.Generator().manual_seed(0))
    on_cpu = answers(model, tokens)
    on_gpu = answers(Model(TINY).cuda(), tokens.cuda())
    assert all(
        torch.equal(a.cpu(), b) for a, b in zip(Model(TINY).cuda().parameters(), model.parameters(), strict=True)
    )
    assert max(far(on_gpu[k], on_cpu[k]) for k in on_cpu) < 1e-3


BIASED = TINY.model_copy(update={"layer": Layer.parse({"kind": "pre_norm", "ffn": {**MIXED, "expert_bias": 0.0}})})


@pytest.mark.parametrize("config", [TINY, BIASED], ids=["plain", "biased experts"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_compiled_layers_say_what_eager_ones_say(stream: torch.dtype, recompute: bool, config: ModelConfig):
    model = Model(config, stream=stream).cuda()
    model.recompute = recompute
    tokens = torch.randint(257, (4, 65), generator=torch.Generator().manual_seed(0)).cuda()
    eager = answers(model, tokens)
    torch._dynamo.reset()
    model.compile_stages()
    compiled = answers(model, tokens)
    torch._dynamo.reset()
    if stream == torch.float32:
        assert {k: far(compiled[k], eager[k]) for k in eager if not far(compiled[k], eager[k]) < 1e-3} == {}
    else:  # rounded elsewhere, a token may go to another expert, so that a gradient by itself says little
        assert far(compiled["nll"], eager["nll"]) < 1e-2
        assert compiled.keys() == eager.keys() and all(bool(t.isfinite().all()) for t in compiled.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_compilers_grouped_product_is_exact(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(s, generator=generator) for s in ((37, 16), (4, 24, 16), (37, 24))]
    ends, found = torch.tensor([9, 9, 20, 37], dtype=torch.int32), []
    for device, kind in (("cpu", torch.float32), ("cuda", dtype)):
        rows, weight, upstream = (t.to(device, kind) for t in given)
        rows, weight = rows.mT.contiguous().mT.requires_grad_(), weight.requires_grad_()  # lying column by column
        y = grouped_mm(rows, weight, ends.to(device))
        found.append([y, *torch.autograd.grad(y, [rows, weight], upstream)])
    assert max(far(b, a) for a, b in zip(*found, strict=True)) < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dims", [(64, 128), (36, 52)], ids=["aligned", "odd widths"])
def test_experts_equal_the_loop(dtype: torch.dtype, dims: tuple[int, int]):
    experts = Experts(8, dims[0], dims[1], "swiglu", 0.1)
    generator = torch.Generator().manual_seed(0)
    for p in experts.parameters():
        p.data = torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5
    ids = torch.rand(50, 6, generator=generator).topk(2, -1).indices  # the last two experts stay unused
    x = torch.randn(50, dims[0], generator=generator)
    upstream = torch.randn(50, 2, dims[0], generator=generator)
    found = []
    for device, kind in (("cpu", torch.float64), ("cuda", dtype)):
        mine = experts.to(device, torch.float64 if device == "cpu" else torch.float32)
        t = x.to(device, kind).requires_grad_()
        y, counts = mine(t, ids.to(device))
        found.append([y, counts, *torch.autograd.grad(y, [t, *mine.parameters()], upstream.to(device, kind))])
    bound = 1e-5 if dtype == torch.float32 else 3e-2
    assert max(far(b, a) for a, b in zip(*found, strict=True)) < bound


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize("prefix", [0, 3])
def test_attention_equals_the_processors(segmented: bool, prefix: int):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 40, 32, generator=generator)
    k, v = (torch.randn(2, 2, 40 + prefix, 32, generator=generator) for _ in range(2))
    segments = torch.arange(40).floor_divide(13).expand(2, -1)
    bus = {SEGMENTS: segments} if segmented else {}
    wanted = attend(q.double(), k.double(), v.double(), Bus(bus), 0.2, prefix)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        there = Bus({wire: t.cuda() for wire, t in bus.items()})
        found = attend(*(t.cuda().to(dtype) for t in (q, k, v)), there, 0.2, prefix)
        assert far(found, wanted) < bound


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_an_optimizer_moves_as_on_a_processor(kind: str):
    shapes = [(8, 16), (16, 8), (3, 8, 8)]
    knobs = {"kind": kind, "lr": 0.02, "weight_decay": 0.1} | ({"ns_dtype": "float32"} if kind == "muon" else {})
    found = []
    for device in ("cpu", "cuda"):
        named = draw(shapes, torch.float32)
        for _, p in named:
            p.data = p.data.to(device)
        found.append(run(build_optimizer(knobs, named), 1, 3))
    assert max(far(b, a) for a, b in zip(*found, strict=True)) < 1e-4


def test_decoding_makes_the_tokens_of_prefixes_computed_again():
    tokenizer = Tokenizer.parse("byte").build(Path())
    tokenizer.load(b"")
    model = Model(TINY).cuda().eval()
    made = list(generate(model, tokenizer, ["zoo"], Sampling(temperature=0, max_tokens=24))[0][0].ids)
    ids = [tokenizer.bos, *tokenizer.encode("zoo").tolist()]
    with torch.no_grad():
        for token in made:
            assert int(model(torch.tensor([ids]).cuda()).logits[0, -1].argmax()) == token
            ids.append(token)


@pytest.mark.parametrize("more", [[], ["train.accumulate=3"], RICH_SETS, ["train.compile=layers"]])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_recorded_run_says_what_one_says_that_is_not(tmp_path: Path, dtype: str, more: list[str]):
    found = []
    for way in ("none", "auto"):
        words = [*more, "train.steps=8", f"machine.graphs={way}", f"machine.dtype={dtype}"]
        grid = plan(write(tmp_path), device="cuda", sets=words)
        text = text_of(grid.recipe, grid.folder)
        recipe = with_vocabulary(grid.recipe, text.tokenizer.vocab_size)
        loop = Loop(recipe, text, lambda progress: None, io.StringIO())
        loop.run()
        found.append(torch.stack(loop.losses).double().cpu())
    looped = more is RICH_SETS and dtype == "float32"  # grouped products in fp32 take a number out of a tensor
    assert loop.graphs is not None and bool(loop.graphs.kept) is not looped
    assert len(loop.remarks) == looped, loop.remarks
    assert torch.allclose(*found, rtol=1e-5 if dtype == "float32" else 1e-2), found


@pytest.mark.parametrize("more", [[], ["--set", "train.compile=layers"], ["--per-device", "2"]])
def test_a_grid_trains_on_it_and_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]):
    """The same arms as on a processor, to the same losses; what is done is not trained again."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    path, found = write(tmp_path, "[grid]\n'model.layer.ffn' = ['swiglu', 'moe']\n"), {}
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        words = [str(path), "--device", device, "--out", str(out), *(more if device == "cuda" else [])]
        words += ["--set", "optim.control={ kind = 'adamw', lr = 3e-3 }"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        rows = [json.loads(p.read_text()) for p in sorted(out.glob("*/result.json"))]
        found[device] = {r["variant"]: r for r in rows}
        assert all(r["status"] == "done" for r in rows)
    assert found["cpu"].keys() == found["cuda"].keys()
    for name, row in found["cuda"].items():
        assert row["valid_loss"] == pytest.approx(found["cpu"][name]["valid_loss"], rel=2e-3), name
        assert not any("not compiled" in note for note in row["notes"])
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("cuda/*/result.json")}
    assert CliRunner().invoke(app, words).exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("cuda/*/result.json")} == before


def test_a_recording_that_is_broken_off_leaves_the_process_in_order():
    """What waits for the GPU is refused ahead; where something is broken off all the same, torch's generator still works."""
    model = Model(TINY).cuda()
    recorder = graphs.Cuda(torch.device("cuda"))
    with pytest.raises(RuntimeError):
        recorder.rehearse(lambda: float(model.embedding.weight.sum()))
    assert torch.cuda.get_sync_debug_mode() == 0
    with pytest.raises(RuntimeError):
        recorder.record(lambda: float(model.embedding.weight.sum()))
    torch.manual_seed(0)
    drawn = torch.rand(3, device="cuda")
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3, device="cuda"))

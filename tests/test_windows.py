"""Windows that overlap and caches that roll: every token once, as a computation token by token says."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo.blocks
import zoo.core.attend
import zoo.scoring
from recipes import write
from zoo.blocks.rope import RoPE
from zoo.core.part import ConfigError
from zoo.core.slots import Site
from zoo.core.wires import Bus, Past
from zoo.model import Model, ModelConfig
from zoo.scoring.rolling import stretches
from zoo.scoring.sliding import strided, window_of
from zoo.scoring.slots import Scorer
from zoo.scoring.windows import Windowed

assert zoo.blocks and zoo.scoring  # imported for the kinds they register

V, BOS = 11, 10


def model_of(context: int, layers: int = 2, position: str = "rope") -> Model:
    torch.manual_seed(0)
    layer = {"kind": "pre_norm", "attention": {"kind": "gqa", "n_heads": 2, "position": position}}
    model = Model(ModelConfig(vocab_size=V, dim=16, n_layers=layers, context=context, layer=layer), seed=1).double()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model.eval()


def stream(n: int, seed: int) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(0, V, n).astype(np.uint16)
    tokens[0] = BOS
    return tokens


def score(
    kind: str, stride: int, model: Model, tokens: np.ndarray, context: int, bos: int | None = None, batch: int = 3
) -> float:
    scorer = Scorer.parse({"kind": kind, "stride": stride}).build()
    return scorer.score(model, tokens, np.ones(len(tokens)), context, batch, bos).nats


@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_every_target_is_scored_once_with_context_minus_stride_tokens_before_it(n: int, context: int, data) -> None:
    stride = data.draw(st.integers(1, context))
    seen = []
    for start, scored, end in zip(*strided(n, context, stride), strict=True):
        assert start <= scored < end <= min(n, start + context)
        assert start == 0 or scored - start == context - stride
        seen += range(scored, end)
        assert {window_of(target, context, stride) for target in range(scored, end)} == {start}
    assert seen == list(range(n))


@torch.no_grad()
@pytest.mark.parametrize(("n", "context", "stride"), [(9, 8, 1), (30, 8, 3), (41, 8, 8), (33, 8, 5)])
@pytest.mark.parametrize("bos", [None, BOS])
def test_sliding_is_the_score_of_one_token_at_a_time(n: int, context: int, stride: int, bos: int | None) -> None:
    tokens, model = stream(n, 3), model_of(context)
    nats = 0.0
    for i in range(1, n):  # token i: the first window, each a stride further, that reaches it
        start = next(w for w in range(0, n, stride) if i <= w + context)
        start = max([start, *(j for j in range(start, i) if tokens[j] == bos)])
        seen = torch.from_numpy(tokens[start:i].astype(np.int64))[None]
        nats -= float(model(seen).logits[0, -1].log_softmax(-1)[int(tokens[i])])
    assert score("sliding", stride, model, tokens, context, bos) == pytest.approx(nats, rel=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(9, 60), st.integers(1, 8), st.integers(0, 99), st.sampled_from([None, BOS]))
def test_with_one_layer_rolling_is_sliding(n: int, stride: int, seed: int, bos: int | None) -> None:
    tokens, model = stream(n, seed), model_of(8, 1, "none")
    want = score("sliding", stride, model, tokens, 8, bos)
    assert score("rolling", stride, model, tokens, 8, bos) == pytest.approx(want, rel=1e-12)
    turned = model_of(8, 1)  # its angles are in fp32, at other positions
    want = score("sliding", stride, turned, tokens, 8, bos)
    assert score("rolling", stride, turned, tokens, 8, bos) == pytest.approx(want, rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_with_two_layers_rolling_is_a_whole_forward_under_a_mask_of_recent_keys(
    stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, context = 50, 8
    tokens, model = stream(n, 7), model_of(context, 2, "none")
    rolled = score("rolling", stride, model, tokens, context)

    def recent(q: Tensor, n_keys: int, n_prefix: int, segments: Tensor | None, groups: int) -> Tensor:
        seen = [[window_of(i, context, stride) <= j <= i for j in range(n_keys)] for i in range(q.shape[2])]
        return torch.where(torch.tensor(seen), 0.0, -torch.inf).to(q.dtype).repeat(q.shape[1] // groups, 1)

    monkeypatch.setattr(zoo.core.attend, "_bias", recent)
    put = torch.from_numpy(tokens.astype(np.int64))[None]
    want = float(model(put[:, :-1], put[:, 1:]).nll.sum())
    assert rolled == pytest.approx(want, rel=1e-12)
    assert stride == 8 or rolled != pytest.approx(score("sliding", stride, model, tokens, context), rel=1e-5)


@given(st.integers(2, 3000), st.integers(1, 12), st.integers(1, 4), st.integers(1, 9), st.data())
def test_rows_side_by_side_score_every_target_once_behind_a_long_beginning(
    n: int, context: int, layers: int, batch: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    rows = stretches(n, context, stride, layers, batch)
    assert 1 <= len(rows.starts) <= batch and rows.warm + len(rows.starts) * (rows.length - rows.warm) >= n
    assert (rows.starts % stride == 0).all() and (rows.starts + rows.warm < n).all()
    seen = [j for i in rows.starts for j in range(i + (rows.warm if i else 0), min(n, i + rows.length))]
    assert seen == list(range(n))
    if len(rows.starts) > 1:
        assert rows.warm >= (layers + 1) * context and rows.warm * (len(rows.starts) - 1) <= n / 4


@settings(deadline=None, max_examples=20)
@given(st.integers(60, 300), st.integers(1, 4), st.integers(1, 2), st.integers(2, 9), st.integers(0, 99))
def test_rows_side_by_side_are_one_row(n: int, stride: int, layers: int, batch: int, seed: int) -> None:
    tokens, model, rows = stream(n, seed), model_of(4, layers, "none"), []
    one = score("rolling", stride, model, tokens, 4, batch=1)
    model.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    assert score("rolling", stride, model, tokens, 4, batch=batch) == pytest.approx(one, rel=1e-12)
    assert set(rows) == {len(stretches(n - 1, 4, stride, layers, batch).starts)}
    assert n < 250 or set(rows) != {1}


def test_a_block_that_remembers_for_longer_gets_one_row() -> None:
    config = {"vocab_size": V, "dim": 16, "n_layers": 1, "context": 4, "stem": ["smear_gate"]}
    model, tokens, rows = Model(ModelConfig(**config), seed=1).double().eval(), stream(300, 0), []

    def mean_of_all(x: Tensor, bus: Bus) -> Tensor:
        whole = bus.extend("all", x, keep=10**6).cumsum(1)
        return x + (whole / torch.arange(1, whole.shape[1] + 1)[:, None])[:, -x.shape[1] :]

    model.stem[0].forward = mean_of_all
    one = score("rolling", 2, model, tokens, 4, batch=1)
    model.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    assert score("rolling", 2, model, tokens, 4, batch=5) == one and set(rows) == {1, 5}


@pytest.mark.parametrize("kind", ["plain", "sliding"])
@pytest.mark.parametrize("bos", [None, BOS])
def test_only_what_is_scored_is_answered(kind: str, bos: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And neither the sum nor a token's nats and entropy depend on what is left out."""
    tokens, model, answered = stream(60, 3), model_of(8), []
    scorer = Scorer.parse({"kind": kind, **({} if kind == "plain" else {"stride": 3})}).build()

    def asked() -> tuple[float, np.ndarray]:
        own = scorer.score(model, tokens, tokens, 8, 2, bos).nats
        return own, np.stack(scorer.surprises(model, tokens, 8, 2, bos, lambda share: None))

    monkeypatch.setattr(model.head, "logits", spied(model.head.logits, answered))
    monkeypatch.setattr(model.head, "nll", spied(model.head.nll, answered))
    nats, surprises = asked()
    assert answered[-1] == (8 if kind == "plain" else 3) and answered[0] == 8, "the first window is scored whole"
    monkeypatch.setattr(Windowed, "rows", lambda *given, own=Windowed.rows: (r._replace(last=8) for r in own(*given)))
    whole = asked()
    assert set(answered[-4:]) == {8} and nats == pytest.approx(whole[0], rel=1e-12)
    assert surprises == pytest.approx(whole[1], rel=1e-9) and surprises[0].sum() == pytest.approx(nats, rel=1e-12)


def spied(call: Callable[..., Tensor], lengths: list[int]) -> Callable[..., Tensor]:
    """``call``, with the number of tokens per row of each call written down."""

    def told(x: Tensor, *given: Tensor) -> Tensor:
        lengths.append(x.shape[1])
        return call(x, *given)

    return told


@pytest.mark.parametrize("kind", ["plain", "sliding", "rolling"])
@pytest.mark.parametrize("bos", [None, BOS])
def test_a_predictor_knows_each_distribution_before_its_token(kind: str, bos: int | None) -> None:
    tokens, model = stream(40, 5), model_of(8)
    scorer = Scorer.parse({"kind": kind, **({} if kind == "plain" else {"stride": 3})}).build()
    ask, nats = scorer.predictor(model, 8, bos), 0.0
    for now, following in zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True):
        probabilities = ask(now)
        assert probabilities.shape == (V,) and probabilities.sum() == pytest.approx(1, abs=1e-12)
        nats -= math.log(probabilities[following])
    assert scorer.score(model, tokens, tokens, 8, 2, bos).nats == pytest.approx(nats, rel=1e-12)


@pytest.mark.parametrize("kind", ["sliding", "rolling"])
def test_what_does_not_fit_is_refused(kind: str) -> None:
    model, tokens = model_of(8), stream(8, 0)
    with pytest.raises(ConfigError, match="8 tokens, which do not fill one window of 8"):
        score(kind, 2, model, tokens, 8)
    with pytest.raises(ConfigError, match=r"stride = 9: exceeds the context of 8"):
        score(kind, 9, model, stream(20, 0), 8)
    with pytest.raises(ConfigError, match=r"token 11, outside the model's vocabulary of 11: .*another tokenizer"):
        score(kind, 2, model, np.full(20, 11), 8)


def test_what_is_forgotten_makes_room_and_must_have_been_there() -> None:
    model = model_of(4)
    cache = model.cache(1, 4)
    one = torch.zeros(1, 4, dtype=torch.long)
    with torch.no_grad():
        model(one, cache=cache)
        with pytest.raises(ConfigError, match=r"4 \+ 1 tokens exceed"):
            model(one[:, :1], cache=cache)
        cache.forget(3)
        model(one[:, :3], cache=cache)
    assert cache.length == 7 and cache.dropped == 3
    with pytest.raises(ConfigError, match="cannot forget 5 of 4 tokens"):
        cache.forget(5)
    kept = model.cache(1, 4)
    with torch.no_grad():
        model(one[:, :2], segments=one[:, :2], cache=kept)
    with pytest.raises(ConfigError, match="keeps documents apart cannot forget"):
        kept.forget(1)


@pytest.mark.parametrize("far", [2**14, 10**6, 10**9])
def test_rotation_by_far_positions_keeps_distances(far: int) -> None:
    rope = RoPE(RoPE.Config(), Site(8, context=4))
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def at(t: Tensor, position: int) -> Tensor:
        return rope(t, Bus(past=Past({}, position, 1)).at("here"))

    near = (at(q, 13) * at(k, 0)).sum()
    assert (at(q, far + 13) * at(k, far)).sum() == pytest.approx(float(near), abs=1e-5)


def test_further_scorers_have_columns_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from ablate import app
    from zoo.trials.open import open_trial

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    more = '[evaluate]\nalso = ["rolling", { kind = "sliding", stride = 4 }]\n[kinds.scorer.rolling]\nstride = 8\n'
    out = tmp_path / "out"
    done = CliRunner().invoke(app, [str(write(tmp_path, more)), "--out", str(out), "--workers", "0"])
    assert done.exit_code == 0, done.output
    trial = open_trial("baseline", out)
    found, text = trial.result.scores, trial.text()
    assert list(found) == ["rolling(stride=8)", "sliding(stride=4)"] and all(s.code_length for s in found.values())
    want = score("sliding", 4, trial.model(), text.valid, 16)
    assert found["sliding(stride=4)"].nats_per_token == pytest.approx(want / (len(text.valid) - 1), rel=1e-6)
    table = (out / "table.md").read_text()
    assert f"| {found['sliding(stride=4)'].bits_per_byte:.4f} |" in table and "sliding(stride=4) bits/byte" in table
    assert "rolling(stride=8) bits/byte" in (out / "table.csv").read_text()
    for wrong, why in (
        ('["sliding", "sliding"]', "evaluate.also[1] = 'sliding': asked for twice"),
        ('["sliding"]', "evaluate.also[0].stride = 64: exceeds the context of 16"),
    ):
        bad = CliRunner().invoke(app, [str(write(tmp_path, f"[evaluate]\nalso = {wrong}\n", "bad.toml"))])
        assert bad.exit_code == 2 and why in bad.output, bad.output

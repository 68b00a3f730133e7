"""A code that is as long as was claimed, and text that comes back bit for bit or not at all."""

from __future__ import annotations

import json
import math
import shutil
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import Result as Ended
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import zoo.blocks
import zoo.data
import zoo.scoring
from ablate import app
from recipes import TEXT, write
from zoo.core.part import ConfigError
from zoo.data.slots import Document, Tokenizer
from zoo.model import Model, ModelConfig
from zoo.proof import decode as reader
from zoo.proof.coder import TOTAL, Choices, Decoder, Encoder, frequencies
from zoo.proof.decode import text_of
from zoo.proof.file import Proof, digest, read, to_bytes
from zoo.proof.prove import beginning
from zoo.proof.stream import EVERY, compress, decompress
from zoo.scoring.slots import Scorer
from zoo.trials.open import open_trial

assert zoo.blocks and zoo.data and zoo.scoring  # imported for the kinds they register

shares = st.lists(st.floats(0, 1), min_size=1, max_size=300).map(np.array)


@given(st.lists(st.tuples(shares, st.integers(0, 10**6)), max_size=60))
def test_choices_come_back_and_take_the_bits_that_their_frequencies_say(made: list) -> None:
    tables = [np.concatenate([[0], np.cumsum(frequencies(p))]) for p, _ in made]
    chosen = [number % len(p) for p, number in made]
    encoder, bits = Encoder(), 0.0
    for starts, i in zip(tables, chosen, strict=True):
        encoder.put(int(starts[i]), int(starts[i + 1] - starts[i]))
        bits -= math.log2((starts[i + 1] - starts[i]) / TOTAL)
    code = encoder.finish()
    assert 8 * len(code) <= bits + 2 + 7 + 1e-3 * len(made)  # two bits to end it, and whole bytes
    decoder = Decoder(code)
    assert [decoder.get(starts) for starts in tables] == chosen


@given(shares)
def test_frequencies_are_whole_positive_and_near_the_shares(p: np.ndarray) -> None:
    found = frequencies(p)
    assert found.sum() == TOTAL and found.min() >= 1 and found.dtype == np.int64
    if p.sum() > 0:
        assert np.abs(found / TOTAL - p / p.sum()).max() <= (len(p) + 1) / TOTAL


@pytest.mark.parametrize("wrong", [[0.5, math.nan], [1.0, math.inf], [1.5, -0.5]])
def test_what_is_no_probability_is_refused(wrong: list[float]) -> None:
    with pytest.raises(ConfigError, match="no numbers"):
        frequencies(np.array(wrong))
    with pytest.raises(ConfigError, match="do not fit"):
        frequencies(np.ones(TOTAL + 1))


@pytest.mark.parametrize("vocab", [1, 2, 257, 1024, 49_152])
def test_two_choices_cost_little_more_than_the_distribution_has(vocab: int) -> None:
    p = np.random.default_rng(0).dirichlet(np.full(vocab, 0.02))
    choices, cost = Choices(p), 0.0
    for token in np.flatnonzero(p > 1e-9).tolist():
        group, place = divmod(token, choices.width)
        inner = choices.within(group)
        size = (choices.groups[group + 1] - choices.groups[group]) * (inner[place + 1] - inner[place])
        cost -= p[token] * math.log2(size / TOTAL**2)
    entropy = -(p[p > 0] * np.log2(p[p > 0])).sum()
    assert entropy - 1e-6 <= cost <= entropy + 0.02


class Toy:
    """Believes what a generator says, keyed by all tokens so far; from token ``wrong`` on a little else."""

    def __init__(self, vocab: int, wrong: int | None = None) -> None:
        self.vocab, self.wrong, self.past = vocab, wrong, []

    def __call__(self, token: int) -> np.ndarray:
        self.past.append(token)
        p = np.random.default_rng(self.past[-4:]).exponential(size=self.vocab)
        if self.wrong is not None and len(self.past) >= self.wrong:
            p[0] *= 1.1
        return p / p.sum()


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 700), st.integers(1, 40), st.integers(0, 99))
def test_tokens_come_back(n: int, vocab: int, seed: int) -> None:
    tokens = np.random.default_rng(seed).integers(0, vocab, n).tolist()
    coded = compress(Toy(vocab), tokens, lambda share: None)
    assert decompress(Toy(vocab), coded, tokens[0], n, lambda share: None) == tokens
    assert len(coded.checks) == -(-(n - 1) // EVERY)


@pytest.mark.parametrize(
    ("wrong", "named"), [(1, "1 to 256"), (256, "1 to 256"), (257, "257 to 512"), (600, "513 to 699")]
)
def test_a_machine_that_believes_something_else_is_stopped_where_it_shows_first(wrong: int, named: str) -> None:
    tokens = np.random.default_rng(0).integers(0, 30, 700).tolist()
    coded = compress(Toy(30), tokens, lambda share: None)
    with pytest.raises(ConfigError, match=f"stopped at tokens {named} of 699"):
        decompress(Toy(30, wrong), coded, tokens[0], 700, lambda share: None)


@pytest.mark.parametrize("kind", ["plain", "sliding", "rolling", "ngram_backoff", "ngram_witten_bell"])
@pytest.mark.parametrize("bos", [None, 10])
def test_every_normalised_scorer_drives_a_code_as_long_as_its_figure(kind: str, bos: int | None) -> None:
    torch.manual_seed(0)
    model = Model(ModelConfig(vocab_size=11, dim=16, n_layers=1, context=8), seed=1).double().eval()
    scorer = Scorer.parse({"kind": kind, **({"stride": 3} if kind in ("sliding", "rolling") else {})}).build()
    tokens = [10, *np.random.default_rng(0).integers(0, 11, 400).tolist()]
    coded = compress(scorer.predictor(model, 8, bos), tokens, lambda share: None)
    assert decompress(scorer.predictor(model, 8, bos), coded, 10, 401, lambda share: None) == tokens
    claimed = scorer.score(model, np.array(tokens), np.ones(401), 8, 4, bos).nats / math.log(2)
    assert 0.998 * claimed <= 8 * len(coded.code) <= 1.002 * claimed + 9


def prepared(texts: list[str], lossless: bool = True) -> SimpleNamespace:
    tokenizer = Tokenizer.parse("byte").build(Path())
    tokenizer.lossless = lossless
    return SimpleNamespace(
        tokenizer=tokenizer, documents=lambda part: iter([Document(str(i), t) for i, t in enumerate(texts)])
    )


def test_the_beginning_of_a_text_ends_between_characters() -> None:
    texts = prepared(["añb", "cd", "ef"])
    for n, want in ((1, "a"), (2, "a"), (3, "añ"), (4, "añb"), (5, "añbc"), (6, "añbcd"), (8, "añbcdef")):
        tokens, text = beginning(texts, n)
        assert text == want.encode() and text_of(tokens, texts.tokenizer) == text
        assert tokens.count(texts.tokenizer.bos) == 1 + (n > 4) + (n > 6)
    with pytest.raises(ConfigError, match="--bytes 9: the validation text has 8 bytes"):
        beginning(texts, 9)
    with pytest.raises(ConfigError, match="changes text"):
        beginning(prepared(["abc"], lossless=False), 2)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proof")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(folder / "cache"))
        done = CliRunner().invoke(app, [str(write(folder)), "--out", str(folder / "out"), "--workers", "1"])
        assert done.exit_code == 0, done.output
        yield folder / "out"


def call(*words: object) -> Ended:
    ended = CliRunner().invoke(app, [str(word) for word in words])
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    return ended


def test_prove_and_decode(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = call("prove", "baseline", "--out", out, "--bytes", 600, "--to", tmp_path)
    assert ended.exit_code == 0 and "came back bit for bit" in ended.output and "within 0.5 %" in ended.output
    told = json.loads((tmp_path / "proof.json").read_text())
    assert told["exact"] and told["text_bytes"] == told["tokens"] == 600
    assert told["coded_bits_per_byte"] == pytest.approx(told["claimed_bits_per_byte"], rel=0.005)
    for name in ("xz -9e", "zstd -22", "brotli -11"):
        assert name in ended.output
    valid = "".join(d.text for d in open_trial("baseline", out).text().documents("valid")).encode()
    artifact, code = tmp_path / "proof.safetensors", tmp_path / "proof.zpf"
    assert call("decode", artifact, code, "--to", tmp_path / "text").exit_code == 0
    assert (tmp_path / "text").read_bytes() == valid[:600] and valid[:20].decode() in TEXT

    def refused(why: str, file: Path = code) -> None:
        ended = call("decode", artifact, file, "--to", tmp_path / "never")
        assert ended.exit_code == 2 and why in ended.output, ended.output
        assert not (tmp_path / "never").exists()

    ended = call("decode", artifact, code, "--to", tmp_path / "text" / "inside")
    assert ended.exit_code == 2 and "inside: cannot be written: " in ended.output, ended.output
    damaged, data = tmp_path / "damaged", code.read_bytes()
    for at in (20, 50, 90, len(data) - 1):
        damaged.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        refused("is truncated or damaged", damaged)
    damaged.write_bytes(data[:-3])
    refused("is truncated or damaged", damaged)
    damaged.write_bytes(b"")
    refused("is no proof", damaged)
    refused("cannot be read", tmp_path / "missing")
    proof = read(code)
    damaged.write_bytes(to_bytes(proof._replace(text=digest(b"another text"))))
    refused("is not the text that was coded", damaged)
    damaged.write_bytes(to_bytes(proof._replace(artifact=digest(b"another artifact"))))
    refused("was made with another artifact", damaged)
    for scorer in ({"kind": "slidin"}, {"kind": "sliding", "stride": -1}, {"kind": "ngram_as_published"}, [], 3):
        damaged.write_bytes(to_bytes(proof._replace(scorer=scorer)))
        refused(f"{damaged.name}: its scorer is none", damaged)
    for since, why in ((0, "stopped at the probe"), (300, "stopped at tokens 257 to 512 of 600")):
        with monkeypatch.context() as patch:
            other_machine(patch, since)
            refused(why)


def other_machine(monkeypatch: pytest.MonkeyPatch, since: int) -> None:
    """From the ``since``-th token on, logits that another machine's products might give."""
    true = reader.predictor

    def strange(*given: object) -> object:
        ask, asked = true(*given), [0]

        def tell(token: int) -> np.ndarray:
            asked[0] += 1
            p = ask(token)
            return p if asked[0] < since else p * (1 + 1e-3 * np.arange(len(p)) / len(p))

        return tell

    monkeypatch.setattr(reader, "predictor", strange)


def test_what_cannot_be_proven_is_refused_before_any_work(out: Path, tmp_path: Path) -> None:
    for words, why in (
        (("--scorer", "ngram_as_published"), "cannot drive a code: whether an order answers depends on the bucket"),
        (("--scorer", "slidin"), "no scorer is called 'slidin', did you mean 'sliding'?"),
        (("--scorer", "{kind='sliding', strid=1}"), "unknown key, did you mean 'stride'?"),
        (("--scorer", "sliding"), "stride = 64: exceeds the context of 16"),
        (("--scorer", "{kind='rolling', stride=4}", "--bytes", "10"), "which do not fill one window of 16"),
        (("--bytes", "1000000"), "--bytes 1,000,000: the validation text has"),
        (("--artifact", str(tmp_path / "none")), "none"),
    ):
        ended = call("prove", "baseline", "--out", out, "--bytes", 100, "--to", tmp_path / "to", *words)
        assert ended.exit_code == 2 and why in ended.output, ended.output
        assert not (tmp_path / "to" / "proof.zpf").exists()
    bare = out.parent / "other" / "bare"  # as deep as the trial itself, whose recipe names its text from there
    shutil.copytree(open_trial("baseline", out).folder, bare, ignore=shutil.ignore_patterns("checkpoints"))
    ended = call("prove", bare, "--bytes", 100, "--to", tmp_path / "to")
    assert ended.exit_code == 2 and ended.output.startswith(f"error: {bare}: no weights to load"), ended.output


def test_a_proof_says_what_it_is_made_of() -> None:
    coded = compress(Toy(9), [1, 2, 3], lambda share: None)
    proof = Proof(3, 3, b"a" * 8, b"b" * 8, b"c" * 8, {"kind": "plain"}, coded)
    path = Path(__file__)
    with pytest.raises(ConfigError, match="is no proof"):
        read(path)
    assert len(to_bytes(proof)) < 80


@pytest.mark.parametrize(
    ("place", "value"), [("<I", (8, 4_000_000_000)), ("<I", (8, 0)), ("<H", (36, 65_535)), ("<H", (36, 3))]
)
def test_a_header_that_does_not_fit_is_refused_whatever_its_checksum(
    place: str, value: tuple[int, int], tmp_path: Path
) -> None:
    """Numbers of tokens and lengths that lie, in a file whose checksum is right."""
    coded = compress(Toy(9), [1, 2, 3], lambda share: None)
    body = bytearray(to_bytes(Proof(3, 3, b"a" * 8, b"b" * 8, b"c" * 8, {"kind": "plain"}, coded))[:-4])
    struct.pack_into(place, body, *value)
    (tmp_path / "lie").write_bytes(bytes(body) + struct.pack("<I", zlib.crc32(bytes(body))))
    with pytest.raises(ConfigError, match="lie: is damaged: its header does not fit its contents"):
        read(tmp_path / "lie")


@pytest.mark.slow
def test_the_first_recipe_is_proven_on_20_000_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    recipe = Path(__file__).parents[1] / "recipes" / "quickstart.toml"
    trained = call(recipe, "--only", "gqa", "--out", tmp_path / "out", "--workers", "1")
    assert trained.exit_code == 0, trained.output
    ended = call("prove", "gqa-seed0", "--out", tmp_path / "out", "--bytes", 20_000)
    assert ended.exit_code == 0 and "20,000 bytes of validation text" in ended.output, ended.output

"""Bits per byte under a uniform predictor, byte-level BPE of any size, and what ``ablate.py tokens`` prints."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learned import DOCUMENTS, TRAPS, any_text, build, byte_level, metaspace, train_library, wordpiece
from rich.console import Console
from typer.testing import CliRunner

import ablate
from recipes import write
from zoo.core.part import ConfigError
from zoo.data.prepare import prepare
from zoo.data.slots import Document, Source, Tokenizer
from zoo.recipe import DataConfig
from zoo.report.tokens import coloured, longest, measure, pieces
from zoo.scoring.plain import Plain

TEXT = "@".join(d.text for d in DOCUMENTS)
KINDS = ("byte", "bpe", "unigram", "byte_bpe", "hf", "nmt_nfkc", "wordpiece", "metaspace")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    byte_level(folder / "byte_level")
    wordpiece(folder / "wordpiece")
    metaspace(folder / "metaspace")
    train_library(folder / "nmt_nfkc.model")
    (folder / "train.txt").write_text(TEXT, encoding="utf-8")
    (folder / "valid.txt").write_text("@".join(["One fixed text: größe 数学 😀  twice\n\n", *TRAPS]), encoding="utf-8")
    return folder


def tokenizer(kind: str) -> dict[str, object]:
    if kind in ("wordpiece", "metaspace", "hf"):
        return {"kind": "hf", "name": "byte_level" if kind == "hf" else kind}
    if kind == "nmt_nfkc":
        return {"kind": "sentencepiece", "model": "nmt_nfkc.model"}
    if kind in ("bpe", "unigram"):
        return {"kind": "sentencepiece", "model_type": kind, "vocab_size": 320}
    return {"kind": kind, **({"vocab_size": 300} if kind == "byte_bpe" else {})}


class Uniform(torch.nn.Module):
    """A model to which every token is as likely as any other."""

    class Out(NamedTuple):
        nll: torch.Tensor | None
        logits: torch.Tensor

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.weight, self.config = torch.nn.Parameter(torch.zeros(())), SimpleNamespace(vocab_size=vocab_size)

    def forward(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor | None = None,
        segments: Any = None,
        last: int | None = None,
    ) -> Out:
        nll = None if targets is None else torch.where(targets >= 0, math.log(self.config.vocab_size), 0.0)
        nll = nll if nll is None or last is None else nll[:, -last:]
        return self.Out(nll, torch.zeros(inputs.shape[0], last or inputs.shape[1], self.config.vocab_size))


@pytest.mark.parametrize("kind", KINDS)
def test_bits_per_byte_of_a_uniform_predictor_are_what_arithmetic_says(folder: Path, tmp_path: Path, kind: str) -> None:
    source = {"kind": "text", "files": ["train.txt"], "valid_files": ["valid.txt"], "separator": "@"}
    config = DataConfig(source=Source.parse(source), tokenizer=Tokenizer.parse(tokenizer(kind)), duplicates="kept")
    found = prepare(config, folder, tmp_path)
    made = found.tokenizer
    encoded = [(text, made.encode(text)) for text in (folder / "valid.txt").read_bytes().decode().split("@")]
    kept = [(text, ids) for text, ids in encoded if len(ids)]  # those that normalise leave nothing of some
    n_bytes = sum(len(text.encode()) for text, _ in kept)
    n_tokens = sum(1 + len(ids) for _, ids in kept) - 1  # the very first bos is given
    score = Plain(Plain.Config()).score(
        Uniform(made.vocab_size).eval(), found.valid, found.valid_spans, context=16, batch=4
    )
    assert score.bytes == n_bytes == found.valid_bytes
    assert score.bits_per_byte == pytest.approx(n_tokens * math.log2(made.vocab_size) / n_bytes, rel=1e-6)


# --- byte-level BPE ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [257, 300, 380])
def test_byte_level_bpe_has_the_size_asked_for_and_is_the_same_again(size: int) -> None:
    first, second = build("byte_bpe", vocab_size=size), build("byte_bpe", vocab_size=size)
    assert first.learned == second.learned and first.vocab_size == size and first.lossless
    assert sorted(p for p in first.pieces if len(p) == 1) == [bytes([b]) for b in range(256)]
    assert first.pieces[first.bos] == b"" and first.unknown is None


def test_byte_level_bpe_cannot_learn_more_than_there_is() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size = 9000: cannot be learned from this text: it has pairs for"):
        build("byte_bpe", vocab_size=9000)
    with pytest.raises(ConfigError, match="256 bytes and the bos need 257"):
        build("byte_bpe", vocab_size=200)


def test_a_batch_is_encoded_as_its_texts_are(folder: Path) -> None:
    for kind in KINDS:
        made = Tokenizer.parse(tokenizer(kind)).build(folder)
        made.load(made.train(iter(DOCUMENTS)))
        texts = [*TRAPS, *(d.text for d in DOCUMENTS[:3]), ""]
        for text, ids in zip(texts, made.encode_many(texts), strict=True):
            assert ids.tolist() == made.encode(text).tolist(), (kind, text)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["byte", "bpe", "byte_bpe", "nmt_nfkc", "metaspace"])
def test_pieces_are_the_text_cut_up(folder: Path, kind: str) -> None:
    made = Tokenizer.parse(tokenizer(kind)).build(folder)
    made.load(made.train(iter(DOCUMENTS)))

    @settings(max_examples=60, deadline=None)
    @given(any_text)
    def holds(text: str) -> None:
        found = list(pieces(made, text))
        assert len(found) == len(made.encode(text))
        assert "".join(found) == (text if found else "")
        coloured(made, text)

    holds()


def test_figures_of_a_tokenizer_are_counted(folder: Path) -> None:
    documents = [Document("a", "aé"), Document("b", "day the day")]
    found = measure(build("byte"), documents)
    assert found[:4] == (257, 14, 14, 0) and found.lossless and found.bytes_per_token == 1 and found.used == 9
    lost = measure(build("hf", folder, name="wordpiece"), documents)
    assert not lost.lossless and lost.changed == 1 and lost.unknown == 1 and lost.tokens == 4 and lost.bytes == 14
    assert longest(build("byte"), 1)[0][1] != "" and len(longest(build("byte_bpe", vocab_size=300))) == 10


@given(st.text(max_size=40))
def test_a_coloured_sample_moves_no_cursor(text: str) -> None:
    console = Console(record=True, width=200)
    with console.capture() as shown:
        console.print(coloured(build("byte"), text))
    assert not {c for c in shown.get() if c != "\n" and not c.isprintable()}


def test_tokens_prints_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    path = write(tmp_path, '[data.tokenizer]\nkind = "byte_bpe"\nvocab_size = 330\n')
    done = CliRunner().invoke(ablate.app, ["tokens", str(path)])
    assert done.exit_code == 0, done.output
    for words in ("330 ids", "bytes per token", "unknown", "lossless: yes", "longest tokens", "lazy dogs", "by id"):
        assert words in done.output
    assert len([line for line in done.output.splitlines() if line.startswith("  ") and "'" in line]) == 10
    wrong = CliRunner().invoke(ablate.app, ["tokens", str(path), "--set", "data.tokenizer.vocab_size=100000"])
    assert wrong.exit_code == 2 and "data.tokenizer.vocab_size = 100000: cannot be learned" in wrong.output

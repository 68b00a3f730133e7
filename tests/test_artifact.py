"""Artifacts: the whole trial from one file, and every way in which that file can be wrong."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import zoo
from recipes import TEXT, write
from zoo.artifact import Made, make, read_artifact, weights_of, write_artifact
from zoo.checkpoint import save
from zoo.codecs import container
from zoo.codecs.slots import Codec
from zoo.core.part import ConfigError
from zoo.core.wires import noise_key
from zoo.data.slots import Document
from zoo.recipe import Recipe

PIECES = 'data.tokenizer={kind="sentencepiece", vocab_size=300}'


def made(folder: Path, codec: str | dict = "mixed", *sets: str) -> tuple[Recipe, Made, zoo.Model]:
    """An artifact of a small untrained model whose tokenizer has been learned."""
    recipe = zoo.load(write(folder), sets=[PIECES, "model.vocab_size=300", *sets])
    tokenizer = recipe.data.tokenizer.build(folder)
    tokenizer.load(tokenizer.train([Document("text", TEXT)]))
    model = zoo.Model(recipe.model, seed=1).eval()
    return recipe, make(recipe, tokenizer, model, Codec.parse(codec)), model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "artifact.safetensors"
    write_artifact(path, made(path.parent)[1])
    return path


@pytest.mark.parametrize("codec", ["raw", "int8", "mixed"])
@pytest.mark.parametrize("ffn", ["relu2", '{kind="moe", balance="loss_free", n_experts=4}'])
def test_recipe_tokenizer_and_model_come_back_from_the_file_alone(tmp_path: Path, codec: str, ffn: str) -> None:
    recipe, artifact, model = made(tmp_path, {"kind": codec, "small": 100}, f"model.layer.ffn={ffn}")
    path = tmp_path / "elsewhere" / "a.safetensors"
    size = write_artifact(path, artifact)
    assert size == path.stat().st_size == artifact.size
    (tmp_path / "text.txt").unlink()  # nothing but the file is there
    back = read_artifact(path)
    assert back.recipe == recipe and not back.model.training
    assert back.tokenizer.decode(back.tokenizer.encode(TEXT)) == TEXT and back.tokenizer.vocab_size == 300
    stored = {t.name: t.decoded() for t in artifact.tensors}
    assert stored.keys() == {w.name for w in weights_of(model)}
    for weight in weights_of(back.model):
        assert torch.equal(weight.tensor, stored[weight.name]), weight.name
    tokens = torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, before = (m(tokens[:, :-1], tokens[:, 1:], noise=noise_key(0)).nll for m in (back.model, model))
    assert torch.equal(ours, before) if codec == "raw" else torch.allclose(ours, before, atol=0.2)


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    first, second = (made(tmp_path)[1] for _ in range(2))
    assert container.to_bytes(first.planes, first.facts) == container.to_bytes(second.planes, second.facts)


def test_the_file_is_safetensors_and_its_index_is_json(whole: Path) -> None:
    with safe_open(whole, framework="pt") as file:
        planes = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        assert file.metadata()["format"] == "zoo 1"
    assert {t.dtype for t in planes.values()} == {torch.uint8}
    assert {"recipe", "tokenizer", "index", "int5", "int6", "float16", "scales"} >= planes.keys()
    index = json.loads(zlib.decompress(planes["index"].numpy().tobytes()))
    assert ["embedding.weight", [300, 16], "float16"] in index


# -- damage -----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(share=st.floats(0, 1, exclude_max=True), flipped=st.integers(1, 255))
def test_any_changed_byte_is_detected(whole: Path, share: float, flipped: int) -> None:
    data = bytearray(whole.read_bytes())
    data[int(share * len(data))] ^= flipped
    with pytest.raises(ValueError, match=r"damaged|truncated"):
        container.from_bytes(bytes(data))


def test_every_byte_of_the_header_is_under_a_checksum(whole: Path) -> None:
    data = whole.read_bytes()
    for at in range(8 + int.from_bytes(data[:8], "little")):
        for flipped in (1, 32, 128):
            changed = bytearray(data)
            changed[at] ^= flipped
            with pytest.raises(ValueError, match=r"damaged|truncated"):
                container.from_bytes(bytes(changed))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(share=st.floats(0, 1, exclude_max=True), more=st.binary(max_size=3))
def test_any_other_length_is_detected(whole: Path, share: float, more: bytes) -> None:
    data = whole.read_bytes()
    shorter = data[: int(share * len(data))]
    for wrong in (shorter, data + b"\0" + more):
        with pytest.raises(ValueError, match=r"damaged|truncated"):
            container.from_bytes(wrong)


@pytest.mark.parametrize("plane", ["recipe", "tokenizer", "index", "float16"])
def test_the_damaged_plane_is_named(whole: Path, tmp_path: Path, plane: str) -> None:
    data, contents = bytearray(whole.read_bytes()), container.read(whole)
    data[data.index(contents.planes[plane]) + 5] ^= 4
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"damaged\.safetensors: damaged: its plane '{plane}' does not match"):
        read_artifact(path)


def test_what_is_no_artifact_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_artifact(path)
    save(tmp_path, 3, {"w": torch.ones(3)}, {})
    for content in (b"", b"hello", b"x" * 500, (tmp_path / "step_00000003.safetensors").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"a\.safetensors: .*no artifact"):
            read_artifact(path)


# -- contents that do not fit each other ------------------------------------------------------------------------------


def rewritten(path: Path, artifact: Made, **planes: bytes) -> Path:
    container.write(path, {**artifact.planes, **planes}, artifact.facts)
    return path


def test_weights_of_another_recipe_are_refused_by_name(tmp_path: Path) -> None:
    _, ours, _ = made(tmp_path)
    other = made(tmp_path, "mixed", "model.layer.ffn.hidden_dim=40")[1]
    with pytest.raises(
        ConfigError, match=r"not this recipe's weights: layer\.0\.ffn\.\w+\.weight is \(\d+, \d+\), not"
    ):
        read_artifact(rewritten(tmp_path / "a", ours, recipe=other.planes["recipe"]))
    deeper = made(tmp_path, "mixed", "model.n_layers=3")[1]
    with pytest.raises(ConfigError, match=r"only the recipe's model has layer\.2\."):
        read_artifact(rewritten(tmp_path / "a", ours, recipe=deeper.planes["recipe"]))
    with pytest.raises(ConfigError, match=r"only the artifact holds layer\.2\."):
        read_artifact(rewritten(tmp_path / "a", deeper, recipe=ours.planes["recipe"]))


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    _, ours, _ = made(tmp_path)
    recipe = zoo.load(write(tmp_path), sets=[PIECES.replace("300", "400"), "model.vocab_size=400"])
    larger = recipe.data.tokenizer.build(tmp_path)
    larger.load(larger.train([Document("text", TEXT)]))
    wrong = make(recipe, larger, zoo.Model(recipe.model), Codec.parse("int5")).planes["tokenizer"]
    with pytest.raises(ConfigError, match="vocabularies do not match: its tokenizer has 400 tokens and its model 300"):
        read_artifact(rewritten(tmp_path / "a", ours, tokenizer=wrong))


@pytest.mark.parametrize(
    ("plane", "content", "said"),
    [
        ("recipe", b"no xz", "its recipe cannot be decoded"),
        ("tokenizer", b"no xz", "its tokenizer cannot be decoded"),
        ("index", zlib.compress(b"[[1]]"), "its weights cannot be decoded: .* no row of an index"),
        ("index", zlib.compress(b'[["a", [2], "int99"]]'), "stored as 'int99'"),
        ("int5", b"\1\0\0\0\0", "its weights cannot be decoded"),
        ("scales", b"", "its weights cannot be decoded"),
    ],
)
def test_planes_that_do_not_mean_anything_are_refused(tmp_path: Path, plane: str, content: bytes, said: str) -> None:
    artifact = made(tmp_path, {"kind": "int5", "small": 100})[1]
    with pytest.raises(ConfigError, match=said):
        read_artifact(rewritten(tmp_path / "a", artifact, **{plane: content}))

"""Artifacts: a trained model as one small file that needs nothing else: recipe, tokenizer, weights.

``read_artifact(path)`` gives (recipe, tokenizer, model) back from the file alone; no text, no cache, no network. The file is
a safetensors file of byte planes with a checksum each (see zoo.codecs.container):

- ``recipe``: the resolved recipe, TOML, xz;
- ``tokenizer``: what the tokenizer learned (``Tokenizer.train``), xz;
- ``index``: JSON, deflated: for each tensor [name, shape, storage] in the order in which it is stored;
- all others: the tensors, as the codec's coding packs them (``facts["coding"]``; see zoo.codecs.codings).

Weights come back as codes times scales: one exactly rounded product each, so equal files give equal weights everywhere. A
recipe with plug-ins is read where its plug-ins are registered or lie where the recipe says.
"""

from __future__ import annotations

import json
import lzma
import tomllib
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from zoo import machine, plugins
from zoo.codecs import container
from zoo.codecs.inputs import hessians
from zoo.codecs.slots import Codec, Coding, Hessians, Stored, Weight, from_index
from zoo.core.params import entries
from zoo.core.part import ConfigError
from zoo.core.tables import tabulate
from zoo.data.prepare import Prepared
from zoo.data.slots import Tokenizer
from zoo.model import Model
from zoo.recipe import Recipe, dumps
from zoo.resolve import loads

T = TypeVar("T")
OWN = ("recipe", "tokenizer", "index")  # planes that hold no weights
SUFFIX = ".safetensors"


class Artifact(NamedTuple):
    """What an artifact holds, ready to be used."""

    recipe: Recipe
    tokenizer: Tokenizer  # loaded
    model: Model  # in evaluation mode, on the CPU


class Made(NamedTuple):
    """An artifact in memory, and where its bytes go."""

    planes: dict[str, bytes]
    facts: dict[str, str]
    tensors: list[Stored]
    shares: list[float]  # bytes that each tensor takes, shared tables left out
    remarks: tuple[str, ...]  # what may have been overlooked in the codec's knobs

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(container.to_bytes(self.planes, self.facts))


def weights_of(model: Model) -> list[Weight]:
    """Every tensor of a model that has to be stored, tied ones once: parameters, then the buffers of its state."""
    found = [Weight(entry.name, entry.parameter, entry.role) for entry in entries(model)]
    buffers = dict(model.named_buffers())
    return found + [Weight(name, buffers[name], None) for name in model.state_dict() if name in buffers]


def make(
    recipe: Recipe, tokenizer: Tokenizer, model: Model, codec: Codec.Config, inputs: Hessians | None = None
) -> Made:
    """Encode a model.

    Args:
        recipe: the resolved recipe it was trained by.
        tokenizer: its tokenizer, loaded.
        model: with the weights to store.
        codec: how.
        inputs: see ``inputs_for``.

    Raises:
        ConfigError: weights that the codec cannot store, or a library that is not installed.
    """
    built, weights = codec.build(), weights_of(model)
    tensors = list(built.encode(weights, inputs))
    packed = built.coding.pack(tensors)
    index = json.dumps([[t.name, t.shape, t.storage] for t in tensors], separators=(",", ":"))
    own = {
        "recipe": _xz(dumps(recipe).encode()),
        "tokenizer": _xz(tokenizer.learned),
        "index": zlib.compress(index.encode(), 9),
    }
    facts = {"coding": json.dumps(tabulate(codec.coding)), "codec": str(codec.part.kind)}
    return Made({**own, **packed.planes}, facts, tensors, packed.shares, tuple(built.remarks(weights)))


def write_artifact(path: Path, made: Made) -> int:
    """Write an artifact whole or not at all; the number of its bytes.

    Raises:
        ConfigError: it cannot be written.
    """
    return container.write(path, made.planes, made.facts)


def read_artifact(path: str | Path) -> Artifact:
    """Recipe, tokenizer and model from the file alone.

    Raises:
        ConfigError: a file that is missing, truncated or damaged (the plane is named), or whose tensors or vocabulary do not
            fit its recipe.
    """
    path = Path(path)
    contents = container.read(path)
    recipe = _guarded(path, "recipe", lambda: _recipe(path, contents.planes))
    tokenizer = _guarded(path, "tokenizer", lambda: _tokenizer(path, recipe, contents.planes))
    model = build_model(recipe)
    if tokenizer.vocab_size > model.config.vocab_size:
        own = f"its tokenizer has {tokenizer.vocab_size:,} tokens and its model {model.config.vocab_size:,}"
        raise ConfigError(f"{path}: the vocabularies do not match: {own}")
    tensors = _guarded(path, "weights", lambda: _tensors(contents))
    put(model, tensors, path)
    return Artifact(recipe, tokenizer, model)


def inputs_for(codec: Codec.Config, recipe: Recipe, prepared: Prepared, model: Model) -> Hessians | None:
    """What the model's matrices are multiplied with on training text, where the codec's rounding asks for it."""
    if not (rows := codec.rounding.rows_wanted()):
        return None
    bos = prepared.tokenizer.bos if recipe.data.document_mask == "segments" else None
    return hessians(model.eval(), prepared.train, recipe.model.context, rows, bos)


def decoded(recipe: Recipe, made: Made) -> Model:
    """The model as its artifact gives it back: what is scored when an artifact is."""
    model = build_model(recipe)
    put(model, _tensors(container.from_bytes(container.to_bytes(made.planes, made.facts))), "artifact")
    return model


def build_model(recipe: Recipe) -> Model:
    """The recipe's model on the CPU in evaluation mode, its weights not yet set.

    Raises:
        ConfigError: parts that do not fit together.
    """
    stream = machine.DTYPES[machine.settle_dtype(recipe.machine.dtype, "cpu")]
    try:
        model = Model(recipe.model, stream=stream, seed=None)
    except ConfigError as fault:
        raise fault.under("model") from None
    return (model.double() if stream is torch.float64 else model).eval()


@torch.no_grad()
def put(model: Model, tensors: list[Stored], path: Path | str) -> None:
    """Set a model's weights to decoded tensors.

    Raises:
        ConfigError: tensors of another model; the first that does not fit is named. Nothing has been set then.
    """
    own = {weight.name: weight.tensor for weight in weights_of(model)}
    stored = {t.name: t for t in tensors}
    for name in sorted(own.keys() ^ stored.keys()):
        who = "the recipe's model has" if name in own else "the artifact holds"
        raise ConfigError(f"{path}: not this recipe's weights: only {who} {name}")
    for name, t in own.items():
        if stored[name].shape != tuple(t.shape):
            raise ConfigError(
                f"{path}: not this recipe's weights: {name} is {stored[name].shape}, not {tuple(t.shape)}"
            )
    for name, t in own.items():
        t.copy_(stored[name].decoded())


def _recipe(path: Path, planes: Mapping[str, bytes]) -> Recipe:
    text = lzma.decompress(planes["recipe"]).decode("utf-8")
    table = tomllib.loads(text)
    plugins.discover()
    for plugin in table.get("plugins", ()):
        try:
            plugins.load(path.parent / table.get("base", ".") / plugin)
        except ConfigError:
            continue  # its kinds may be registered already; if not, the next line names what is missing
    return loads(text)


def _tokenizer(path: Path, recipe: Recipe, planes: Mapping[str, bytes]) -> Tokenizer:
    tokenizer: Tokenizer = recipe.data.tokenizer.build(path.parent)
    tokenizer.load(lzma.decompress(planes["tokenizer"]))
    return tokenizer


def _tensors(contents: container.Contents) -> list[Stored]:
    index = [from_index(row) for row in json.loads(zlib.decompress(contents.planes["index"]))]
    coding: Coding = Coding.parse(json.loads(contents.facts["coding"])).build()
    return coding.unpack({name: p for name, p in contents.planes.items() if name not in OWN}, index)


def _guarded(path: Path, what: str, work: Callable[[], T]) -> T:
    """The result of ``work``; whatever is wrong with the file's contents comes out as one kind of error."""
    try:
        return work()
    except ConfigError as fault:
        raise ConfigError(f"{path}: its {what} cannot be used: {fault}") from None
    except (LookupError, ValueError, TypeError, EOFError, zlib.error, lzma.LZMAError) as fault:
        raise ConfigError(f"{path}: its {what} cannot be decoded: {fault}") from None


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)

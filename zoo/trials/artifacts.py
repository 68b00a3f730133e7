"""A finished trial as an artifact: written, taken apart by what its bytes are spent on, scored, and told in a record."""

from __future__ import annotations

import json
import lzma
import re
import statistics
import tomllib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from zoo import machine
from zoo.artifact import SUFFIX, Artifact, Made, inputs_for, make, read_artifact, write_artifact
from zoo.codecs.slots import Codec
from zoo.codecs.stream import entropy_bits
from zoo.core.part import ConfigError, faults
from zoo.judge import score
from zoo.recipe import Recipe
from zoo.scoring.slots import Score
from zoo.trials.address import code_files, stripped
from zoo.trials.names import differences, spell
from zoo.trials.open import Finished, open_trial
from zoo.trials.store import RESULT, write_whole

NAME = f"artifact{SUFFIX}"
RECORD = "record.json"

Say = Callable[[str], None]


class Part(NamedTuple):
    """A part of a model in its artifact."""

    name: str
    storage: str
    parameters: int
    bytes: float
    entropy: float | None  # bytes that codes under one table for each tensor take at least; None: plain numbers


class Shipped(NamedTuple):
    """An artifact that has been written, read back and scored."""

    path: Path
    bytes_model: int  # of the file
    bytes_code: int
    parts: list[Part]
    rest: int  # bytes of the file that no tensor takes: recipe, tokenizer, header, tables
    remarks: tuple[str, ...]
    before: Score  # of the trained weights
    after: Score  # of the weights as the file gives them back

    @property
    def bytes_total(self) -> int:
        """What has to be sent so that somebody can run it."""
        return self.bytes_model + self.bytes_code


def codec_named(text: str) -> Codec.Config:
    """A codec as typed: a kind's name, or a TOML table such as ``{kind = "mixed", rounding = "gptq"}``.

    Raises:
        ConfigError: no such codec, or such knobs.
    """
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    try:
        return Codec.parse(value)
    except ValidationError as fault:
        raise ConfigError(f"--codec {text}: {faults(fault)[0]}") from None
    except ConfigError as fault:
        raise ConfigError(f"--codec {text}: {fault}") from None


def ship(trial: Finished, codec: Codec.Config, path: Path, say: Say, device: str = "auto") -> Shipped:
    """Write a trial's artifact, read it back from the file alone, and score both models on the same machine.

    Raises:
        ConfigError: a trial without weights or text, weights that the codec cannot store, or a file that cannot be written.
    """
    where = machine.settle_device(device)
    model = trial.model(where)
    prepared = trial.text()
    say(f"encoding {trial.folder.name}: {codec.part.kind}")
    made = make(trial.recipe, prepared.tokenizer, model, codec, inputs_for(codec, trial.recipe, prepared, model))
    size = write_artifact(path, made)
    say("reading it back")
    artifact = read_artifact(path)
    before = score(model, trial.recipe, prepared, None, say)
    after = score(artifact.model.to(where), trial.recipe, prepared, None, say)
    parts = parts_of(made)
    rest = size - round(sum(part.bytes for part in parts))
    return Shipped(path, size, code_bytes(trial.recipe, codec), parts, rest, made.remarks, before, after)


def parts_of(made: Made) -> list[Part]:
    """What the tensors of an artifact take, like tensors of all layers together."""
    found: dict[tuple[str, str], list[Part]] = {}
    for t, share in zip(made.tensors, made.shares, strict=True):
        name = re.sub(r"\.\d+\b", ".*", t.name)
        name = ".".join(name.split(".")[:3]) if name.startswith("layer.") else name.split(".")[0]
        floor = None
        if t.scales is not None:
            counts = np.unique(t.codes, return_counts=True)[1]
            floor = entropy_bits(counts[None].astype(float)) / 8
        found.setdefault((name, t.storage), []).append(Part(name, t.storage, t.codes.size, share, floor))
    return [_together(parts) for parts in found.values()]


def _together(parts: Sequence[Part]) -> Part:
    floors = [part.entropy for part in parts if part.entropy is not None]
    return parts[0]._replace(
        parameters=sum(part.parameters for part in parts),
        bytes=sum(part.bytes for part in parts),
        entropy=sum(floors) if floors else None,
    )


def code_bytes(recipe: Recipe, codec: Codec.Config) -> int:
    """Bytes of the source that the trial and its artifact run: stripped of comments and docstrings, one xz stream."""
    files = code_files(recipe.model_copy(update={"codec": codec}))
    source = "".join(f"# {file.name}\n{stripped(file.read_text(encoding='utf-8'))}\n" for file in files)
    return len(lzma.compress(source.encode(), preset=9 | lzma.PRESET_EXTREME))


def artifact_of(path: Path, recipe: Recipe) -> Artifact:
    """An artifact that has to be of this recipe.

    Raises:
        ConfigError: a file that cannot be read, is damaged, or is of another recipe; the first difference is named.
    """
    artifact = read_artifact(path)
    places = ("name", "variant", "base", "plugins")
    for knob, (own, theirs) in differences(artifact.recipe, recipe).items():
        if knob.partition(".")[0] not in places:
            raise ConfigError(
                f"{path}: of another recipe: {knob} is {spell(theirs)} in it and {spell(own)} in the trial's"
            )
    return artifact


def same_arm(trial: Finished) -> list[Finished]:
    """The trial and its siblings beside it: finished trials of the same recipe with other seeds, by seed."""
    found = [trial]
    for path in sorted(trial.folder.parent.glob(f"*/{RESULT}")):
        if path.parent.resolve() == trial.folder.resolve():
            continue
        try:
            other = open_trial(path.parent)
        except ConfigError:
            continue
        if other.result.status == "done" and set(differences(other.recipe, trial.recipe)) == {"train.seed"}:
            found.append(other)
    return sorted(found, key=lambda one: one.result.seed)


def record(trials: Sequence[Finished], shipped: Sequence[Shipped], codec: Codec.Config) -> dict[str, Any]:
    """What a submission says of a model: the scores of the artifacts, their bytes, and their spread over seeds.

    ``val_loss`` is nats per token and ``val_bpb`` bits per raw UTF-8 byte, both of the weights as the files give them back,
    means over seeds; ``bytes_total`` is that of the largest seed, code included. A spread needs two seeds.
    """
    first = trials[0]
    losses, bits = [s.after.nats_per_token for s in shipped], [s.after.bits_per_byte for s in shipped]
    largest = max(shipped, key=lambda s: s.bytes_total)
    return {
        "name": first.recipe.name,
        "variant": first.recipe.variant,
        "author": "",
        "github_id": "",
        "blurb": "",
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "val_loss": statistics.fmean(losses),
        "val_bpb": statistics.fmean(bits),
        "val_loss_std": statistics.stdev(losses) if len(losses) > 1 else None,
        "val_bpb_std": statistics.stdev(bits) if len(bits) > 1 else None,
        "bytes_total": largest.bytes_total,
        "bytes_model": largest.bytes_model,
        "bytes_code": largest.bytes_code,
        "seeds": [trial.result.seed for trial in trials],
        "seed_results": {str(t.result.seed): _of_seed(t, s) for t, s in zip(trials, shipped, strict=True)},
        "parameters": first.result.parameters,
        "as_published": first.recipe.as_published,
        "scorer": spell(first.recipe.evaluate.scorer.model_dump(mode="json")),
        "codec": spell(codec.model_dump(mode="json")),
        "address": [trial.result.address for trial in trials],
        "facts": dict(first.result.facts),
    }


def _of_seed(trial: Finished, shipped: Shipped) -> dict[str, Any]:
    return {
        "val_loss": shipped.after.nats_per_token,
        "val_bpb": shipped.after.bits_per_byte,
        "val_loss_before_codec": shipped.before.nats_per_token,
        "val_bpb_before_codec": shipped.before.bits_per_byte,
        "bytes_total": shipped.bytes_total,
        "bytes_model": shipped.bytes_model,
        "bytes_code": shipped.bytes_code,
        "steps": trial.result.steps,
        "tokens": trial.result.tokens,
        "train_seconds": trial.result.seconds,
    }


def write_record(path: Path, told: dict[str, Any]) -> None:
    """Write a record whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        write_whole(path, json.dumps(told, indent=2) + "\n")
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be written: {fault.strerror}") from None

"""Finished trials: found by folder or by variant and seed, and made into models again."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import ValidationError

from zoo import machine, plugins
from zoo.checkpoint import latest
from zoo.core.part import ConfigError, nearest
from zoo.data.prepare import Prepared
from zoo.model import Model
from zoo.recipe import Recipe
from zoo.resolve import loads
from zoo.result import Result, understood
from zoo.trials.run import text_of
from zoo.trials.store import RESULT, slug


class Finished(NamedTuple):
    """A trial that was trained: what it was, what it came to, and where it lies."""

    folder: Path
    recipe: Recipe
    result: Result

    def model(self, device: str = "cpu") -> Model:
        """The model with the weights that were scored, in evaluation mode.

        Raises:
            ConfigError: the trial kept no weights, or they are damaged or another model's.
        """
        found = latest(self.folder / "checkpoints")
        if found.checkpoint is None:
            why = "; ".join(found.complaints) or f"status {self.result.status}"
            raise ConfigError(f"{self.folder}: no weights to load: {why}")
        stream = machine.DTYPES[machine.settle_dtype(self.recipe.machine.dtype, device)]
        model = Model(self.recipe.model, stream=stream, seed=None)
        if stream is torch.float64:
            model = model.double()
        try:
            model.load_state_dict(found.checkpoint.tensors, strict=True)
        except RuntimeError as fault:
            first = " ".join(str(fault).splitlines()[1].split())  # behind a heading; the others are of the same cause
            raise ConfigError(f"{found.checkpoint.path}: not this recipe's weights: {first}") from None
        return model.to(device).eval()

    def text(self) -> Prepared:
        """The text it was trained and scored on, and its tokenizer.

        Raises:
            ConfigError: text that is no longer there.
        """
        return text_of(self.recipe, self.folder / self.recipe.base)


def open_trial(name: str | Path, out: Path | None = None) -> Finished:
    """A finished trial by its folder, or by ``variant-seed`` under the folder of results.

    Args:
        name: a trial's folder, or the beginning of its name under ``out``, such as ``mla-seed0`` or ``mla``.
        out: where results lie; None: any folder of ``results``.

    Raises:
        ConfigError: no such trial (the nearest is named), several, or one that cannot be read.
    """
    folder = Path(name)
    if not (folder / RESULT).is_file():
        folder = _search(str(name), out)
    try:
        result = understood(json.loads((folder / RESULT).read_text(encoding="utf-8")))
        text = (folder / "recipe.toml").read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except (OSError, ValueError, AttributeError, ValidationError) as fault:
        raise ConfigError(f"{folder}: not a trial that can be read: {fault}") from None
    plugins.discover()
    for plugin in table.get("plugins", ()):
        plugins.load(folder / table.get("base", ".") / plugin)
    return Finished(folder, loads(text), result)


def _search(name: str, out: Path | None) -> Path:
    roots = [out] if out is not None else sorted(p for p in Path("results").glob("*") if p.is_dir())
    folders = [path.parent for root in roots for path in sorted(root.glob(f"*/{RESULT}"))]
    wanted = slug(name)
    exact = [f for f in folders if f.name.rpartition("-")[0] == wanted]
    found = exact or [f for f in folders if f.name.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{name}: {len(found)} trials match: {', '.join(str(f) for f in found[:8])}")
    where = out if out is not None else "results"
    if not folders:
        raise ConfigError(f"{name}: no such trial; there is none under {where}")
    raise ConfigError(f"{name}: no such trial under {where}, {nearest(name, [f.name for f in folders])}")

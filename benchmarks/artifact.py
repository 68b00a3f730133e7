"""Bytes of the compact 10-layer model's artifact: range coder against zstandard, with the entropy floor beside them.

    python benchmarks/artifact.py                  # the full-size model, every weight drawn from N(0, 0.02^2), seed 0
    python benchmarks/artifact.py --trial FOLDER   # a finished trial's weights instead

The same quantised values go through every coding, so only the coding differs. ``zstd`` is the published way: a byte for each
code, then zstandard at level 22 over codes, scales and plain numbers. The floor is the entropy of each tensor's codes under one
table of its own, plus scales and plain numbers as they are; below it are codings that know more than one table of each tensor.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import zoo
from zoo.artifact import make, read_artifact, weights_of, write_artifact
from zoo.codecs import container
from zoo.codecs.slots import LEVELS, Codec, Stored
from zoo.codecs.stream import entropy_bits
from zoo.core.tables import tabulate
from zoo.model import Model
from zoo.recipe import Recipe
from zoo.trials.artifacts import code_bytes
from zoo.trials.open import open_trial

RECIPE = Path(__file__).parents[1] / "recipes" / "compact_10L_published.toml"
FLIPS = 200


@torch.no_grad()
def gaussian() -> tuple[Recipe, Model]:
    """The full-size model with every weight from N(0, 0.02^2), drawn in the order of names."""
    recipe = zoo.load(RECIPE, profile="full", variant="as published")
    model = Model(recipe.model, seed=None).eval()
    for weight in sorted(weights_of(model), key=lambda w: w.name):
        drawn = np.random.default_rng([0, *weight.name.encode()]).standard_normal(
            tuple(weight.tensor.shape), np.float32
        )
        weight.tensor.copy_(torch.from_numpy(np.asarray(0.02 * drawn, np.float32)))
    return recipe, model


def floors(tensors: list[Stored]) -> tuple[float, int]:
    """Bytes of codes under one table for each tensor, the table free; and of scales and plain numbers as they are."""
    scaled = [t for t in tensors if t.scales is not None]
    counts = [np.unique(t.codes, return_counts=True)[1][None].astype(float) for t in scaled]
    plain = sum(t.codes.nbytes for t in tensors if t.scales is None) + sum(t.scales.nbytes for t in scaled)
    return sum(map(entropy_bits, counts)) / 8, plain


def detected(data: bytes) -> int:
    """How many of FLIPS files with one changed byte are refused."""
    rng, found = random.Random(0), 0
    for _ in range(FLIPS):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        try:
            container.from_bytes(bytes(changed))
        except ValueError:
            found += 1
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trial", help="a finished trial's folder")
    options.add_argument("--out", default="artifact-benchmark.safetensors", help="where the file goes for a moment")
    given = options.parse_args()
    if given.trial:
        trial = open_trial(given.trial)
        recipe, model, tokenizer = trial.recipe, trial.model(), trial.text().tokenizer
    else:
        recipe, model = gaussian()
        tokenizer = zoo.load(RECIPE, sets=["data.tokenizer=byte"], profile="cpu").data.tokenizer.build(Path())
        tokenizer.load(b"")
        data = recipe.data.model_copy(
            update={"tokenizer": tokenizer.config}
        )  # the sizes are those of the weights alone
        recipe = recipe.model_copy(update={"data": data})
    n = sum(w.tensor.numel() for w in weights_of(model))
    print(f"{recipe.name}: {n:,} numbers, codec {recipe.codec.part.kind}")
    knobs, sizes = tabulate(recipe.codec), {}
    for coding in ("stored", "zstd", "rans"):
        codec = Codec.parse({**knobs, "coding": coding})
        began = time.perf_counter()
        made = make(recipe, tokenizer, model, codec)
        seconds = time.perf_counter() - began
        weights = sum(len(plane) for name, plane in made.planes.items() if name not in ("recipe", "tokenizer", "index"))
        sizes[coding] = weights
        print(f"{coding:<8}{weights:>12,} bytes of weights, file {made.size:>12,}, made in {seconds:.1f} s")
    codes, plain = floors(made.tensors)
    print(f"floor   {codes + plain:>12,.0f} (entropy of each tensor's codes, scales and plain numbers as they are)")
    coded = sum(len(plane) for name, plane in made.planes.items() if name in LEVELS)
    print(
        f"codes alone: rans {coded:,}, floor {codes:,.0f}, ratio {coded / codes:.4f}; all else {plain:,} bytes as it is"
    )
    print(f"rans / zstd: {sizes['rans'] / sizes['zstd']:.4f}; rans / floor: {sizes['rans'] / (codes + plain):.4f}")
    print(f"code of the recipe, stripped, xz: {code_bytes(recipe, recipe.codec):,}")
    began, path = time.perf_counter(), Path(given.out)
    write_artifact(path, made)
    back, expected = read_artifact(path).model, {t.name: t.decoded() for t in made.tensors}
    exact = all(torch.equal(w.tensor, expected[w.name]) for w in weights_of(back))
    print(
        f"written, read back and {'equal in every bit' if exact else 'DIFFERENT'} in {time.perf_counter() - began:.1f} s"
    )
    print(f"one byte changed: {detected(path.read_bytes())} of {FLIPS} such files refused")
    path.unlink()


if __name__ == "__main__":
    main()

"""Nats per character of tiny Shakespeare after so many seconds of training, on the whole validation split.

The recipe is recipes/shakespeare_char.toml: the seconds are those of the training loop, the split is nanoGPT's, and the scorer
takes windows of 256 characters side by side. The text has to lie at recipes/data/tinyshakespeare.txt.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.harness import Figure, Settings, Wanted
from zoo.result import Result
from zoo.train import train
from zoo.trials.grid import plan
from zoo.trials.run import text_of
from zoo.trials.vocabulary import with_vocabulary

RECIPE = Path(__file__).parents[1] / "recipes" / "shakespeare_char.toml"
WANTED = 1.50  # nats per character in the recipe's own 90 s; nanoGPT's quick start for a CPU reaches 1.91
SECONDS, SEEDS = 90.0, 2


def measure(seconds: float = SECONDS, seed: int = 0, device: str = "cpu", threads: int = 2) -> Result:
    """One run of the recipe for ``seconds``; its ``valid_loss`` is in nats per character.

    Raises:
        ConfigError: the text is not there; it says where it can be had.
    """
    sets = [f"train.seconds={seconds}", f"train.seed={seed}", f"machine.threads={threads}"]
    grid = plan(RECIPE, device=device, sets=sets)
    text = text_of(grid.recipe, grid.folder)
    recipe = with_vocabulary(grid.recipe, text.tokenizer.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        return train(recipe, text, Path(folder), lambda progress: None)


def figures(settings: Settings) -> list[Figure]:
    """The recipe's seconds, once for each of two seeds."""
    seconds, seeds = (3.0, 1) if settings.quick else (SECONDS, SEEDS)
    found = [measure(seconds, seed, settings.device, settings.threads) for seed in range(seeds)]
    worst = max(result.valid_loss for result in found)
    each = ", ".join(f"{result.valid_loss:.4f}" for result in found)
    seen = f"{found[0].tokens / 1e6:.2f} million characters seen, {found[0].parameters:,} parameters"
    return [
        Figure(
            f"{seconds:g} s of training, {seeds} seeds",
            f"{each} nats/character",
            f"{WANTED:.2f} wanted",
            worst / WANTED,
            Wanted("at most", 1.0),
            seen,
        )
    ]

"""What ``sample`` prints: continuations of prompts by a finished trial, as they are made or the best of several."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from zoo import machine
from zoo.core.part import ConfigError, faults
from zoo.generate import Continuation, Sampling, best, generate, starts
from zoo.report.terminal import say
from zoo.report.units import finite
from zoo.trials.open import open_trial


def sampling(knobs: dict[str, Any]) -> Sampling:
    """Sampling from an option's values; None stands for the default.

    Raises:
        ConfigError: a value out of range, by the option's name.
    """
    try:
        return Sampling(**{name: value for name, value in knobs.items() if value is not None})
    except ValidationError as fault:
        found = faults(fault)[0]
        raise ConfigError(found.message, f"--{found.path.replace('_', '-')}", found.value) from None


def sample(
    trial: str, out: Path | None, prompts: Sequence[str], how: Sampling, n: int, top: int | None, console: Console
) -> None:
    """Print ``n`` continuations of each prompt, or the ``top`` of them by log-probability per token.

    Raises:
        ConfigError: no such trial, or one without weights.
    """
    found = open_trial(trial, out)
    model, tokenizer = found.model(machine.settle_device("auto")), found.text().tokenizer
    longest = max(map(len, starts(tokenizer, prompts))) + how.max_tokens
    if longest > found.recipe.model.context:
        say(
            console,
            f"(up to {longest} tokens, more than the context of {found.recipe.model.context} it was trained on)",
        )
    if n == 1 and len(prompts) == 1 and how.beams == 1:
        say(console, prompts[0], end="")
        with _room_in_words(how):
            generate(model, tokenizer, prompts, how, tell=lambda _, text: say(console, text, end=""))
        say(console, "")
        return
    with _room_in_words(how):
        texts = generate(model, tokenizer, prompts, how, n)
    for made in texts:
        _print(made if top is None else best(made, top), n, top, console)


def sample_json(
    trial: str, out: Path | None, prompts: Sequence[str], how: Sampling, n: int, top: int | None, console: Console
) -> None:
    """The same as one line of JSON per continuation; raises as ``sample`` does."""
    found = open_trial(trial, out)
    with _room_in_words(how):
        made = generate(found.model(machine.settle_device("auto")), found.text().tokenizer, prompts, how, n)
    for rows in made:
        for row in rows if top is None else best(rows, top):
            line = finite(row._asdict() | {"mean_logprob": row.mean_logprob})
            console.file.write(json.dumps(line, allow_nan=False) + "\n")


@contextmanager
def _room_in_words(how: Sampling) -> Iterator[None]:
    """A cache for which there is no memory is a wrong option."""
    try:
        yield
    except (RuntimeError, MemoryError) as fault:
        if not machine.is_out_of_memory(fault):
            raise
        raise ConfigError("there is no memory to remember so many", "--max-tokens", how.max_tokens) from None


def _print(made: Sequence[Continuation], n: int, top: int | None, console: Console) -> None:
    chosen = "" if top is None else f", the best {len(made)} of {n} by log-probability per token"
    say(console, f"\n--- {made[0].prompt!r}{chosen}")
    for i, one in enumerate(made, 1):
        say(console, f"\n{i}. [{one.mean_logprob:.3f} nats per token, {len(one.ids)} tokens, ended by {one.ended}]")
        say(console, one.prompt + one.text)

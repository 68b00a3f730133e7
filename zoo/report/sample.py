"""What ``sample`` prints: continuations of prompts by a finished trial, as they are made or the best of several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from zoo import machine
from zoo.core.part import ConfigError, faults
from zoo.generate import Continuation, Sampling, best, generate
from zoo.report.terminal import printable
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
    longest = max(len(tokenizer.encode(prompt)) for prompt in prompts) + 1 + how.max_tokens
    if longest > found.recipe.model.context:
        _say(
            console,
            f"(up to {longest} tokens, more than the context of {found.recipe.model.context} it was trained on)",
        )
    if n == 1 and len(prompts) == 1 and how.beams == 1:
        _say(console, prompts[0], end="")
        generate(model, tokenizer, prompts, how, tell=lambda _, text: _say(console, text, end=""))
        _say(console, "")
        return
    for made in generate(model, tokenizer, prompts, how, n):
        _print(made if top is None else best(made, top), n, top, console)


def sample_json(
    trial: str, out: Path | None, prompts: Sequence[str], how: Sampling, n: int, top: int | None, console: Console
) -> None:
    """The same as one line of JSON per continuation; raises as ``sample`` does."""
    found = open_trial(trial, out)
    made = generate(found.model(machine.settle_device("auto")), found.text().tokenizer, prompts, how, n)
    for rows in made:
        for row in rows if top is None else best(rows, top):
            line = json.dumps(row._asdict() | {"mean_logprob": row.mean_logprob})
            console.file.write(line + "\n")


def _print(made: Sequence[Continuation], n: int, top: int | None, console: Console) -> None:
    chosen = "" if top is None else f", the best {len(made)} of {n} by log-probability per token"
    _say(console, f"\n--- {made[0].prompt!r}{chosen}")
    for i, one in enumerate(made, 1):
        _say(console, f"\n{i}. [{one.mean_logprob:.3f} nats per token, {len(one.ids)} tokens, ended by {one.ended}]")
        _say(console, one.prompt + one.text)


def _say(console: Console, text: str, end: str = "\n") -> None:
    console.print(printable(text), end=end, markup=False, highlight=False, soft_wrap=True)

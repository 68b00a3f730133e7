"""A trial's model card: README.md in the Hugging Face format, made from the files of its folder and nothing else.

What its model says to the recipe's prompts is kept in ``samples.json`` beside it, so that a card can be written again
without the weights.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from zoo.core.part import ConfigError
from zoo.core.tables import tabulate
from zoo.data.slots import Tokenizer
from zoo.generate import Sampling, best, generate
from zoo.recipe import Recipe, dumps
from zoo.report.anatomy import Anatomy, anatomy, equal_runs
from zoo.report.table import escaped
from zoo.report.terminal import printable
from zoo.report.units import bytes_of, count, duration, flops, significant
from zoo.result import Result
from zoo.trials.names import spell
from zoo.trials.open import Finished, open_trial
from zoo.trials.store import write_whole

CARD, SAMPLES = "README.md", "samples.json"
LOG_ROWS = 16


class Sampled(NamedTuple):
    """The best continuations of one prompt; ``mean_logprob`` is in nats per token."""

    prompt: str
    made: int  # how many were made
    best: tuple[tuple[str, float], ...]  # text and mean_logprob


def write_card(folder: Path, seeds: Sequence[Result], tokenizer: Tokenizer | None = None) -> Path:
    """Write the card of a finished trial.

    Args:
        folder: the trial's.
        seeds: the results of the same arm, this one's among them.
        tokenizer: what the trial was trained with; None: made from the trial's text where samples are missing.

    Raises:
        ConfigError: a folder that cannot be read or written.
    """
    trial = open_trial(folder)
    samples = _samples(trial, tokenizer)
    try:
        write_whole(folder / CARD, card_text(trial, seeds, samples))
    except OSError as fault:
        raise ConfigError(f"{folder / CARD}: cannot be written: {fault.strerror}") from None
    return folder / CARD


def _samples(trial: Finished, tokenizer: Tokenizer | None) -> list[Sampled]:
    """What the model says to the recipe's prompts: made once, then read from the folder."""
    plan, kept = trial.recipe.card, trial.folder / SAMPLES
    if not plan.prompts or trial.result.status != "done":
        return []
    if kept.is_file():
        rows = json.loads(kept.read_text(encoding="utf-8"))
        if [row["prompt"] for row in rows] == list(plan.prompts):
            return [Sampled(r["prompt"], r["made"], tuple((t, p) for t, p in r["best"])) for r in rows]
    how = Sampling(max_tokens=plan.max_tokens, temperature=plan.temperature, top_k=plan.top_k)
    tokenizer = tokenizer or trial.text().tokenizer
    found = []
    model = trial.model()
    for prompt, made in zip(plan.prompts, generate(model, tokenizer, plan.prompts, how, plan.samples), strict=True):
        chosen = tuple((c.text, c.mean_logprob) for c in best(made, plan.top))
        found.append(Sampled(prompt, len(made), chosen))
    write_whole(kept, json.dumps([s._asdict() for s in found], indent=1) + "\n")
    return found


def card_text(trial: Finished, seeds: Sequence[Result], samples: Sequence[Sampled]) -> str:
    """The card as Markdown with its YAML header."""
    recipe, result = trial.recipe, trial.result
    seen = anatomy(recipe)
    parts = [
        f"---\n{yaml.safe_dump(_header(recipe, result), sort_keys=False, allow_unicode=True)}---",
        f"# {escaped(result.name)}: {escaped(result.variant)}, seed {result.seed}",
        _summary(recipe, result),
        "## Scores\n\n" + _scores(result, seeds),
        "## Training logs\n\n" + _log(trial.folder / "log.jsonl"),
        _generations(recipe, samples),
        "## Model architecture\n\n" + _architecture(recipe, seen),
        "## Parameters by part\n\n" + _parameters(seen),
        "## Training statistics\n\n" + _training(recipe, result),
        "## How to reproduce it\n\n" + _reproduce(result),
        "## Configuration\n\n" + fenced(dumps(recipe), "toml"),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(recipe: Recipe, result: Result) -> dict[str, Any]:
    """What the Hub reads: only what is known (a licence is the publisher's to state)."""
    layer = tabulate(recipe.model.layer)
    kinds = [part["kind"] for part in layer.values() if isinstance(part, dict) and "kind" in part]
    header: dict[str, Any] = {
        "library_name": "ablation-zoo",
        "pipeline_tag": "text-generation",
        "tags": ["text-generation", "ablation", *dict.fromkeys(kinds)],
    }
    if (name := getattr(recipe.data.source, "name", None)) and recipe.data.source.part.kind == "hf":
        header["datasets"] = [name]
    if result.bits_per_byte is not None:
        metric = {"type": "bits_per_byte", "value": round(result.bits_per_byte, 6), "name": "bits per byte"}
        task = {"type": "text-generation", "name": "language modeling"}
        text = {
            "type": str(recipe.data.source.part.kind),
            "name": f"validation text of {result.facts.get('corpus', '?')}",
        }
        results = [{"task": task, "dataset": text, "metrics": [metric]}]
        header["model-index"] = [{"name": f"{result.name} {result.variant}", "results": results}]
    return header


def _summary(recipe: Recipe, result: Result) -> str:
    model = recipe.model
    active = (
        "" if result.active_parameters == result.parameters else f" ({result.active_parameters:,} active per token)"
    )
    lines = [
        f"A decoder language model of {model.n_layers} layers, width {model.dim}, vocabulary {model.vocab_size:,} and "
        f"context {model.context}: {result.parameters:,} parameters{active}, trained on {result.tokens:,} tokens.",
    ]
    if result.status != "done":
        lines.append(f"**{escaped(result.status)}**: {escaped(result.reason)}")
    lines += [f"Note: {escaped(note)}." for note in result.notes]
    return "\n\n".join(lines)


def _scores(result: Result, seeds: Sequence[Result]) -> str:
    rows = [
        (str(r.seed), significant(r.valid_loss), significant(r.bits_per_byte), r.status)
        for r in sorted(seeds, key=lambda r: r.seed)
    ]
    known = [r.bits_per_byte for r in seeds if r.status == "done" and r.bits_per_byte is not None]
    if len(known) > 1:
        spread = f"{significant(statistics.fmean(known))} ± {significant(statistics.stdev(known))}"
        rows.append(("mean ± sd", "", spread, f"{len(known)} seeds"))
    said = (
        f"Validation loss in nats per token over {result.valid_tokens:,} tokens; bits per byte over the "
        f"{result.valid_bytes:,} raw UTF-8 bytes that they cover."
    )
    text = said + "\n\n" + markdown_table(("seed", "validation loss", "bits per byte", "status"), rows)
    for label, score in result.scores.items():
        length = "" if score.code_length else " (not a code length)"
        text += f"\n\n{escaped(label)}{length}: {significant(score.bits_per_byte)} bits per byte."
    return text


def _log(path: Path) -> str:
    """Step, average loss and learning rate at round steps."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        rows = []
    if not rows:
        return "No step was logged."
    chosen = _round_steps([row["step"] for row in rows])
    last = rows[-1]["step"]
    cells = [
        (
            f"{row['step']:,} ({row['step'] / last:.0%})",
            significant(row["loss"]),
            f"{row['lr']:.6g}",
            f"{row['tokens']:,}",
            duration(row["elapsed"]),
            significant(row.get("valid_bpb")),
        )
        for row in rows
        if row["step"] in chosen
    ]
    said = "Average loss in nats per token since the line before it in the log; learning rate of the matrices."
    heads = ("step", "average loss", "learning rate", "tokens", "elapsed", "bits per byte")
    return said + "\n\n" + markdown_table(heads, cells)


def _round_steps(steps: Sequence[int]) -> set[int]:
    """At most about LOG_ROWS of the logged steps: the first, the last, and the multiples of a round number."""
    last = steps[-1]
    units = [base * 10**power for power in range(10) for base in (1, 2, 5)]
    unit = next(u for u in units if last / u <= LOG_ROWS - 2)
    return {steps[0], last} | {step for step in steps if step % unit == 0}


def _generations(recipe: Recipe, samples: Sequence[Sampled]) -> str:
    if not samples:
        return ""
    plan = recipe.card
    filters = f", top-k {plan.top_k}" if plan.top_k else ""
    parts = [
        f"## Top {plan.top} generations",
        f"Of {plan.samples} samples per prompt at temperature {plan.temperature:g}{filters}, those with the highest "
        "log-probability per token under the model itself; nothing else was selected.",
    ]
    for sample in samples:
        parts.append(f"Prompt: {escaped(printable(sample.prompt))}")
        for i, (text, logprob) in enumerate(sample.best, 1):
            parts.append(f"{i}. {logprob:.3f} nats per token\n\n{fenced(printable(sample.prompt + text), 'text')}")
    return "\n\n".join(parts)


def _architecture(recipe: Recipe, seen: Anatomy) -> str:
    """A summary of runs of equal layers, then every part with its parameters."""
    model, lines = recipe.model, []
    around = {"stem": model.stem, "trunk": model.trunk, "norm": model.norm, "head": model.head}
    lines += [f"- {name}: {escaped(spell(_plain(part)))}" for name, part in around.items() if part != ()]
    for first, last in equal_runs(seen.layers):
        lines.append(f"- layers {first} to {last}:" if last > first else f"- layer {first}:")
        table = tabulate(seen.layers[first])
        lines += [f"  - {k}: {escaped(spell(v))}" for k, v in table.items() if k != "kind"]
    rows = [
        (
            f"`{line.path}`",
            f"`{line.what}`",
            f"{line.parameters:,}",
            f"{line.active:,}",
            escaped(", ".join(line.shapes)),
        )
        for line in seen.lines
    ]
    detail = markdown_table(("part", "kind", "parameters", "active per token", "shapes"), rows)
    return "### Summary\n\n" + "\n".join(lines) + "\n\n### Layer by layer\n\n" + detail


def _plain(part: Any) -> Any:
    return [tabulate(item) for item in part] if isinstance(part, tuple) else tabulate(part)


def _parameters(seen: Anatomy) -> str:
    cost = seen.cost
    rows = [(name, f"{n:,}", f"{n / cost.parameters:.1%}") for name, n in cost.by_part.items()]
    roles = [(f"role {role}", f"{n:,}", f"{n / cost.parameters:.1%}") for role, n in cost.by_role.items()]
    total = [("total", f"{cost.parameters:,}", ""), ("active per token", f"{cost.active_parameters:,}", "")]
    return markdown_table(("part", "parameters", "share"), [*rows, *roles, *total])


def _training(recipe: Recipe, result: Result) -> str:
    facts = result.facts
    rows = [
        ("steps", f"{result.steps:,}"),
        ("tokens", f"{result.tokens:,}"),
        ("tokens per step", f"{result.tokens // max(1, result.steps):,}"),
        ("training time", f"{duration(result.seconds)} (h:mm:ss or m:ss)"),
        ("tokens per second", count(result.tokens_per_second)),
        ("peak memory", bytes_of(result.peak_memory)),
        ("training FLOPs per token", flops(result.flops_per_token)),
        ("loss of the first batch", significant(result.initial_loss)),
        ("training loss, last tenth of the steps", significant(result.train_loss)),
        *(
            (name, facts[name])
            for name in ("machine", "device", "dtype", "threads", "torch", "python")
            if name in facts
        ),
        *(
            (name, facts[name])
            for name in ("source", "corpus", "tokenizer", "train_bytes", "valid_bytes")
            if name in facts
        ),
    ]
    return markdown_table(("", ""), [(name, escaped(value)) for name, value in rows])


def _reproduce(result: Result) -> str:
    return (
        "`recipe.toml` in this folder states every knob and has no parents, profiles or grid. With the zoo of code hash "
        f"`{escaped(result.facts.get('code', '?'))}`:\n\n```sh\npython ablate.py recipe.toml\n```"
    )


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown already."""
    lines = [" | ".join(heads), " | ".join("---" for _ in heads), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def fenced(text: str, language: str) -> str:
    """``text`` as a code block that nothing inside it can end."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"

"""Commands on finished trials: more text from them, their artifacts, and proofs by compression."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.command.shared import Device, Results, TrialName, faults_in_words


def sample(
    trial: TrialName,
    prompt: Annotated[list[str] | None, typer.Option(help="A text to go on with. May be given several times.")] = None,
    out: Results = None,
    n: Annotated[int, typer.Option("-n", "--samples", min=1, help="Continuations per prompt.")] = 1,
    top: Annotated[int | None, typer.Option(min=1, help="Show only so many: the likeliest per token.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens of a continuation.  [default: 100]")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: always the likeliest token.  [default: 1]")] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only the likeliest tokens of this probability together.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Only tokens with this share of the likeliest one's.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: less of what was said.")] = None,
    frequency_penalty: Annotated[float | None, typer.Option(help="Taken off a logit per occurrence.")] = None,
    no_repeat_ngram: Annotated[int | None, typer.Option(help="No sequence of so many tokens twice.")] = None,
    beams: Annotated[int | None, typer.Option(help="Beam search with so many beams.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Beams: the power of the length.  [default: 1]")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends a continuation.")] = None,
    seed: Annotated[int | None, typer.Option(help="[default: 0]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON per continuation.")] = False,
) -> None:
    """Continue prompts with a finished trial's model."""
    from rich.console import Console

    with faults_in_words():
        from zoo.report import sample as samples

        how = samples.sampling(
            {
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "repetition_penalty": repetition_penalty,
                "frequency_penalty": frequency_penalty,
                "no_repeat_ngram": no_repeat_ngram,
                "beams": beams,
                "length_penalty": length_penalty,
                "stop": tuple(stop or ()),
                "seed": seed,
            }
        )
        shown = samples.sample_json if as_json else samples.sample
        shown(trial, out, prompt or [""], how, n, top, Console())


def artifact(
    trial: TrialName,
    codec: Annotated[
        str | None,
        typer.Option(help="A kind, or a table of knobs.  [default: the recipe's; mixed where it names none]"),
    ] = None,
    out: Results = None,
    to: Annotated[Path | None, typer.Option(help="A folder to write into.  [default: the trial's]")] = None,
    record: Annotated[bool, typer.Option("--record", help="Also write record.json over all seeds of the arm.")] = False,
    device: Device = None,
) -> None:
    """Write a finished trial's artifact; print its bytes by part, with and without code, and the loss before and after."""
    from rich.console import Console

    with faults_in_words():
        from zoo.report.artifact import artifact as shown

        shown(trial, codec, out, to, record, device, Console())


def prove(
    trial: TrialName,
    n_bytes: Annotated[int, typer.Option("--bytes", min=1, help="How much of the validation text.")] = 20_000,
    scorer: Annotated[
        str | None, typer.Option(help="What drives the code: a kind, or a table of knobs.  [default: the recipe's]")
    ] = None,
    out: Results = None,
    to: Annotated[Path | None, typer.Option(help="A folder to write into.  [default: the trial's]")] = None,
    artifact: Annotated[
        Path | None,
        typer.Option(help="[default: what `artifact` wrote; without it one is made, by the recipe's codec or raw]"),
    ] = None,
) -> None:
    """Compress validation text with a trained model, decode it in a fresh process, and compare the length with the claim."""
    from rich.console import Console

    with faults_in_words():
        from zoo.report import proof

        fine = proof.show_proof(trial, n_bytes, scorer, out, to, artifact, Console())
    raise typer.Exit(0 if fine else 1)


def decode(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="What the proof was made with.")],
    proof: Annotated[Path, typer.Argument(metavar="PROOF", help="A proof.zpf.")],
    to: Annotated[Path, typer.Option(help="Where the text goes.")] = Path("text.txt"),
) -> None:
    """Give the text of a proof back, here or on another machine: the right one or none."""
    from rich.console import Console

    with faults_in_words():
        from zoo.report import proof as proofs

        proofs.decode(artifact, proof, to, Console())


def join(app: typer.Typer) -> None:
    """Add these commands behind those that the app has."""
    for command in (sample, artifact, prove, decode):
        app.command()(command)

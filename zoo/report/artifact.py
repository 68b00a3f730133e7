"""What ``artifact`` prints: where the bytes of a trial's artifact go, and what they cost in bits per byte."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from zoo import plugins
from zoo.codecs.slots import Codec
from zoo.report.terminal import print_table, say
from zoo.trials.artifacts import NAME, RECORD, Shipped, codec_named, record, same_arm, ship, write_record
from zoo.trials.open import Finished, open_trial

DEFAULT = "mixed"


def artifact(
    name: str,
    codec: str | None,
    out: Path | None,
    to: Path | None,
    with_record: bool,
    device: str | None,
    console: Console,
) -> None:
    """Write a trial's artifact and print its bytes and its score; with a record, those of all its seeds.

    Args:
        name: a trial's folder, or variant-seed under ``out``.
        codec: as typed; None: the recipe's, or ``mixed`` where it names none.
        out: where results lie.
        to: a folder to write into; None: each trial's own.
        with_record: also write ``record.json``, over all seeds of the trial's arm.
        device: where to score.
        console: where to print.

    Raises:
        ConfigError: no such trial, one without weights, or a codec that cannot store them.
    """
    plugins.discover()
    asked = open_trial(name, out)
    chosen = asked.recipe.codec or codec_named(DEFAULT) if codec is None else codec_named(codec)
    trials = same_arm(asked) if with_record else [asked]
    shipped = [_ship(trial, chosen, to, len(trials) > 1, device, console) for trial in trials]
    if with_record:
        told, path = record(trials, shipped, chosen), (to or asked.folder) / RECORD
        write_record(path, told)
        spread = "one seed, so no spread" if told["val_bpb_std"] is None else f"± {told['val_bpb_std']:.4f}"
        say(console, f"{len(trials)} seeds: {told['val_bpb']:.4f} bits per byte ({spread}). Written to {path}")


def _ship(
    trial: Finished, codec: Codec.Config, to: Path | None, several: bool, device: str | None, console: Console
) -> Shipped:
    folder = trial.folder if to is None else to / trial.folder.name if several else to
    with console.status("") as status:
        made = ship(trial, codec, folder / NAME, lambda line: status.update(line), device or "auto")
    _print(trial, codec, made, console)
    return made


def _print(trial: Finished, codec: Codec.Config, made: Shipped, console: Console) -> None:
    rows = [
        {
            "part": part.name,
            "stored": part.storage,
            "parameters": f"{part.parameters:,}",
            "bytes": f"{part.bytes:,.0f}",
            "bits each": f"{8 * part.bytes / max(1, part.parameters):.3f}",
            "entropy of codes": "" if part.entropy is None else f"{part.entropy:,.0f}",
        }
        for part in made.parts
    ]
    blank = dict.fromkeys(rows[0], "")
    rows += [{**blank, "part": "recipe, tokenizer, header, tables", "bytes": f"{made.rest:,}"}]
    rows += [{**blank, "part": "artifact", "bytes": f"{made.bytes_model:,}"}]
    rows += [{**blank, "part": "code, stripped, xz", "bytes": f"{made.bytes_code:,}"}]
    rows += [{**blank, "part": "with code", "bytes": f"{made.bytes_total:,}"}]
    print_table(console, f"{trial.folder.name}, codec {codec.part.kind}", rows, ["entropy of codes", "stored"])
    for line in made.remarks:
        say(console, line)
    before, after = made.before, made.after
    say(
        console,
        f"loss {before.nats_per_token:.4f} -> {after.nats_per_token:.4f} nats per token, "
        f"{before.bits_per_byte:.4f} -> {after.bits_per_byte:.4f} bits per byte "
        f"({after.bits_per_byte - before.bits_per_byte:+.4f}), over {after.bytes:,} bytes of validation text",
    )
    say(console, f"Written to {made.path}; every byte of it read back and checked.")

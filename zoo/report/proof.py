"""What ``prove`` and ``decode`` print."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console

from zoo import plugins
from zoo.core.part import ConfigError, faults
from zoo.proof.decode import decode as decoded
from zoo.proof.file import save
from zoo.proof.prove import CLOSE, CODE, Proven, prove
from zoo.proof.rivals import Rivalry
from zoo.report.terminal import print_table, say
from zoo.scoring.slots import Scorer
from zoo.trials.open import open_trial


def scorer_named(text: str) -> Scorer.Config:
    """A scorer as typed: a kind's name, or a TOML table such as ``{kind = "sliding", stride = 32}``.

    Raises:
        ConfigError: no such scorer, or such knobs.
    """
    plugins.discover()
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    try:
        return Scorer.parse(value)
    except ValidationError as fault:
        raise ConfigError(f"--scorer {text}: {faults(fault)[0]}") from None
    except ConfigError as fault:
        raise ConfigError(f"--scorer {text}: {fault}") from None


def show_proof(
    name: str,
    n_bytes: int,
    scorer: str | None,
    out: Path | None,
    to: Path | None,
    artifact: Path | None,
    console: Console,
) -> bool:
    """Make a proof of a trial and print it.

    Args:
        name: a trial's folder, or variant-seed under ``out``.
        n_bytes: of the validation text.
        scorer: as typed; None: the recipe's.
        out: where results lie.
        to: a folder to write into; None: the trial's.
        artifact: a file of this trial; None: made now.
        console: where to print.

    Returns:
        whether the text came back bit for bit and the code is as long as was claimed.

    Raises:
        ConfigError: see ``zoo.proof.prove.prove``.
    """
    driver = None if scorer is None else scorer_named(scorer)
    trial = open_trial(name, out)
    driver = driver or trial.recipe.evaluate.scorer
    with console.status("") as status:
        found = prove(
            trial,
            n_bytes,
            driver,
            to or trial.folder,
            artifact,
            lambda what, share: status.update(f"{what}{f': {share:.0%}' if share else ''}"),
        )
    _print(found, driver, console)
    return found.fine


def _print(found: Proven, driver: Scorer.Config, console: Console) -> None:
    blank = {"what": "", "bytes": "", "bits/byte": "", "behind training text": "", "bits/byte so": ""}
    rows = [
        {**blank, "what": f"claimed, {driver.label()}", "bits/byte": f"{found.claimed.bits_per_byte:.4f}"},
        _row(found, blank, "the code", found.code),
        _row(found, blank, f"the file {CODE}", found.file),
    ]
    rows += [_rival(found, blank, rivalry) for rivalry in found.rivals]
    print_table(console, f"{found.n_bytes:,} bytes of validation text, {found.n_tokens:,} tokens", rows, [])
    same = "came back bit for bit" if found.exact else "DID NOT come back as it was"
    held = "within" if abs(found.excess) <= CLOSE else "NOT within"
    lines = [
        f"The text {same} in a fresh process, from the artifact and the file alone.",
        f"The code differs from what was claimed by {found.excess:+.3%}, {held} 0.5 %. The file also holds a header, a hash "
        f"of the frequencies every 256 tokens and a checksum: {found.file - found.code:,} bytes.",
        f"The artifact has {found.model:,} bytes, {found.recipe:,} of them the recipe and {found.tokenizer:,} the tokenizer; "
        "they are not counted in any row, nor is the training text that a compressor was given first.",
    ]
    lines += [
        f"{rivalry.name}: not installed; pip install 'ablation-zoo[prove]' compares with it, too."
        for rivalry in found.rivals
        if rivalry.plain is None
    ]
    for line in [*lines, f"Written: {found.path}, {found.artifact}"]:
        say(console, line)


def _row(found: Proven, blank: dict[str, str], what: str, n_bytes: int) -> dict[str, str]:
    return {**blank, "what": what, "bytes": f"{n_bytes:,}", "bits/byte": f"{found.bits_per_byte(n_bytes):.4f}"}


def _rival(found: Proven, blank: dict[str, str], rivalry: Rivalry) -> dict[str, str]:
    if rivalry.plain is None or rivalry.primed is None:
        return {**blank, "what": rivalry.name, "bytes": "not installed"}
    behind = {
        "behind training text": f"{rivalry.primed:,} after {rivalry.prime:,}",
        "bits/byte so": f"{found.bits_per_byte(rivalry.primed):.4f}",
    }
    return {**_row(found, blank, rivalry.name, rivalry.plain), **behind}


def decode(artifact: Path, proof: Path, to: Path, console: Console) -> None:
    """Write the text of a proof.

    Raises:
        ConfigError: see ``zoo.proof.decode.decode``; nothing is written then.
    """
    with console.status("decoding") as status:
        text = decoded(artifact, proof, lambda share: status.update(f"decoding: {share:.0%}"))
    save(to, text)
    say(console, f"{len(text):,} bytes, checked against the proof's hash, written to {to}")

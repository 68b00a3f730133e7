"""``prove``: text to a file by a finished trial's model, and back in a fresh process that has the artifact alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import zoo
from zoo.artifact import SUFFIX, Artifact, make, write_artifact
from zoo.codecs import container
from zoo.codecs.slots import Codec
from zoo.core.part import ConfigError
from zoo.data.prepare import Prepared
from zoo.proof.decode import predictor, text_of
from zoo.proof.file import DIGEST, Proof, digest, write
from zoo.proof.rivals import Rivalry, compare
from zoo.proof.stream import compress, probe
from zoo.scoring.slots import Score, Scorer
from zoo.trials.artifacts import NAME, artifact_of
from zoo.trials.open import Finished
from zoo.trials.store import write_whole

ARTIFACT, CODE, RECORD = f"proof{SUFFIX}", "proof.zpf", "proof.json"
CLOSE = 0.005  # how far the code may be from the figure that was claimed for it, as a share

Say = Callable[[str, float], None]  # what is being done, and the share of it that is done


class Proven(NamedTuple):
    """What came of a proof. Sizes are in bytes."""

    path: Path
    artifact: Path
    n_bytes: int  # of text
    n_tokens: int  # coded
    claimed: Score  # the scorer's own figure on the same bytes
    code: int
    file: int  # header, hashes and checksum included
    model: int  # of the artifact; of which:
    recipe: int
    tokenizer: int
    exact: bool  # whether the fresh process gave the text back bit for bit
    rivals: list[Rivalry]

    def bits_per_byte(self, n_bytes: int) -> float:
        """Of so many bytes of code."""
        return 8 * n_bytes / self.n_bytes

    @property
    def excess(self) -> float:
        """How much longer the code is than what was claimed, as a share."""
        return self.bits_per_byte(self.code) / self.claimed.bits_per_byte - 1

    @property
    def fine(self) -> bool:
        """Whether the text came back and the claim holds."""
        return self.exact and abs(self.excess) <= CLOSE


def prove(
    trial: Finished, n_bytes: int, scorer: Scorer.Config, folder: Path, artifact: Path | None, say: Say
) -> Proven:
    """Compress the first ``n_bytes`` of a trial's validation text, decode them elsewhere, and compare.

    Args:
        trial: finished.
        n_bytes: of text, at most; the cut falls between two characters.
        scorer: what drives the code.
        folder: where ``proof.zpf`` and ``proof.json`` go, and the artifact where one has to be made.
        artifact: of this trial; None: the one in its folder, else one is made by the recipe's codec, or by ``raw`` where it
            names none.
        say: told what is being done.

    Raises:
        ConfigError: a scorer whose figures are no code lengths, a tokenizer that does not give text back, less text than was
            asked for, or an artifact of another trial.
    """
    driver = scorer.build()
    if not driver.code_length:
        raise ConfigError(f"scorer {driver.kind!r} cannot drive a code: {'; '.join(driver.breaks.values())}")
    prepared = trial.text()
    tokens, text = beginning(prepared, n_bytes)
    driver.check(len(tokens), trial.recipe.model.context)
    written = trial.folder / NAME
    path = artifact or (written if written.is_file() else None)
    if path is None:
        path = folder / ARTIFACT
        _make(trial, prepared, path)
    opened = artifact_of(path, trial.recipe)
    claimed = _claimed(driver, opened, tokens, say)
    data = path.read_bytes()
    ask = predictor(driver, opened)
    seen = probe(ask, opened.tokenizer.bos, opened.model.config.vocab_size, DIGEST)
    coded = compress(predictor(driver, opened), tokens, lambda share: say("coding", share))
    table = scorer.model_dump(mode="json", exclude_defaults=True)
    proof = Proof(len(text), len(tokens), digest(data), seen, digest(text), table, coded)
    size = write(folder / CODE, proof)
    exact = elsewhere(path, folder / CODE, lambda share: say("decoding in a fresh process", share)) == text
    planes = container.read(path).planes
    found = Proven(
        path=folder / CODE,
        artifact=path,
        n_bytes=len(text),
        n_tokens=len(tokens) - 1,
        claimed=claimed,
        code=len(coded.code),
        file=size,
        model=len(data),
        recipe=len(planes["recipe"]),
        tokenizer=len(planes["tokenizer"]),
        exact=exact,
        rivals=list(compare(text, prepared, lambda what: say(what, 0.0))),
    )
    write_whole(folder / RECORD, json.dumps(told(found, scorer), indent=2) + "\n")
    return found


def beginning(prepared: Prepared, n_bytes: int) -> tuple[list[int], bytes]:
    """The first bytes of the validation text: tokens, a bos ahead of each document, and the text itself.

    Raises:
        ConfigError: a tokenizer that changes text, or less text than that.
    """
    tokenizer = prepared.tokenizer
    if not tokenizer.lossless:
        raise ConfigError(f"tokenizer {tokenizer.kind!r} changes text: no code of its tokens can give these bytes back")
    tokens: list[int] = []
    text = b""
    for document in prepared.documents("valid"):
        piece = document.text.encode("utf-8")[: n_bytes - len(text)].decode("utf-8", "ignore")
        if piece:
            tokens += [tokenizer.bos, *map(int, tokenizer.encode(piece))]
            text += piece.encode("utf-8")
        if len(piece) < len(document.text) or len(text) >= n_bytes:
            break
    else:
        if len(text) < n_bytes:
            raise ConfigError(f"--bytes {n_bytes:,}: the validation text has {len(text):,} bytes")
    if text_of(tokens, tokenizer) != text:
        raise ConfigError(
            f"tokenizer {tokenizer.kind!r} does not give back the text that was cut at byte {len(text):,}"
        )
    return tokens, text


def _make(trial: Finished, prepared: Prepared, path: Path) -> None:
    codec, model = trial.recipe.codec or Codec.parse("raw"), trial.model()
    try:
        made = make(trial.recipe, prepared.tokenizer, model, codec)
    except ConfigError as fault:
        raise fault.under("codec") from None
    write_artifact(path, made)


def _claimed(scorer: Scorer, opened: Artifact, tokens: list[int], say: Say) -> Score:
    recipe, ids = opened.recipe, np.array(tokens)
    masked = recipe.data.document_mask == "segments"
    return scorer.score(
        opened.model,
        ids,
        opened.tokenizer.byte_lengths()[ids],
        recipe.model.context,
        recipe.evaluate.batch,
        opened.tokenizer.bos if masked else None,
        lambda share: say("scoring", share),
    )


def elsewhere(artifact: Path, proof: Path, tell: Callable[[float], None]) -> bytes:
    """What a fresh process decodes that is told of two files and has an empty cache.

    Raises:
        ConfigError: what that process said when it stopped.
    """
    with tempfile.TemporaryDirectory() as place:
        text = Path(place) / "text"
        known = {**os.environ, "PYTHONPATH": str(Path(zoo.__path__[0]).parent), "ZOO_CACHE": str(Path(place) / "none")}
        words = [sys.executable, "-m", "zoo.proof", *(str(path.absolute()) for path in (artifact, proof, text))]
        with subprocess.Popen(
            words, cwd=place, env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            for line in child.stdout:
                tell(float(line))
            complaint = child.stderr.read()
        if child.returncode:
            raise ConfigError(f"the process that decodes ended with exit code {child.returncode}: {complaint.strip()}")
        return text.read_bytes()


def told(proven: Proven, scorer: Scorer.Config) -> dict[str, object]:
    """A proof as JSON."""
    return {
        "scorer": scorer.label(),
        "text_bytes": proven.n_bytes,
        "tokens": proven.n_tokens,
        "claimed_bits_per_byte": proven.claimed.bits_per_byte,
        "coded_bits_per_byte": proven.bits_per_byte(proven.code),
        "file_bits_per_byte": proven.bits_per_byte(proven.file),
        "code_bytes": proven.code,
        "file_bytes": proven.file,
        "artifact_bytes": proven.model,
        "exact": proven.exact,
        "rivals": [rivalry._asdict() for rivalry in proven.rivals],
    }

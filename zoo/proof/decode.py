"""The reader's side of a proof: text from an artifact and a code, and from nothing else."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError

from zoo.artifact import Artifact, read_artifact
from zoo.core.part import ConfigError, faults
from zoo.data.slots import Tokenizer
from zoo.proof.file import DIGEST, digest, read
from zoo.proof.stream import decompress, probe
from zoo.scoring.predict import Predictor
from zoo.scoring.slots import Scorer, Tell


def decode(artifact: Path, proof: Path, tell: Tell) -> bytes:
    """The text of a proof.

    Raises:
        ConfigError: a file that is missing or damaged, a proof that was made with another artifact, or a machine on which
            the model computes other frequencies; where that shows first is named.
    """
    told = read(proof)
    opened = read_artifact(artifact)
    if digest(artifact.read_bytes()) != told.artifact:
        raise ConfigError(f"{proof}: was made with another artifact than {artifact}")
    try:
        scorer = Scorer.parse(told.scorer).build()
        if not scorer.code_length:
            raise ConfigError(f"scorer {scorer.kind!r} cannot drive a code")
    except ValidationError as fault:
        raise ConfigError(f"{proof}: its scorer is none: {faults(fault)[0]}") from None
    except ConfigError as fault:
        raise ConfigError(f"{proof}: its scorer is none: {fault}") from None
    bos, vocab_size = opened.tokenizer.bos, opened.model.config.vocab_size
    if probe(predictor(scorer, opened), bos, vocab_size, DIGEST) != told.probe:
        raise ConfigError(
            f"{proof}: stopped at the probe, before the first token: on this machine the model does not compute the "
            "frequencies that the file was written with"
        )
    try:
        tokens = decompress(predictor(scorer, opened), told.coded, bos, told.n_tokens, tell)
    except ConfigError as fault:
        raise ConfigError(f"{proof}: {fault}") from None
    text = text_of(tokens, opened.tokenizer)
    if len(text) != told.n_bytes or digest(text) != told.text:
        raise ConfigError(f"{proof}: what was decoded is not the text that was coded; nothing was written")
    return text


def predictor(scorer: Scorer, opened: Artifact) -> Predictor:
    """A scorer's steps with the model of an artifact, in fp64 on one thread: writer and reader go through the same ones.

    An fp32 model gives other logits token by token than in one call, which alone would break a code.
    """
    torch.set_num_threads(1)
    opened.model.double().stream = torch.float64
    masked = opened.recipe.data.document_mask == "segments"
    return scorer.predictor(opened.model, opened.recipe.model.context, opened.tokenizer.bos if masked else None)


def text_of(tokens: list[int], tokenizer: Tokenizer) -> bytes:
    """The text of documents that each begin with a bos, put together."""
    documents: list[list[int]] = []
    for token in tokens:
        if token == tokenizer.bos:
            documents.append([])
        else:
            documents[-1].append(token)
    return "".join(map(tokenizer.decode, documents)).encode("utf-8")

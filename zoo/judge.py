"""How a trained model is judged: which weights are scored, on what, and what the Result says of the run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zoo import machine
from zoo.artifact import decoded, inputs_for, make
from zoo.core.part import ConfigError
from zoo.cost import cost_of
from zoo.model import Model
from zoo.optim.slots import Average
from zoo.recipe import Recipe
from zoo.result import Result, Scored, notes
from zoo.scoring.plan import plan_of
from zoo.scoring.slots import Score, Scorer, Tell

if TYPE_CHECKING:
    from zoo.data.prepare import Prepared
    from zoo.loop import Loop


Say = Callable[[str], None]  # told in words how far scoring is
EVERY = 0.5  # seconds between words


def score(model: Model, recipe: Recipe, prepared: Prepared, n_tokens: int | None, say: Say | None = None) -> Score:
    """Score the validation text (its first ``n_tokens`` tokens, None: all of it) with the weights as they are."""
    return _score(recipe.evaluate.scorer, model, recipe, prepared, n_tokens, say)


def further(model: Model, recipe: Recipe, prepared: Prepared, say: Say | None = None) -> dict[str, Scored]:
    """What the scorers in ``[evaluate] also`` say of all of the validation text, by their labels."""
    found = {}
    for scorer in recipe.evaluate.also:
        began = time.perf_counter()
        own = _score(scorer, model, recipe, prepared, None, say)
        found[scorer.label()] = Scored(
            bits_per_byte=own.bits_per_byte,
            nats_per_token=own.nats_per_token,
            code_length=scorer.part.code_length,
            seconds=time.perf_counter() - began,
        )
    return found


def shipped(model: Model, recipe: Recipe, prepared: Prepared, say: Say | None = None) -> tuple[int, dict[str, Scored]]:
    """Bytes of the artifact that the recipe's codec makes of a model, and the score of what comes out of it, by its label.

    Raises:
        ConfigError: weights that the codec cannot store, or a library that is not installed.
    """
    began = time.perf_counter()
    if say is not None:
        say(f"writing the artifact, {recipe.codec.part.kind}")
    made = make(recipe, prepared.tokenizer, model, recipe.codec, inputs_for(recipe.codec, recipe, prepared, model))
    own = score(decoded(recipe, made).to(next(model.parameters()).device), recipe, prepared, None, say)
    scored = Scored(
        bits_per_byte=own.bits_per_byte,
        nats_per_token=own.nats_per_token,
        code_length=recipe.evaluate.scorer.part.code_length,
        seconds=time.perf_counter() - began,
    )
    return made.size, {f"artifact {recipe.codec.part.kind}": scored}


def check_scorers(recipe: Recipe, prepared: Prepared) -> None:
    """Whether the text can be scored as the recipe asks, before anything is trained.

    Raises:
        ConfigError: with a path from the root of the recipe.
    """
    n_tokens, during = len(prepared.valid), min(len(prepared.valid), recipe.evaluate.during_tokens + 1)
    asked = [("scorer", recipe.evaluate.scorer, n_tokens if recipe.train.evaluate_every is None else during)]
    asked += [(f"also[{i}]", scorer, n_tokens) for i, scorer in enumerate(recipe.evaluate.also)]
    for knob, scorer, tokens in asked:
        try:
            scorer.build().check(tokens, recipe.model.context)
        except ConfigError as fault:
            raise fault.under(f"evaluate.{knob}") from None


def _score(
    scorer: Scorer.Config, model: Model, recipe: Recipe, prepared: Prepared, n_tokens: int | None, say: Say | None
) -> Score:
    end = len(prepared.valid) if n_tokens is None else n_tokens + 1
    masked = recipe.data.document_mask == "segments"
    model.eval()
    return scorer.build().score(
        model,
        prepared.valid[:end],
        prepared.valid_spans[:end],
        context=recipe.model.context,
        batch=recipe.evaluate.batch,
        bos=prepared.tokenizer.bos if masked else None,
        tell=None if say is None else _in_words(say, f"scoring, {scorer.label()}"),
    )


def _in_words(say: Say, what: str) -> Tell:
    """Shares as words, not too many of them."""
    spoken = -math.inf

    def tell(share: float) -> None:
        nonlocal spoken
        if time.monotonic() - spoken >= EVERY:
            spoken = time.monotonic()
            say(f"{what}: {share:.0%}")

    return tell


@contextmanager
def averaged(model: Model, average: Average) -> Iterator[None]:
    """The model with its averaged weights inside the block, its own outside. Buffers stay the live ones."""
    weights = average.weights()
    if weights is None:
        yield
        return
    own = {name: p.detach().clone() for name, p in model.named_parameters()}
    _load(model, weights)
    try:
        yield
    finally:
        _load(model, own)


@torch.no_grad()
def _load(model: Model, weights: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])


def result_of(
    loop: Loop, status: str, reason: str, final: Score | None, scores: dict[str, Scored] | None = None
) -> Result:
    """The Result of a run so far.

    Args:
        loop: the run.
        status: ``done`` or ``diverged``.
        reason: why it is not done.
        final: the score of all of the validation text; None where there is none.
        scores: what ``further`` found.
    """
    recipe, cost = loop.recipe, cost_of(loop.model)
    tail = loop.losses[-max(1, len(loop.losses) // 10) :]
    tokens = loop.step * recipe.train.batch * recipe.train.accumulate * recipe.model.context
    return Result(
        status=status,
        reason=reason,
        name=recipe.name,
        variant=recipe.variant,
        seed=recipe.train.seed,
        steps=loop.step,
        tokens=tokens,
        seconds=loop.seconds,
        tokens_per_second=tokens / loop.seconds if loop.seconds else 0.0,
        initial_loss=_finite(loop.losses[0]) if loop.losses else None,
        early_loss=_finite(torch.stack(loop.losses[:10]).min()) if loop.losses else None,
        train_loss=_finite(torch.stack(tail).double().mean()) if tail else None,
        valid_loss=None if final is None else final.nats_per_token,
        bits_per_byte=None if final is None else final.bits_per_byte,
        valid_tokens=0 if final is None else final.tokens,
        valid_bytes=0 if final is None else final.bytes,
        scores=scores or {},
        parameters=cost.parameters,
        active_parameters=cost.active_parameters,
        flops_per_token=cost.flops_per_token,
        peak_memory=loop.peak_memory(),
        plan=plan_of(recipe.evaluate.scorer, recipe.model.context, loop.prepared),
        facts=_facts(loop),
        notes=(*notes(recipe), *loop.remarks),
        micro_batch=loop.rows,
        compiled=loop.compiled,
    )


def _facts(loop: Loop) -> dict[str, str]:
    run = {"device": loop.device, "dtype": loop.dtype, "threads": str(torch.get_num_threads())}
    if loop.world.size > 1:
        run["ranks"] = str(loop.world.size)
    return {
        **loop.prepared.facts,
        **loop.batches.facts(),
        **machine.facts(loop.device),
        **run,
        "profile": loop.recipe.machine.profile,
    }


def _finite(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None

"""The loop of generation: prompts of different lengths side by side, one token a call, with the cache.

Shapes: R rows (prompt by prompt, its samples side by side), S columns so far, V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.core.cache import Cache
from zoo.core.part import ConfigError
from zoo.data.slots import Tokenizer
from zoo.generate.beam import search
from zoo.generate.choose import PAD, Sampling, adjusted, choose
from zoo.generate.replay import Steps
from zoo.model import Model

PIECE = 256  # tokens of a prompt per call: logits of a long prompt need not exist at once
Tell = Callable[[int, str], None]  # number of the row, new text


class Continuation(NamedTuple):
    """What a model made of a prompt."""

    prompt: str
    text: str
    ids: tuple[int, ...]
    logprob: float  # nats, under the model itself: without temperature, filters and penalties
    ended: str  # "length", "stop" (a stop string) or "document" (the model ended it)

    @property
    def mean_logprob(self) -> float:
        """Length-normalised: nats per token."""
        return self.logprob / max(1, len(self.ids) + (self.ended == "document"))


def best(found: Sequence[Continuation], n: int) -> list[Continuation]:
    """The ``n`` continuations with the best length-normalised log-probability, the best first."""
    return sorted(found, key=lambda c: -c.mean_logprob)[:n]


@torch.inference_mode()
def generate(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    how: Sampling | None = None,
    n: int = 1,
    tell: Tell | None = None,
) -> list[list[Continuation]]:
    """``n`` continuations for each prompt; with beams the ``n`` best of them, in the order of their scores.

    Row r of a prompt draws from a stream of its own, keyed by (seed, r), so it does not depend on what stands beside it.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: the one it was trained with.
        prompts: texts; each is a document's beginning.
        how: see Sampling; None: its defaults.
        n: continuations per prompt.
        tell: called with the number of a row and its new text, as soon as that is certain.

    Raises:
        ConfigError: a model in training mode, more samples than beams, or a prompt that is no text.
    """
    how = Sampling() if how is None else how
    _check(model, tokenizer, how, n)
    ids = starts(tokenizer, prompts)
    if how.beams > 1:
        return [_searched(model, tokenizer, prompt, start, how, n) for prompt, start in zip(prompts, ids, strict=True)]
    rows = _Rows(model, tokenizer, [start for start in ids for _ in range(n)], how, n, tell)
    made = rows.run()
    texts = [prompt for prompt in prompts for _ in range(n)]
    flat = [c._replace(prompt=prompt) for c, prompt in zip(made, texts, strict=True)]
    return [flat[i : i + n] for i in range(0, len(flat), n)]


def starts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """The ids of prompts, each as the beginning of a document.

    Raises:
        ConfigError: a prompt that is no text.
    """
    for prompt in prompts:
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise ConfigError("is no text: it holds bytes that are no UTF-8", "prompt", prompt) from None
    return [[tokenizer.bos, *tokenizer.encode(prompt).tolist()] for prompt in prompts]


def _check(model: Model, tokenizer: Tokenizer, how: Sampling, n: int) -> None:
    """Raises ConfigError for what ``generate`` cannot do."""
    if model.training:
        raise ConfigError("the model is in training mode: call model.eval() before it generates")
    if how.beams > 1 and n > how.beams:
        raise ConfigError(f"{n} samples of {how.beams} beams: there are no more than beams", "n", n)
    drawn = {name: getattr(how, name) for name in ("top_k", "top_p", "min_p") if getattr(how, name) is not None}
    drawn |= {"temperature": how.temperature} if how.temperature not in (0.0, 1.0) else {}
    if how.beams > 1 and drawn:
        name, value = next(iter(drawn.items()))
        raise ConfigError(f"beam search draws nothing, so with {how.beams} beams this has no meaning", name, value)
    if tokenizer.vocab_size > (model.config.vocab_size or 0):
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model {model.config.vocab_size:,}: not its own"
        )


class Feed:
    """A model and its cache: ids in, the last column's logits (R, V) out, in fp64 on the CPU."""

    def __init__(self, model: Model, prompts: Sequence[Sequence[int]], room: int) -> None:
        self.model, self.device = model, next(model.parameters()).device
        width = max(map(len, prompts))
        self.cache: Cache = model.cache(len(prompts), width + room)
        self.steps = Steps(model, self.cache)
        self.history = torch.tensor([[PAD] * (width - len(p)) + list(p) for p in prompts])  # (R, S)

    def prompt(self) -> Tensor:
        """Logits after the prompts. Left padding is a document of its own, which nobody sees."""
        padded = self.history == PAD
        tokens = self.history.clamp_min(0).to(self.device)
        segments = (~padded).long().to(self.device) if bool(padded.any()) else None
        logits = None
        for start in range(0, tokens.shape[1], PIECE):
            piece = slice(start, start + PIECE)
            told = None if segments is None else segments[:, piece]
            logits = self.model(tokens[:, piece], segments=told, cache=self.cache).logits
        return logits[:, -1].cpu().double()

    def step(self, ids: Tensor) -> Tensor:
        """Logits after one more id (R,) per row."""
        self.history = torch.cat([self.history, ids[:, None]], 1)
        return self.steps(ids[:, None].to(self.device))[:, -1].cpu().double()

    def follow(self, parents: Tensor) -> None:
        """Row i goes on from what row ``parents[i]`` was."""
        self.cache.reorder(parents.to(self.device))
        self.history = self.history[parents]


class _Rows:
    """Rows that are sampled side by side."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        starts: list[list[int]],
        how: Sampling,
        n: int,
        tell: Tell | None,
    ) -> None:
        self.tokenizer, self.how, self.tell = tokenizer, how, tell
        self.feed = Feed(model, starts, how.max_tokens)
        self.n_prompt = self.feed.history.shape[1]
        # row r of every prompt has the same stream: equal prompts side by side or alone give equal text
        self.streams = [torch.Generator().manual_seed(_seed(how.seed, row % n)) for row in range(len(starts))]
        self.logprobs = [0.0] * len(starts)
        self.ids: list[list[int]] = [[] for _ in starts]
        self.ended = [""] * len(starts)
        self.told = [0] * len(starts)  # characters

    def run(self) -> list[Continuation]:
        logits = self.feed.prompt()
        for made in range(1, self.how.max_tokens + 1):
            picked = self._choose(logits)
            said = logits.log_softmax(-1).gather(1, picked[:, None])[:, 0].tolist()
            for row, (token, logprob) in enumerate(zip(picked.tolist(), said, strict=True)):
                if not self.ended[row]:
                    self._take(row, token, logprob)
            if all(self.ended) or made == self.how.max_tokens:
                break
            logits = self.feed.step(picked)
        return [self._close(row) for row in range(len(self.ids))]

    def _choose(self, logits: Tensor) -> Tensor:
        uniforms = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in self.streams])
        return choose(adjusted(logits, self.feed.history, self.n_prompt, self.how), uniforms, self.how)

    def _take(self, row: int, token: int, logprob: float) -> None:
        self.logprobs[row] += logprob
        if token == self.tokenizer.bos:  # the beginning of the next document
            self.ended[row] = "document"
            return
        self.ids[row].append(token)
        if not (self.how.stop or self.tell):
            return
        text = self.tokenizer.decode(self.ids[row])
        at = _first(text, self.how.stop)
        if at is not None:
            self.ended[row] = "stop"
        if self.tell:
            self._say(row, text if at is None else text[:at], at is not None)

    def _say(self, row: int, text: str, last: bool) -> None:
        """Tell what cannot change any more: no half character, and nothing that may be a stop string's beginning."""
        held = 0 if last else max((_overlap(text, stop) for stop in self.how.stop), default=0)
        sure = text[: len(text) - held]
        if not last:
            sure = sure.rstrip("\ufffd")
        if len(sure) > self.told[row]:
            self.tell(row, sure[self.told[row] :])
            self.told[row] = len(sure)

    def _close(self, row: int) -> Continuation:
        text = self.tokenizer.decode(self.ids[row])
        at = _first(text, self.how.stop)
        text = text if at is None else text[:at]
        if self.tell and self.told[row] < len(text):
            self.tell(row, text[self.told[row] :])
        return Continuation("", text, tuple(self.ids[row]), self.logprobs[row], self.ended[row] or "length")


def _searched(
    model: Model, tokenizer: Tokenizer, prompt: str, start: list[int], how: Sampling, n: int
) -> list[Continuation]:
    """The ``n`` best beams of one prompt."""
    feed = Feed(model, [start], how.max_tokens)

    def step(parents: Tensor, ids: Tensor) -> Tensor:
        feed.follow(parents)
        return feed.step(ids)

    beams = search(feed.prompt(), step, torch.tensor(start), tokenizer.bos, how)[:n]
    found = []
    for beam in beams:
        text = tokenizer.decode(beam.ids)
        at = _first(text, how.stop)
        ended = "stop" if at is not None else "document" if beam.ended else "length"
        found.append(Continuation(prompt, text if at is None else text[:at], beam.ids, beam.own, ended))
    return found


def _seed(seed: int, row: int) -> int:
    return (seed * 1_000_003 + row) % 2**63


def _first(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop string begins, None where there is none."""
    places = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return min(places, default=None)


def _overlap(text: str, stop: str) -> int:
    """How many last characters of ``text`` are the beginning of ``stop``."""
    return next((k for k in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:k])), 0)

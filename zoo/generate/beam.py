"""Beam search over one prompt, with the cache reordered by the beams that survive."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.generate.choose import Sampling, adjusted

Step = Callable[[Tensor, Tensor], Tensor]  # (which row each beam goes on from, its new ids) -> logits (R, V) in fp64


class Beam(NamedTuple):
    """A continuation and the sum of its log-probabilities in nats, penalties included."""

    ids: tuple[int, ...]
    total: float
    ended: bool  # whether it ends with the end of a document, which is not in ``ids``
    own: float = 0.0  # the sum of the log-probabilities that the model itself gave, penalties left out

    def score(self, penalty: float) -> float:
        """What beams are ranked by; the end of the document counts as a token."""
        return self.total / (len(self.ids) + self.ended) ** penalty


def search(first: Tensor, step: Step, prompt: Tensor, end: int, how: Sampling) -> list[Beam]:
    """The ``how.beams`` best continuations found, the best first.

    A beam that ends takes a place among the finished; the search stops when no running beam would be better at its present
    length than the worst finished one, as transformers' does with ``early_stopping=False``.

    Args:
        first: logits (1, V) after the prompt, fp64.
        step: feeds ids to the model.
        prompt: (S,) ids.
        end: the id that ends a document.
        how: beams, max_tokens, length_penalty and the penalties.
    """
    width, running, finished = how.beams, [Beam((), 0.0, False)], []
    logits = first
    while True:
        candidates = _candidates(logits, running, prompt, how)
        for _, token, beam in candidates[:width]:
            if token == end:
                finished.append(beam._replace(ended=True, ids=beam.ids[:-1]))
        finished = _best(finished, width, how)
        going = [c for c in candidates if c[1] != end][:width]
        running = [beam for _, _, beam in going]
        length = len(running[0].ids) if running else 0
        if not running or length == how.max_tokens:
            return _best(finished + running, width, how)
        if len(finished) == width and running[0].total / length**how.length_penalty <= finished[-1].score(
            how.length_penalty
        ):
            return finished
        parents, tokens = ([c[i] for c in going] for i in (0, 1))
        logits = step(torch.tensor(parents), torch.tensor(tokens))


def _candidates(logits: Tensor, running: list[Beam], prompt: Tensor, how: Sampling) -> list[tuple[int, int, Beam]]:
    """The best 2 x beams ways to go on: row, id and the longer beam. Twice as many, since up to half of them may end."""
    history = torch.stack([torch.cat([prompt, torch.tensor(beam.ids, dtype=torch.long)]) for beam in running])
    plain = logits.log_softmax(-1)  # (R, V)
    said = adjusted(plain, history, len(prompt), how)
    totals = said + torch.tensor([beam.total for beam in running], dtype=said.dtype)[:, None]
    values, places = totals.flatten().topk(min(2 * how.beams, totals.numel()))
    found = []
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        row, token = divmod(place, logits.shape[1])
        if value > -torch.inf:
            own = running[row].own + float(plain[row, token])
            found.append((row, token, Beam((*running[row].ids, token), value, False, own)))
    return found


def _best(beams: list[Beam], width: int, how: Sampling) -> list[Beam]:
    return sorted(beams, key=lambda beam: -beam.score(how.length_penalty))[:width]

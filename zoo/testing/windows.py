"""Promises about who may know what: a token's answer depends on its own document up to itself, and on nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.model import Model
from zoo.testing.hosts import Specimen
from zoo.testing.measure import (
    PRECISIONS,
    UNMOVED,
    Answer,
    BrokenPromise,
    ask,
    difference,
    joined,
    must_agree,
    precise,
)


def causal(subject: Specimen, n_tokens: int) -> None:
    """Gradients of outputs before t with respect to inputs from t on are exactly zero; changed tokens move nothing."""
    cuts = _suspects(subject, n_tokens)
    if not cuts:
        return
    model, tokens = subject.model(), subject.tokens(2, n_tokens)
    x, logits = with_inputs(model, tokens)
    weight = _weights(logits)
    for t in cuts:
        (gradient,) = torch.autograd.grad((logits * weight)[:, :t].sum(), x, retain_graph=True)
        seen = gradient[:, t:].abs().amax((0, 2))  # (T - t,)
        if bool((seen != 0).any()):
            source = t + int((seen != 0).nonzero()[0])
            what = f"with T = {n_tokens}, outputs before {t} have gradient {float(seen.max()):.2g} to input {source}"
            raise BrokenPromise("causal", subject, what)
    before = ask(model, tokens)
    for t in cuts:
        changed = tokens.clone()
        changed[:, t:] = (tokens[:, t:] + 1 + subject.tokens(2, n_tokens, 1)[:, t:] % 7) % subject.config.vocab_size
        at, moved = difference(ask(model, changed).at(slice(None), slice(t)), before.at(slice(None), slice(t)))
        if moved > UNMOVED:
            what = f"with T = {n_tokens}, changing the tokens from {t} on moves position {at} by {moved:.2g}"
            raise BrokenPromise("causal", subject, what)


def _suspects(subject: Specimen, n_tokens: int) -> list[int]:
    """Where past and future seem to touch, of all places in a row at once: one row of a batch for each.

    Rows that touch each other do not make it so; ``causal`` looks at each place again, with fewer rows.
    """
    n_cuts, n_rows = n_tokens - 1, 2 if n_tokens <= 12 else 1
    model, rows = subject.model(), subject.tokens(n_rows, n_tokens).repeat_interleave(n_cuts, 0)
    past = (torch.arange(n_tokens) < torch.arange(1, n_tokens)[:, None]).repeat(n_rows, 1)  # (rows * (T - 1), T)
    x, logits = with_inputs(model, rows)
    (gradient,) = torch.autograd.grad((logits * _weights(logits))[past].sum(), x)
    seen = gradient.abs().amax(-1).masked_fill(past, 0).amax(1) != 0
    others = (rows + 1 + subject.tokens(len(rows), n_tokens, 1) % 7) % subject.config.vocab_size
    with torch.no_grad():
        change = logits - model(rows.where(past, others)).logits
    within = change.abs().amax(-1).masked_fill(~past, 0).amax(1) <= UNMOVED * logits.abs().max()  # of NaN nothing is
    touched = (seen | ~within).view(n_rows, n_cuts).any(0)
    return [t + 1 for t in range(n_cuts) if bool(touched[t])]


def _weights(logits: Tensor) -> Tensor:
    """Random factors, so that no two gradients cancel."""
    return torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=logits.dtype)


def with_inputs(model: Model, tokens: Tensor, segments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The embedded tokens as a leaf (B, T, D), and the logits that follow from them."""
    x = model.embedding(tokens).detach().requires_grad_()
    hook = model.embedding.register_forward_hook(lambda *_: x)
    try:
        return x, model(tokens, segments=segments).logits
    finally:
        hook.remove()


def prefix_consistent(subject: Specimen, n_tokens: int) -> None:
    """The answer to the first t tokens alone is the first t answers to all of them."""
    for dtype in PRECISIONS:
        model, tokens = precise(subject, dtype), subject.tokens(2, n_tokens)
        full = ask(model, tokens)
        for t in range(1, n_tokens) if dtype is torch.float64 else (1, n_tokens // 2, n_tokens - 1):
            got, want = ask(model, tokens[:, :t]), full.at(slice(None), slice(t))
            must_agree("prefix_consistent", subject, got, want, dtype, f"with the first {t} of T = {n_tokens} tokens")


def batch_independent(subject: Specimen, n_tokens: int) -> None:
    """A row's answer does not depend on the rows beside it."""
    for dtype in PRECISIONS:
        model, tokens = precise(subject, dtype), subject.tokens(3, n_tokens)
        full = ask(model, tokens)
        for row in range(3):
            rows = slice(row, row + 1)
            want = full.at(rows, slice(None))
            when = f"row {row} of 3 alone, T = {n_tokens}"
            must_agree("batch_independent", subject, ask(model, tokens[rows]), want, dtype, when)


def padding_independent(subject: Specimen, n_tokens: int) -> None:
    """Padding on the left, as a segment of its own, changes nothing; each row may have another amount of it."""
    for dtype in PRECISIONS:
        model, tokens = precise(subject, dtype), subject.tokens(3, n_tokens)
        padded, segments = left_padded(tokens, (0, 1, 3))
        got = ask(model, padded, segments)
        for row, pad in enumerate((0, 1, 3)):
            rows, want = slice(row, row + 1), ask(model, tokens[row : row + 1])
            part = got.at(rows, slice(pad, pad + n_tokens))
            must_agree("padding_independent", subject, part, want, dtype, f"{pad} tokens of padding, T = {n_tokens}")


def left_padded(tokens: Tensor, pads: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Each row of (B, T) behind ``pads[row]`` tokens that are segment 0; what is left over on the right repeats it."""
    length, width = tokens.shape[1], tokens.shape[1] + max(pads)
    rows = []
    for row, pad in zip(tokens, pads, strict=True):
        rows.append(torch.cat([row[:1].expand(pad), row, row[-1:].expand(width - pad - length)]))
    segments = torch.stack([(torch.arange(width) >= p).long() for p in pads])
    return torch.stack(rows), segments


def document_bounded(subject: Specimen, n_tokens: int) -> None:
    """Nothing crosses from one document of a row to another, and a document answers in a row as it does alone.

    A kind that is said to break ``prefix_consistent`` is not asked the second: it compares windows of two lengths.
    """
    lengths = (n_tokens // 3, n_tokens // 3 + 1, n_tokens)  # three documents in a row of about 5/3 T
    ends = torch.tensor(lengths).cumsum(0).tolist()
    spans = [slice(end - length, end) for length, end in zip(lengths, ends, strict=True) if length]
    tokens = subject.tokens(2, ends[-1])
    segments = torch.cat([torch.full((2, n), i) for i, n in enumerate(lengths)], 1)
    model = subject.model()
    x, logits = with_inputs(model, tokens, segments)
    weight = _weights(logits)
    for span in spans:
        where = f"document at {span.start}:{span.stop} of {ends[-1]} tokens"
        (gradient,) = torch.autograd.grad((logits * weight)[:, span].sum(), x, retain_graph=True)
        outside = torch.cat([gradient[:, : span.start], gradient[:, span.stop :]], 1)
        if bool((outside != 0).any()):
            what = f"{where} has gradient {float(outside.abs().max()):.2g} to other documents"
            raise BrokenPromise("document_bounded", subject, what)
        others = (tokens + 1) % subject.config.vocab_size
        others[:, span] = tokens[:, span]
        part = (slice(None), span)
        at, moved = difference(ask(model, others, segments).at(*part), ask(model, tokens, segments).at(*part))
        if moved > UNMOVED:
            what = f"{where} moves by {moved:.2g} at its token {at} when the others change"
            raise BrokenPromise("document_bounded", subject, what)
    if "prefix_consistent" in subject.excused:
        return
    for dtype in PRECISIONS:
        whole = ask(precise(subject, dtype), tokens, segments)
        for span in spans:
            alone = ask(precise(subject, dtype), tokens[:, span])
            when = f"the document at {span.start}:{span.stop} of {ends[-1]} tokens, alone"
            must_agree("document_bounded", subject, alone, whole.at(slice(None), span), dtype, when)


def decodes(subject: Specimen, n_tokens: int) -> None:
    """Token by token, and piece by piece, with a cache: the same as in full; left-padded and reordered rows too."""
    model, tokens = subject.model(), subject.tokens(2, n_tokens)
    full = ask(model, tokens)
    pieces = [n for n in (n_tokens // 2, 1, n_tokens - n_tokens // 2 - 1) if n > 0]
    for sizes in ([1] * n_tokens, pieces):
        when = f"in pieces of {sizes} tokens"
        must_agree("decodes", subject, decoded(model, tokens, sizes), full, torch.float64, when)
    padded, segments = left_padded(tokens, (0, 2))
    n_left = padded.shape[1] - 3
    singly = [3, *[1] * n_left]  # a prompt that holds all padding, then token by token
    for dtype in PRECISIONS:
        model = precise(subject, dtype)
        first = singly if dtype is torch.float64 else [3, *([1, 1, n_left - 2] if n_left > 2 else [1] * n_left)]
        got, want = decoded(model, padded, first, segments), ask(model, padded, segments)
        must_agree("decodes", subject, got, want, dtype, f"behind 0 and 2 tokens of padding, T = {n_tokens}")
    _follows_beams(subject, n_tokens)


@torch.no_grad()
def decoded(model: Model, tokens: Tensor, pieces: list[int], segments: Tensor | None = None) -> Answer:
    """The answers to tokens (B, T) given in ``pieces`` with a cache; ``segments`` are told of the first piece only."""
    cache = model.cache(tokens.shape[0], tokens.shape[1] + 2)
    answers, start = [], 0
    for n in pieces:
        told = segments[:, :n] if segments is not None and start == 0 else None
        answers.append(ask(model, tokens[:, start : start + n], told, cache))
        start += n
    return joined(answers)


def _follows_beams(subject: Specimen, n_tokens: int) -> None:
    """Rows of a cache may be swapped and doubled between two calls."""
    model, tokens, half = subject.model(), subject.tokens(2, n_tokens), n_tokens // 2
    beams = torch.tensor([1, 1])
    cache = model.cache(2, n_tokens)
    ask(model, tokens[:, :half], cache=cache)
    cache.reorder(beams)
    got = ask(model, tokens[:, half:], cache=cache)
    want = ask(model, torch.cat([tokens[beams, :half], tokens[:, half:]], 1)).at(slice(None), slice(half, None))
    must_agree("decodes", subject, got, want, torch.float64, f"after its rows are reordered, T = {n_tokens}")

"""Probes of a model: what an answer may depend on, asked of tensors alone.

Each probe raises Leak at the first answer that depends on what it must not know. A value is compared after the tokens have
been changed; a gradient finds what a change is too coarse to show. Both are asked in training and in evaluation, since a path
may exist in one of them only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.slots import IGNORE
from zoo.guards.bench import LENGTH, Bench

MODES = {True: "in training", False: "in evaluation"}
ROWS = 4
SOME = 0.3  # of the cuts


class Leak(Exception):
    """A probe has found something. ``promise`` is that of the contract (zoo.testing) that is broken."""

    def __init__(self, promise: str, what: str) -> None:
        super().__init__(what)
        self.promise = promise


def unchanging(bench: Bench) -> None:
    """An answer depends on neither earlier calls nor chance, and a call leaves no trace in the model."""
    one, first = bench.answer(False, ROWS)
    if not bool(first.isfinite().all()):
        raise Leak("scores", "its answers are not finite with random parameters, so nothing can be proven of it")
    other, trained = bench.answer(True, ROWS)
    before = _memory(bench)
    again = bench.logits(other, True)
    bench.logits(other, False, seed=2)
    if _differ(trained, again, bench):
        raise Leak("deterministic", "in training, the same call gives another answer the second time")
    if changed := [name for name, value in _memory(bench).items() if not _equal(before.get(name), value)]:
        raise Leak("deterministic", f"a call changes {changed[0]}, so an answer depends on the calls before it")
    if _differ(first, bench.logits(one, False, seed=3), bench):
        raise Leak("deterministic", "in evaluation, the same tokens get another answer the second time")


def _differ(a: Tensor, b: Tensor, bench: Bench) -> bool:
    allowed = (bench.precision.value or 1e-3) * a.abs().max()
    return not bool((a - b).abs().max() <= allowed)


def _memory(bench: Bench) -> dict[str, object]:
    """All that a model could remember a call by: buffers, and numbers and tensors among its modules' attributes."""
    found: dict[str, object] = {name: t.detach().clone() for name, t in bench.model.named_buffers()}
    for path, module in bench.model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, int | float) and name != "training":
                found[f"{path}.{name}"] = value
            elif isinstance(value, Tensor):
                found[f"{path}.{name}"] = value.detach().clone()
    return found


def _equal(a: object, b: object) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and a == b


def apart(bench: Bench) -> None:
    """A row's answer does not depend on the rows beside it."""
    for training, mode in MODES.items():
        tokens, base = bench.answer(training, ROWS)
        row = bench.random.randrange(ROWS)
        outputs = torch.zeros_like(tokens, dtype=torch.bool)
        outputs[row] = True
        seen = bench.gradient(tokens, training, outputs)
        others = torch.arange(ROWS, device=tokens.device) != row
        if not bool(seen[others].max() <= bench.precision.gradient * seen.max()):
            raise Leak("batch_independent", f"{mode}, a row's answers have a gradient to the tokens of another row")
        if bench.precision.value is None:
            continue
        for row in (0, ROWS - 1):
            changed = tokens.clone()
            changed[row] = bench.others(tokens)[row]
            kept = torch.arange(ROWS, device=tokens.device) != row
            if _differ(base[kept], bench.logits(changed, training)[kept], bench):
                raise Leak("batch_independent", f"{mode}, a row's answers change when the tokens of another row change")


def causal_gradients(bench: Bench) -> None:
    """Outputs before a cut have no gradient to inputs behind it: all cuts in training, some in evaluation."""
    for training, mode in MODES.items() if bench.length > 1 else ():
        cuts = bench.cuts() if training else bench.cuts(SOME, 2)  # (R, K)
        tokens = bench.tokens(len(cuts))
        early = [torch.arange(bench.length, device=tokens.device) < own[:, None] for own in cuts.T]  # K times (R, T)
        for k, seen in enumerate(bench.gradients(tokens, training, early)):
            found = ~early[k] & ~(seen <= bench.precision.gradient * seen.amax(1, keepdim=True))
            if bool(found.any()):
                row, at = (int(i) for i in found.nonzero()[0])
                before, size = int(cuts[row, k]), float(seen[row, at])
                what = f"{mode}, answers before token {before} have gradient {size:.2g} to token {at}"
                raise Leak("causal", f"the model sees the future: {what} of {bench.length}")


def causal_values(bench: Bench) -> None:
    """Other tokens behind a cut move nothing before it, all of them or one alone: all cuts in evaluation, some in training."""
    for training in MODES:
        _values(bench, training)


def scored_values(bench: Bench) -> None:
    """The same in evaluation alone, of a model with all its layers; in training its gradients are asked."""
    _values(bench, False)


def _values(bench: Bench, training: bool) -> None:
    if bench.length < 2:
        return
    cuts = bench.cuts(SOME, 1) if training else bench.cuts()  # (R, K)
    tokens = bench.tokens(len(cuts))
    asked = [(own, which) for own in cuts.T for which in _behind(own, bench)]
    changed = [torch.where(which, bench.others(tokens), tokens) for _, which in asked]
    base, *answers = bench.answers_to([tokens, *changed], training)
    for (own, which), answer in zip(asked, answers, strict=True):
        early = torch.arange(bench.length, device=own.device) < own[:, None]  # (R, T)
        moved = (answer - base).abs().amax(-1) / base.abs().max()
        found = early & ~(moved <= bench.precision.value)
        if bool(found.any()):
            row, at = (int(i) for i in found.nonzero()[0])
            what = "one token" if int(which[row].sum()) == 1 else "all tokens"
            where = f"{MODES[training]}, the answer at token {at} moves by {float(moved[row, at]):.2g}"
            said = f"{where} when {what} from there on ({int(own[row])}) change"
            raise Leak("causal", f"the model sees the future: {said}")


def _behind(cuts: Tensor, bench: Bench) -> tuple[Tensor, ...]:
    """Which tokens to change, (R, T): all behind each row's cut, and one alone; of the few long rows half get the one kind."""
    places = torch.arange(bench.length, device=cuts.device)
    every = places >= cuts[:, None]
    alone = places == torch.tensor([[bench.random.randrange(int(c), bench.length)] for c in cuts], device=cuts.device)
    if bench.length <= LENGTH:
        return every, alone
    first = (torch.arange(len(cuts), device=cuts.device) % 2 == bench.random.randrange(2))[:, None]
    return (torch.where(first, every, alone),)


def documents(bench: Bench) -> None:
    """Where documents are kept apart, an answer depends on its own document alone."""
    if not bench.masked or bench.length < 3:
        return
    for training, mode in MODES.items():
        tokens = bench.tokens(ROWS)
        for row in range(ROWS):
            tokens[row, bench.random.randrange(1, bench.length)] = 0
        number = (tokens == 0).long().cumsum(1)  # (B, T)
        own = torch.stack([n == bench.random.choice(n.unique().tolist()) for n in number])
        seen = bench.gradient(tokens, training, own)
        if bool((~own & ~(seen <= bench.precision.gradient * seen.amax(1, keepdim=True))).any()):
            raise Leak("document_bounded", f"{mode}, a document's answers have a gradient to another document's tokens")
        if bench.precision.value is None:
            continue
        others = bench.others(tokens)
        others = torch.where(others == 0, tokens, others)
        changed = torch.where(own | (tokens == 0), tokens, others)
        base = bench.logits(tokens, training)
        if _differ(base[own], bench.logits(changed, training)[own], bench):
            raise Leak("document_bounded", f"{mode}, a document's answers change when another document's tokens change")


def loss(bench: Bench) -> None:
    """The loss is the cross entropy of the logits, token by token: nothing added, no target seen by another's loss."""
    for training, mode in MODES.items():
        tokens, logits = bench.answer(training, ROWS)
        targets = bench.others(tokens)
        targets[0, 0] = IGNORE
        nll = bench.ask(tokens, training, targets).nll
        want = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
        if nll is None or nll.shape != targets.shape:
            raise Leak("scores", f"{mode}, the loss is not one number for each token")
        error = float((nll.detach() - want.view_as(targets)).abs().max())
        if not error <= (bench.precision.value or 1e-4) * 10 * float(want.abs().max().clamp_min(1.0)):
            what = "an auxiliary loss in it, or a target seen, would flatter or spoil every score"
            raise Leak("scores", f"{mode}, the loss is {error:.2g} nats from the cross entropy of the logits: {what}")


AT_EVERY_PLACE: tuple[Callable[[Bench], None], ...] = (
    unchanging,
    loss,
    apart,
    causal_gradients,
    causal_values,
    documents,
)
OF_THE_WHOLE: tuple[Callable[[Bench], None], ...] = (scored_values,)
AS_IT_TRAINS: tuple[Callable[[Bench], None], ...] = (causal_gradients,)

"""Promises about training: what is the same to the last bit, what learns, in which dtype, in how many graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from zoo.core.params import Role, entries
from zoo.core.slots import IGNORE
from zoo.core.wires import noise_key
from zoo.model import Model, Out
from zoo.testing.hosts import Specimen, Subject, randomised
from zoo.testing.measure import BrokenPromise

Tensors = dict[str, Tensor]


class Trace(NamedTuple):
    """All that one training call says: losses by name, statistics, gradients by parameter (None where there is none)."""

    losses: Tensors
    stats: Tensors
    gradients: dict[str, Tensor | None]


def objective(out: Out) -> Tensor:
    """What the training loop optimises: the mean of the nats per token plus all auxiliary losses."""
    return out.nll.mean() + sum(out.losses.values())


def trace(model: Model, tokens: Tensor) -> Trace:
    """One forward and backward of tokens (B, T + 1), noise keyed as in training."""
    model.zero_grad(set_to_none=True)
    out = model(tokens[:, :-1], tokens[:, 1:], noise=noise_key(0, 1))
    objective(out).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return Trace({"nll": out.nll.detach()} | {k: v.detach() for k, v in out.losses.items()}, out.stats, gradients)


def _same(promise: str, subject: Specimen, a: Trace, b: Trace, when: str) -> None:
    """Raise BrokenPromise where two traces are not bit-identical."""
    for what, left, right in zip(Trace._fields, a, b, strict=True):
        if left.keys() != right.keys():
            raise BrokenPromise(promise, subject, f"{when}: {what} are {sorted(left)} and {sorted(right)}")
        for name, x in left.items():
            y = right[name]
            if (x is None) != (y is None) or (x is not None and not torch.equal(x, y)):
                raise BrokenPromise(promise, subject, f"{when}: {what} of {name} are not the same to the last bit")


def recomputes(subject: Specimen, n_tokens: int) -> None:
    """Keeping only each layer's input and computing it again in the backward changes no bit of loss, stats, gradients."""
    tokens = subject.tokens(2, n_tokens + 1)
    model = subject.fresh(torch.float32)
    kept = trace(model, tokens)
    model.recompute = True
    _same("recomputes", subject, kept, trace(model, tokens), f"recomputed, T = {n_tokens}")


def deterministic(subject: Specimen, n_tokens: int) -> None:
    """Twice the same call, twice the same bits; evaluation draws no noise; the global random state is left alone."""
    tokens, before = subject.tokens(2, n_tokens + 1), torch.get_rng_state()
    model = subject.fresh(torch.float32)
    _same("deterministic", subject, trace(model, tokens), trace(model, tokens), f"trained on twice, T = {n_tokens}")
    model.eval()
    with torch.no_grad():
        first, second = model(tokens).logits, model(tokens, noise=noise_key(0, 1)).logits
    if not torch.equal(first, second):
        what = f"two evaluations of the same {n_tokens + 1} tokens, one offered noise, are not the same to the last bit"
        raise BrokenPromise("deterministic", subject, what)
    if not torch.equal(before, torch.get_rng_state()):
        raise BrokenPromise("deterministic", subject, "it draws from torch's global generator; draw from bus.noise")


def keeps_dtype(subject: Specimen, n_tokens: int) -> None:
    """Every stage hands on the stream's shape and dtype (fp64, fp32, bf16), at length 1 too; logits are at least fp32."""
    for parameters, stream in ((torch.float64, None), (torch.float32, None), (torch.float32, torch.bfloat16)):
        wanted = stream or parameters
        for n in (1, n_tokens):
            model, seen = subject.model(parameters, stream), []
            hooks = [
                s.register_forward_hook(lambda _, args, out, seen=seen: seen.append((args[0], out[0])))
                for s in model.stages
            ]
            try:
                with torch.no_grad():
                    logits = model(subject.tokens(2, n)).logits
            finally:
                for hook in hooks:
                    hook.remove()
            _check_stream(subject, seen, logits, wanted, n)


def _check_stream(
    subject: Specimen, seen: list[tuple[Tensor, Tensor]], logits: Tensor, dtype: torch.dtype, n_tokens: int
) -> None:
    for before, after in seen:
        if after.dtype != dtype or after.shape != before.shape:
            what = f"a stage made {before.dtype} {tuple(before.shape)} into {after.dtype} {tuple(after.shape)}"
            raise BrokenPromise("keeps_dtype", subject, f"{what}; the stream is {dtype}")
    wide = torch.promote_types(dtype, torch.float32)
    if logits.dtype != wide or logits.shape != (2, n_tokens, subject.config.vocab_size):
        raise BrokenPromise("keeps_dtype", subject, f"logits are {logits.dtype} {tuple(logits.shape)}; want {wide}")
    if not bool(logits.isfinite().all()):
        raise BrokenPromise("keeps_dtype", subject, f"logits of {n_tokens} tokens in {dtype} are not finite")


def scores(subject: Specimen, n_tokens: int) -> None:
    """The loss is the cross entropy of the logits in nats, token by token; a target of IGNORE costs nothing."""
    model, tokens = subject.model(), subject.tokens(2, n_tokens + 1)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[0, 0] = IGNORE
    with torch.no_grad():
        nll, logits = model(inputs, targets).nll, model(inputs).logits
    want = F.nll_loss(logits.log_softmax(-1).transpose(1, 2), targets, reduction="none", ignore_index=IGNORE)
    error = float((nll - want).abs().max()) if nll.shape == want.shape else torch.inf
    if not error <= 1e-9:
        raise BrokenPromise("scores", subject, f"nll is {error:.2g} nats away from the cross entropy of the logits")


def gradients(subject: Specimen, n_tokens: int) -> None:
    """Every parameter gets a gradient, and a non-zero one given enough tokens; every expert of a stack its own.

    What gets none is tried again with more tokens and other parameters, in case no token chose that expert.
    """
    model, missing = subject.fresh(), set()
    for attempt in range(6):
        idle = _unmoved(model, trace(model, subject.tokens(8 if attempt == 0 else 64, max(8, n_tokens) + 1)))
        missing = idle if attempt == 0 else missing & idle
        if not missing:
            return
        randomised(model, seed=subject.seed + 1 + attempt)
    raise BrokenPromise("gradients", subject, f"no gradient, or one of zero: {', '.join(sorted(missing))}")


def _unmoved(model: Model, said: Trace) -> set[str]:
    """Parameters, and experts of stacked ones, without a gradient or with one of zero."""
    names = set()
    for entry in entries(model):
        gradient = said.gradients[entry.name]
        if gradient is None or not bool(gradient.any()):
            names.add(entry.name)
        elif entry.role is Role.MATRIX and gradient.ndim > 2:
            names |= {f"{entry.name}[{i}]" for i, one in enumerate(gradient) if not bool(one.any())}
    return names


def compiles(subject: Subject, n_tokens: int) -> None:
    """At most one graph per distinct layer structure: two when all layers are alike (the first may offer a value)."""
    alike = Subject(subject.part, subject.knobs, subject.place, replace(subject.site, n_layers=4), subject.seed)
    count_graphs(alike, n_tokens)


def count_graphs(subject: Specimen, n_tokens: int) -> int:
    """Compile ``subject``'s layers, train one step, compare with the same in eager mode, and return the graphs made."""
    model, tokens = subject.fresh(torch.float32), subject.tokens(2, n_tokens + 1)
    eager = trace(model, tokens)
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    model.compile_stages(backend=backend)
    try:
        compiled = trace(model, tokens)
    finally:
        torch._dynamo.reset()
    allowed = 2 + bool(subject.config.stem)
    if backend.frame_count > allowed:
        what = (
            f"{subject.config.n_layers} layers of one structure compile to {backend.frame_count} graphs, not {allowed}"
        )
        raise BrokenPromise("compiles", subject, what)
    error = float((compiled.losses["nll"] - eager.losses["nll"]).abs().max())
    if not error <= 1e-4:
        raise BrokenPromise("compiles", subject, f"compiled, a token's loss is {error:.2g} nats away from eager mode's")
    return backend.frame_count

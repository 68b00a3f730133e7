"""The contract that every block keeps, for the project's own blocks and for anybody's.

``zoo.testing.check(MyAttention)`` asks every promise of a kind, in every host that accepts it, as scikit-learn's
``check_estimator`` does. A kind that declares ``breaks = {promise: why}`` must break those promises and no other.
Strategies for hypothesis are in ``zoo.testing.strategies``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from zoo.core.part import ConfigError, Part
from zoo.core.slots import Site
from zoo.model import ModelConfig
from zoo.testing import statements, training, windows
from zoo.testing.hosts import SITE, Specimen, Subject, all_kinds, find, label, places, randomised, slots, subjects
from zoo.testing.measure import BrokenPromise

__all__ = [
    "OF_MODELS",
    "PROMISES",
    "BrokenPromise",
    "Specimen",
    "Subject",
    "all_kinds",
    "check",
    "check_model",
    "check_subject",
    "find",
    "label",
    "places",
    "randomised",
    "slots",
    "subjects",
]

Promise = Callable[[Any, int], None]  # of a Specimen, or of a Subject, and a number of tokens

PROMISES: dict[str, Promise] = {
    promise.__name__: promise
    for promise in (
        windows.causal,
        windows.prefix_consistent,
        windows.batch_independent,
        windows.padding_independent,
        windows.document_bounded,
        windows.decodes,
        training.recomputes,
        training.deterministic,
        training.keeps_dtype,
        training.scores,
        training.gradients,
        training.compiles,
        statements.round_trips,
        statements.roles,
        statements.costs,
        statements.sourced,
    )
}
# These compare windows of different lengths, so they mean nothing where forward(x[:t]) is not forward(x)[:t].
REST_ON_PREFIXES = ("padding_independent", "decodes")
OF_MODELS = tuple(name for name in PROMISES if name not in ("roles", "compiles", "sourced"))
DEPEND_ON_LENGTH = tuple(name for name in PROMISES if name not in ("roles", "compiles", "costs", "sourced"))
N_TOKENS = 9
LONG = 40  # tokens with which ``causal`` is asked again, for what looks ahead within chunks or from far away


def check(
    part: type[Part] | str,
    knobs: Mapping[str, Any] | None = None,
    promises: Iterable[str] = tuple(PROMISES),
    site: Site = SITE,
    n_tokens: int = N_TOKENS,
) -> None:
    """Ask every promise of the contract of ``part``, in every host that accepts it.

    Args:
        part: a kind's class, its name ("gqa"), or slot and name where the name is not unique ("position.none").
        knobs: its knobs; None: its defaults.
        promises: which promises; all of them take a few seconds per host, most of it ``compiles``.
        site: width, layers, vocabulary and context of the small model around it.
        n_tokens: T of the rows it is asked with; ``causal`` is also asked with ``LONG`` tokens.

    Raises:
        BrokenPromise: which promise, the kind with its knobs, where it stood, and the smallest number of tokens that
            shows the fault; also where a kind declares a breach that it does not commit.
        ConfigError: no host accepts the kind with these knobs.
        LookupError: no such kind or promise.
    """
    part = find(part) if isinstance(part, str) else part
    promises = tuple(promises)
    if unknown := [name for name in (*promises, *part.breaks) if name not in PROMISES]:
        raise LookupError(f"no promise is called {unknown[0]!r}; there are: {', '.join(PROMISES)}")
    accepted, refused = subjects(part, knobs, site)
    if not accepted:
        raise ConfigError(f"no host accepts {label(part)}: " + "; ".join(f"{k}: {v}" for k, v in refused.items()))
    for subject in accepted:
        check_subject(subject, promises, n_tokens)


def check_model(config: ModelConfig, promises: Iterable[str] = OF_MODELS, n_tokens: int = N_TOKENS) -> None:
    """Ask a whole model, e.g. a recipe's, what can be asked of one; raises as ``check`` does. Choose a small one."""
    check_subject(Specimen(config), promises, n_tokens)


def check_subject(subject: Specimen, promises: Iterable[str] = tuple(PROMISES), n_tokens: int = N_TOKENS) -> None:
    """Ask ``promises`` of one kind at one place; raises as ``check`` does.

    What another kind of the model declares as broken is not asked.
    """
    excused = subject.excused
    for name in promises:
        if name in subject.breaks:
            _must_break(name, subject, n_tokens)
        elif not (name in excused or ("prefix_consistent" in excused and name in REST_ON_PREFIXES)):
            _must_keep(name, subject, n_tokens)


def _must_keep(name: str, subject: Specimen, n_tokens: int) -> None:
    fault = _fault(name, subject, n_tokens)
    if fault is None and name == "causal" and n_tokens < LONG:
        fault = _fault(name, subject, LONG)
    if fault is None:
        return
    if name not in DEPEND_ON_LENGTH:
        raise fault
    smaller = (_fault(name, subject, n) for n in range(2, n_tokens))
    raise next((f for f in smaller if f is not None), fault)


def _must_break(name: str, subject: Specimen, n_tokens: int) -> None:
    if _fault(name, subject, n_tokens) is None:
        why = subject.breaks[name]
        raise BrokenPromise(name, subject, f"declared as broken ({why}), but it is kept; remove the declaration")


def _fault(name: str, subject: Specimen, n_tokens: int) -> BrokenPromise | None:
    """How ``subject`` breaks the promise, or None; an error of the block's own counts as breaking it."""
    try:
        PROMISES[name](subject, n_tokens)
    except BrokenPromise as fault:
        return fault
    except Exception as error:
        fault = BrokenPromise(name, subject, f"T = {n_tokens} raises {type(error).__name__}: {error}")
        fault.__cause__ = error
        return fault
    return None

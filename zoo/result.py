"""What training tells: progress while it runs, and the Result in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.core.part import Knobs, PartConfig
from zoo.recipe import Recipe
from zoo.resolve import all_parts
from zoo.scoring.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor


class Progress(NamedTuple):
    """What a watcher is told at every logged step."""

    step: int
    total: int  # with a budget in seconds: the present estimate
    loss: float  # mean nats per token since the last report
    lr: float
    tokens: int
    tokens_per_second: float
    elapsed: float  # seconds
    memory: int  # bytes, peak so far
    valid_bpb: float | None  # bits per byte on the part of the validation text that is scored during training
    scoring: str | None = None  # what is being scored and how far that is, once training is over


class Scored(Knobs):
    """What a further scorer says of the trained model, beside the main one. Test-time figures never mix with plain ones."""

    bits_per_byte: float
    nats_per_token: float
    code_length: bool = True  # False: no code has this length, and nothing may be ranked by it
    seconds: float = 0.0


def _nothing(*_: str) -> None:
    pass


class Signals(NamedTuple):
    """What a run tells beside its progress; by itself nobody listens."""

    say: Callable[[str], None] = _nothing  # a line for people, e.g. that it goes on from a checkpoint
    alive: Callable[[], None] = _nothing  # before every batch, trained or scored
    stop: Callable[[], bool] = lambda: (
        False
    )  # asked after every step: whether to keep the run as it is and raise Stopped


class Result(Knobs):
    """What one trial came to. Losses are nats per token; ``reason`` says why a trial is not ``done``."""

    status: str
    reason: str = ""
    name: str
    variant: str
    seed: int
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of training, evaluation not counted
    tokens_per_second: float = 0.0
    initial_loss: float | None = None  # of the first batch, before any update
    early_loss: float | None = None  # the least of the first ten steps
    train_loss: float | None = None  # mean over the last tenth of the steps
    valid_loss: float | None = None
    bits_per_byte: float | None = None
    artifact_bytes: int | None = None  # of the file that the recipe's codec makes of the scored weights, code left out
    valid_tokens: int = 0
    valid_bytes: int = 0
    scores: dict[str, Scored] = {}  # by the scorer's label, of those in [evaluate] also
    parameters: int = 0
    active_parameters: int = 0
    flops_per_token: float = 0.0
    peak_memory: int = 0
    wall: float = 0.0  # seconds from being taken up to being stored, the last time: probes, training, scoring
    plan: Plan | None = None  # how it was scored; scores of different plans are not compared
    facts: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    guards: str = ""  # "passed"; "off": trained without them; "" before there were any
    flags: tuple[str, ...] = ()  # why the result may be too good to be true
    address: str = ""
    micro_batch: int = 0  # rows of a micro-batch in the end: fewer than the recipe's where memory ran out
    compiled: bool | None = None  # None: not asked for; False: asked for, but at least a part ran without


Watch = Callable[[Progress], None]


def understood(table: Mapping[str, Any]) -> Result:
    """A stored result; what another version of the zoo knew and this one does not is left out.

    Raises:
        ValidationError: a table that is no result.
    """
    return Result.model_validate({name: value for name, value in table.items() if name in Result.model_fields})


def loads(stats: Mapping[str, Tensor]) -> dict[str, dict[str, list[int]]]:
    """``{"load": {"layer.3.ffn": [tokens of each expert]}}`` of one step's stats; nothing where there are no experts.

    Where a mixture and its balance both report, the mixture's own figure is the one that is kept.
    """
    owners = sorted(name.removesuffix("/load") for name in stats if name.endswith("/load"))
    own = [name for name in owners if not any(name.startswith(f"{other}.") for other in owners)]
    return {"load": {name: [int(n) for n in stats[f"{name}/load"].tolist()] for name in own}} if own else {}


def notes(recipe: Recipe) -> tuple[str, ...]:
    """What a reader has to know of the chosen kinds, each once: their own notes, and promises they break."""
    found: dict[str, None] = {}
    for layer in recipe.model.layers():
        found |= _notes_in(layer)
    for name in type(recipe.model).model_fields:
        if name not in ("layer", "where"):  # said by the layers that came of them
            found |= _notes_in(getattr(recipe.model, name))
    for name in type(recipe).model_fields:
        if name != "model":
            found |= _notes_in(getattr(recipe, name))
    for _, part in all_parts(recipe):
        found |= dict.fromkeys(f"{part.kind} breaks {promise}: {why}" for promise, why in part.breaks.items())
    return tuple(found)


def _notes_in(value: Any) -> dict[str, None]:
    """The notes of a table and of all tables in it, in order."""
    found: dict[str, None] = {}
    if isinstance(value, PartConfig):
        found |= dict.fromkeys(value.notes())
    if isinstance(value, Knobs):
        value = [getattr(value, name) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        value = list(value.values())
    for item in value if isinstance(value, list | tuple) else ():
        found |= _notes_in(item)
    return found

"""Values worth trying for every knob, read off the Configs, and random models made of them.

A knob whose type does not tell its good values names some in its field: ``Field(default, examples=[...])``.
"""

from __future__ import annotations

import random
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any, Literal

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from zoo.core.part import ConfigError, Knobs, Part, PartConfig
from zoo.core.slots import Site
from zoo.core.tree import Holds, structure
from zoo.model import Model, ModelConfig
from zoo.testing.hosts import SITE, Place, Subject, label, places

Table = dict[str, Any]
INTEGERS = (0, 1, 2, 4, 16)
NUMBERS = (0.0, 0.1, 0.5, 1.0, 2.0)
HEADS = (
    (4, 4, None),
    (4, 2, None),
    (2, 1, 8),
    (8, 2, 4),
    (4, 4, 8),
)  # n_heads, n_kv_heads, head_dim, one set per model


def pool(config: type[Knobs], knob: str) -> list[Any]:
    """Values to try for one knob: all of a closed set, a few of an open one; the default is always among them."""
    info, held = config.model_fields[knob], structure(config).get(knob)
    default = info.get_default(call_default_factory=True)
    if held is not None:
        slot = getattr(held.config, "part", None)
        if slot is None or held.holds is Holds.NAMED:
            return [default]
        parts = [{"kind": kind} for kind in slot.all_kinds()]
        one_or_more = [(), *((part,) for part in parts), tuple(parts[:2])]
        return list(parts if held.holds is Holds.ONE else one_or_more)
    found = list(info.examples or _values(info.annotation, tuple(info.metadata)))
    return found if default in found else [default, *found]


def _values(annotation: Any, limits: tuple[Any, ...]) -> Iterator[Any]:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        own = [m for item in args[1:] for m in (item.metadata if isinstance(item, FieldInfo) else (item,))]
        yield from _values(args[0], (*limits, *own))
    elif origin is typing.Literal:
        yield from args
    elif origin in (typing.Union, types.UnionType):
        for arg in args:
            yield from _values(arg, limits)
    elif annotation is type(None):
        yield None
    elif isinstance(annotation, type) and issubclass(annotation, Enum):
        yield from annotation
    elif annotation is bool:
        yield from (False, True)
    elif annotation in (int, float):
        edges = [getattr(m, name) for m in limits for name in ("ge", "le") if getattr(m, name, None) is not None]
        choices = (*edges, *(INTEGERS if annotation is int else NUMBERS))
        yield from dict.fromkeys(annotation(v) for v in choices if all(_within(v, m) for m in limits))


def _within(value: float, limit: Any) -> bool:
    tests = {"gt": value.__gt__, "ge": value.__ge__, "lt": value.__lt__, "le": value.__le__}
    return all(test(edge) is True for name, test in tests.items() if (edge := getattr(limit, name, None)) is not None)


def random_knobs(config: type[Knobs], rng: random.Random, depth: int = 3, given: Mapping[str, Any] = {}) -> Table:
    """A random table for a kind's Config: most of the plain knobs as they are by default, every slot filled anew.

    Args:
        config: the kind's Config.
        rng: the source of chance.
        depth: how many levels of parts inside parts are drawn; below that stand defaults.
        given: values for knobs of these names wherever they occur.
    """
    table: Table = {}
    inner = structure(config)
    for name in config.model_fields:
        if name in given:
            table[name] = given[name]
        elif name in inner:
            if depth > 0 and inner[name].holds is not Holds.NAMED:
                table[name] = _random_parts(inner[name].config.part, inner[name].holds, rng, depth - 1, given)
        elif rng.random() < 0.3:
            table[name] = rng.choice(pool(config, name))
    return {name: value for name, value in table.items() if value is not None}


def _random_parts(slot: type[Part], holds: Holds, rng: random.Random, depth: int, given: Mapping[str, Any]) -> Any:
    if holds is Holds.ONE:
        return random_part(rng.choice(list(slot.all_kinds().values())), rng, depth, given)
    kinds = list(slot.all_kinds().values())
    kinds = rng.sample(kinds, min(len(kinds), rng.choice((0, 1, 1, 2))))
    return [random_part(kind, rng, depth, given) for kind in kinds]


def random_part(part: type[Part], rng: random.Random, depth: int = 3, given: Mapping[str, Any] = {}) -> Table:
    """A random table for one kind, its name included."""
    return {"kind": part.kind, **random_knobs(part.Config, rng, depth, given)}


def random_model(
    rng: random.Random,
    with_kinds: Iterable[type[Part]] = (),
    site: Site = SITE,
    layers: Literal["different", "alike"] = "different",
) -> ModelConfig | None:
    """A random model with the given kinds at random places, or None where its parts do not fit together: draw again."""
    given = dict(zip(("n_heads", "n_kv_heads", "head_dim"), rng.choice(HEADS), strict=True))
    slots = structure(ModelConfig)
    outer = {n: _random_parts(slots[n].config.part, slots[n].holds, rng, 2, given) for n in slots if n != "layer"}
    n_tables = site.n_layers if layers == "different" else 1
    tables = [_random_parts(slots["layer"].config.part, Holds.ONE, rng, 3, given) for _ in range(n_tables)]
    for i, part in enumerate(with_kinds):
        place = rng.choice(places(part))
        root = {"layer": tables[i % n_tables]} if place[0].knob == "layer" else outer
        put(root, place, random_part(part, rng, 1, given))
        if place[0].knob == "layer":
            tables[i % n_tables] = root["layer"]
    where = [{"layers": str(i), **table} for i, table in enumerate(tables) if i]
    sizes = {"dim": site.dim, "n_layers": site.n_layers, "vocab_size": site.vocab_size, "context": site.context}
    return valid({**sizes, **outer, "layer": tables[0], "where": where})


def put(root: Table, place: Place, part: Table) -> None:
    """Set ``part`` at ``place`` of a model's table, changing the kinds on the way to the hosts that it names."""
    node = root
    for step, below in zip(place, (*place[1:], None), strict=True):
        value: Any = part if below is None else _table(node.get(step.knob), step.holds, below.host.part)
        node[step.knob] = [value] if step.holds is Holds.MANY else value
        node = value


def _table(present: Any, holds: Holds, host: type[Part]) -> Table:
    present = present[0] if holds is Holds.MANY and present else present
    return present if isinstance(present, dict) and present.get("kind") == host.kind else {"kind": host.kind}


def valid(table: Table) -> ModelConfig | None:
    """The model that ``table`` says, or None where its parts do not fit together (building one calls it)."""
    try:
        config = ModelConfig.model_validate(table)
        Model(config, seed=None)
    except (ConfigError, ValidationError):
        return None
    return config


def kinds_in(config: Any) -> set[str]:
    """Every kind in a tree of Configs, as ``slot.kind``; of a model, in all its layers."""
    if isinstance(config, tuple | list):
        return set().union(*(kinds_in(item) for item in config))
    if not isinstance(config, Knobs):
        return set()
    layers = kinds_in(config.layers()) if isinstance(config, ModelConfig) else set()
    own = {label(config.part)} if isinstance(config, PartConfig) and config.part.kind is not None else set()
    skip = {"layer", "where"} if isinstance(config, ModelConfig) else set()
    return (
        own | layers | set().union(*(kinds_in(getattr(config, n)) for n in type(config).model_fields if n not in skip))
    )


def covering(part: type[Part], seed: int = 0, tries: int = 24) -> list[Subject]:
    """Subjects at random places and sites in which every value of every plain knob's pool occurs, where it can at all.

    What fills the slots is drawn too, but it is up to its own kind to be examined in every host.
    """
    rng = random.Random(f"{label(part)}/{seed}")
    pools = {name: pool(part.Config, name) for name in part.Config.model_fields}
    plain = pools.keys() - structure(part.Config).keys()
    missing = [(name, i) for name, values in pools.items() if name in plain for i in range(len(values))]
    found: list[Subject] = []
    failed, most = 0, len(missing)  # of the values that are missing, how many at once: fewer after what cannot be
    while missing and failed < tries:
        chosen = {name: rng.randrange(len(values)) for name, values in pools.items() if rng.random() < 0.5}
        chosen |= dict(rng.sample(missing, min(most, len(missing))))
        knobs = {name: pools[name][i] for name, i in chosen.items()}
        site = replace(SITE, dim=rng.choice((16, 32)), n_layers=rng.choice((1, 2, 3)), context=rng.choice((8, 32)))
        try:
            found.append(Subject(part, knobs, rng.choice(places(part)), site))
        except (ConfigError, ValidationError):
            failed, most = failed + 1, (most + 1) // 2
            continue
        failed, most = 0, 2 * most
        missing = [item for item in missing if chosen.get(item[0]) != item[1]]
    return found

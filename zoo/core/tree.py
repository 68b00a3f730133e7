"""Config trees as plain tables: what fills which knob, and how one table is laid over another.

Merging is where ablations get confounded. Two rules keep them clean: tables of the same kind merge deeply, and on a
swap of kind exactly those knobs survive that both kinds inherit from a common Config (for attentions: n_heads,
head_dim, position, value, output; between two grouped attentions also n_kv_heads and QK-norm).
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from zoo.core.part import ConfigError, Knobs, Part, PartConfig, nearest
from zoo.core.tables import Table, by_index, indexed, patched_list, tabulate

Kinds = Mapping[str, Mapping[str, Table]]  # slot -> kind -> knobs: what a bare name means in this recipe
NO_KINDS: Kinds = types.MappingProxyType({})


class Holds(Enum):
    """How many parts a knob holds."""

    ONE = "one"
    MANY = "many"
    NAMED = "named"


class Field(NamedTuple):
    """A knob that is not a plain value: the class of its table, and how many of them it holds."""

    config: type[Knobs]
    holds: Holds


def structure(config: type[Knobs]) -> dict[str, Field]:
    """The knobs of ``config`` that are themselves tables: slots, sections, and collections of either."""
    found = {name: _field(info.annotation) for name, info in config.model_fields.items()}
    return {name: field for name, field in found.items() if field is not None}


def _field(annotation: Any) -> Field | None:
    if isinstance(annotation, type) and issubclass(annotation, Knobs):
        return Field(annotation, Holds.ONE)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (tuple, list) and args:
        inner = _field(args[0])
        return inner and Field(inner.config, Holds.MANY)
    if origin is dict and len(args) == 2:
        inner = _field(args[1])
        return inner and Field(inner.config, Holds.NAMED)
    if origin in (typing.Union, types.UnionType):
        return next((field for arg in args if (field := _field(arg)) is not None), None)
    return None


def is_slot(config: type[Knobs]) -> bool:
    """Whether a knob of this class is filled by naming a kind."""
    return issubclass(config, PartConfig) and config.part.kind is None


def merge(config: type[Knobs], base: Any, patch: Any, kinds: Kinds = NO_KINDS) -> Any:
    """``patch`` laid over ``base`` (None: over nothing), every bare kind name expanded to its table.

    Args:
        config: the class of the table: a section, a slot's Config, or a kind's Config.
        base: a table that has been through ``merge`` before, or None.
        patch: a table, or the bare name of a kind where ``config`` belongs to a slot. Instead of a list it may be a
            table whose keys are ``[0]``, ``[1]`` ...: patches of single items.
        kinds: the recipe's meaning of bare names.

    Raises:
        ConfigError: a kind that does not exist, or something that is not a table.
    """
    if isinstance(patch, Knobs):
        patch = tabulate(patch)
    if not is_slot(config):
        return _merge_knobs(config, base or {}, patch, kinds)
    part = config.part
    patch = _as_table(part, patch)
    kind = patch.get("kind", (base or {}).get("kind"))
    if kind is None:
        raise ConfigError(f"needs a kind, {nearest('', part.all_kinds())}", value=patch)
    target = _kind_class(part, kind)
    if base is None:
        start = _meaning(target, kinds)
    elif base["kind"] == kind:
        start = base
    else:
        kept = shared_knobs(_kind_class(part, base["kind"]), target)
        survivors = {name: value for name, value in base.items() if name in kept}
        start = _merge_knobs(target.Config, survivors, _meaning(target, kinds), kinds)
    return {"kind": kind, **_merge_knobs(target.Config, _without_kind(start), _without_kind(patch), kinds)}


def expand(config: type[Knobs], patch: Any, kinds: Kinds, base: Any = None) -> Any:
    """``patch`` with the recipe's meaning of bare names written out, for a patch that is laid over its base later.

    Where ``base`` is known and already of the kind that the patch names, the name changes nothing and is not expanded.
    """
    base = base if isinstance(base, Mapping) else {}
    if is_slot(config):
        patch = _as_table(config.part, patch)
        if "kind" in patch and patch["kind"] != base.get("kind"):
            target = _kind_class(config.part, patch["kind"])
            meaning = _meaning(target, kinds)
            return {"kind": patch["kind"], **_merge_knobs(target.Config, meaning, _without_kind(patch), kinds)}
        if "kind" in base:
            config = _kind_class(config.part, base["kind"]).Config
    fields, written = structure(config), dict(patch)
    for name, value in patch.items():
        if name in fields and not _is_none(config, name, value):
            try:
                written[name] = _expand_field(fields[name], value, kinds, base.get(name))
            except ConfigError as fault:
                raise fault.under(name) from None
    return written


def _expand_field(field: Field, value: Any, kinds: Kinds, base: Any) -> Any:
    if field.holds is Holds.ONE:
        return expand(field.config, value, kinds, base)
    if field.holds is Holds.MANY and isinstance(value, list | tuple):
        return _merge_field(field, None, value, kinds)
    return value


def complete(config: type[Knobs], table: Table, kinds: Kinds) -> Table:
    """``table`` with the recipe's meaning of a kind filled in also where that kind stands only because it is the default."""
    if is_slot(config):
        config = _kind_class(config.part, table["kind"]).Config
    filled = dict(table)
    for name, field in structure(config).items():
        value = table.get(name)
        if value is None and config.model_fields[name].default is None:
            continue  # an empty slot, which nothing has filled
        if field.holds is Holds.ONE and not _is_none(config, name, value):
            value = merge(field.config, None, _default(config, name), kinds) if value is None else value
            if value is not None:
                filled[name] = complete(field.config, value, kinds)
        elif field.holds is Holds.MANY and value is not None:
            filled[name] = [complete(field.config, item, kinds) for item in value]
        elif value is not None and field.holds is Holds.NAMED:
            filled[name] = {key: complete(field.config, item, kinds) for key, item in value.items()}
    return filled


def _default(config: type[Knobs], name: str) -> Table | None:
    """The table that stands for a knob which nobody has stated: its default kind and what that default states."""
    value = config.model_fields[name].get_default(call_default_factory=True)
    if not isinstance(value, Knobs):
        return None
    stated = {knob: tabulate(getattr(value, knob)) for knob in value.model_fields_set}
    return {"kind": value.part.kind, **stated} if isinstance(value, PartConfig) else stated


def _as_table(part: type[Part], patch: Any) -> Mapping[str, Any]:
    patch = {"kind": patch} if isinstance(patch, str) else patch
    if not isinstance(patch, Mapping):
        raise ConfigError(f"must name a kind of {part.slot}: a word, or a table with its kind", value=patch)
    return patch


def _without_kind(table: Mapping[str, Any]) -> Table:
    return {name: value for name, value in table.items() if name != "kind"}


def _is_none(config: type[Knobs], name: str, value: Any) -> bool:
    return value == "none" and config.takes_none(name)


def shared_knobs(old: type[Part], new: type[Part]) -> set[str]:
    """The knobs that survive a swap of ``old`` for ``new``: those of their nearest common Config."""
    common = next(c for c in old.Config.__mro__ if issubclass(new.Config, c))
    return set(common.model_fields) if issubclass(common, Knobs) else set()


def _kind_class(part: type[Part], kind: Any) -> type[Part]:
    try:
        return part.kind_named(kind)
    except ConfigError as fault:
        raise ConfigError(fault.message, "kind", kind) from None


def _meaning(target: type[Part], kinds: Kinds) -> Table:
    """What the bare name of ``target`` means; names inside have their own meaning, except its own (no endless nesting)."""
    slot, kind = target.slot or "", target.kind or ""
    own = kinds.get(slot, {})
    if kind not in own:
        return {}
    others = {**kinds, slot: {name: table for name, table in own.items() if name != kind}}
    return _merge_knobs(target.Config, {}, own[kind], others)


def _merge_knobs(config: type[Knobs], base: Table, patch: Any, kinds: Kinds) -> Table:
    if not isinstance(patch, Mapping):
        raise ConfigError("must be a table", value=patch)
    fields, merged = structure(config), dict(base)
    for name, value in patch.items():
        if name not in config.model_fields:
            raise ConfigError(f"unknown key, {nearest(name, config.model_fields)}", name, value)
        try:
            if name not in fields or _is_none(config, name, value):
                merged[name] = patched_list(base.get(name), value) if by_index(value) else value
                continue
            under = base.get(name)
            if (under is None or under == "none") and isinstance(value, Mapping) and "kind" not in value:
                under = _start(config, name, fields[name], kinds)
            merged[name] = _merge_field(fields[name], under, value, kinds)
        except ConfigError as fault:
            raise fault.under(name) from None
    return merged


def _start(config: type[Knobs], name: str, field: Field, kinds: Kinds) -> Table | None:
    """What a table without a kind is laid over where nothing has been stated: the knob's default."""
    if field.holds is not Holds.ONE or not is_slot(field.config):
        return None
    default = _default(config, name)
    return default and merge(field.config, None, default, kinds)


def _merge_field(field: Field, base: Any, value: Any, kinds: Kinds) -> Any:
    if field.holds is Holds.ONE:
        return merge(field.config, base, value, kinds)
    if field.holds is Holds.MANY:
        if by_index(value):
            items = list(base or [])
            for index, item in indexed(value, len(items)):
                items[index] = _at(f"[{index}]", field.config, items[index], item, kinds)
            return items
        if not isinstance(value, list | tuple):
            raise ConfigError("must be a list", value=value)
        return [_at(f"[{i}]", field.config, None, item, kinds) for i, item in enumerate(value)]
    if not isinstance(value, Mapping):
        raise ConfigError("must be a table", value=value)
    base = base or {}
    return {**base, **{key: _at(key, field.config, base.get(key), item, kinds) for key, item in value.items()}}


def _at(path: str, config: type[Knobs], base: Any, patch: Any, kinds: Kinds) -> Any:
    try:
        return merge(config, base, patch, kinds)
    except ConfigError as fault:
        raise fault.under(path) from None

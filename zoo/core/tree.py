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

Table = dict[str, Any]
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
        patch: a table, or the bare name of a kind where ``config`` belongs to a slot.
        kinds: the recipe's meaning of bare names.

    Raises:
        ConfigError: a kind that does not exist, or something that is not a table.
    """
    if isinstance(patch, Knobs):
        patch = patch.model_dump(exclude_none=True)
    if not is_slot(config):
        return _merge_knobs(config, base or {}, patch, kinds)
    part = config.part
    patch = {"kind": patch} if isinstance(patch, str) else patch
    if not isinstance(patch, Mapping):
        raise ConfigError(f"must be the name of a {part.slot} or a table with its kind", value=patch)
    kind = patch.get("kind", (base or {}).get("kind"))
    if kind is None:
        raise ConfigError(f"needs a kind, {nearest('', part.all_kinds())}", value=patch)
    target = _kind_class(part, kind)
    default = _expand(target, kinds)
    if base is None:
        start = default
    elif base["kind"] == kind:
        start = base
    else:
        kept = shared_knobs(_kind_class(part, base["kind"]), target)
        survivors = {name: value for name, value in base.items() if name in kept}
        start = _merge_knobs(target.Config, survivors, default, kinds)
    return {"kind": kind, **_merge_knobs(target.Config, _without_kind(start), _without_kind(patch), kinds)}


def expand(config: type[Knobs], patch: Any, kinds: Kinds) -> Any:
    """``patch`` with the recipe's meaning of bare names written out, for a patch that is laid over its base later."""
    if is_slot(config):
        patch = {"kind": patch} if isinstance(patch, str) else patch
        if not isinstance(patch, Mapping):
            raise ConfigError(f"must be the name of a {config.part.slot} or a table", value=patch)
        if "kind" not in patch:
            return patch
        target = _kind_class(config.part, patch["kind"])
        patch = {
            "kind": patch["kind"],
            **_merge_knobs(target.Config, _expand(target, kinds), _without_kind(patch), kinds),
        }
        config = target.Config
    fields, written = structure(config), dict(patch)
    for name, value in patch.items():
        if name in fields and fields[name].holds is Holds.ONE:
            try:
                written[name] = expand(fields[name].config, value, kinds)
            except ConfigError as fault:
                raise fault.under(name) from None
    return written


def _without_kind(table: Mapping[str, Any]) -> Table:
    return {name: value for name, value in table.items() if name != "kind"}


def shared_knobs(old: type[Part], new: type[Part]) -> set[str]:
    """The knobs that survive a swap of ``old`` for ``new``: those of their nearest common Config."""
    common = next(c for c in old.Config.__mro__ if issubclass(new.Config, c))
    return set(common.model_fields) if issubclass(common, Knobs) else set()


def _kind_class(part: type[Part], kind: Any) -> type[Part]:
    try:
        return part.kind_named(kind)
    except ConfigError as fault:
        raise ConfigError(fault.message, "kind", kind) from None


def _expand(target: type[Part], kinds: Kinds) -> Table:
    meant = kinds.get(target.slot or "", {}).get(target.kind or "", {})
    return _merge_knobs(target.Config, {}, meant, {})


def _merge_knobs(config: type[Knobs], base: Table, patch: Any, kinds: Kinds) -> Table:
    if not isinstance(patch, Mapping):
        raise ConfigError("must be a table", value=patch)
    fields, merged = structure(config), dict(base)
    for name, value in patch.items():
        if name not in config.model_fields and name != "kind":
            raise ConfigError(f"unknown key, {nearest(name, config.model_fields)}", name, value)
        try:
            merged[name] = _merge_field(fields[name], base.get(name), value, kinds) if name in fields else value
        except ConfigError as fault:
            raise fault.under(name) from None
    return merged


def _merge_field(field: Field, base: Any, value: Any, kinds: Kinds) -> Any:
    if field.holds is Holds.ONE:
        return merge(field.config, base, value, kinds)
    if field.holds is Holds.MANY:
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

"""From patches to a Recipe: meanings of kinds, merging, layers that differ, and complaints that name the place.

Whatever is wrong comes out as one ConfigError: where it was written, the dotted path, the value, and the nearest right name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from zoo import plugins
from zoo.core.params import Role
from zoo.core.part import ConfigError, Knobs, Part, PartConfig, faults, nearest
from zoo.core.slots import Layer
from zoo.core.tables import Table, split_path
from zoo.core.tree import Kinds, complete, expand, merge
from zoo.files import Patch
from zoo.recipe import Recipe

BUDGETS = ("steps", "tokens", "seconds")  # three spellings of one knob: stating one replaces another


def resolve(patches: Sequence[Patch]) -> Recipe:
    """Lay ``patches`` over each other, in order, and check the whole.

    Raises:
        ConfigError: anything that cannot be; the message begins with the origin of the patch at fault.
    """
    kinds = _kinds(patches)
    table: Table = {}
    for patch in patches:
        sections = {key: value for key, value in patch.table.items() if key != "kinds"}
        try:
            _check_roles(sections)
            table = merge(Recipe, _without_other_budgets(table, sections), sections, kinds)
        except ConfigError as fault:
            raise _at(patch.origin, fault) from None
    try:
        table = complete(Recipe, table, kinds)
        _expand_where(table, kinds)
        recipe = Recipe.model_validate(table)
        check_published(recipe)
    except ValidationError as error:
        fault = faults(error)[0]
        raise _at(blame(patches, fault.path), fault) from None
    except ConfigError as fault:
        raise _at(blame(patches, fault.path), fault) from None
    return recipe


def loads(text: str) -> Recipe:
    """The Recipe in a TOML text that has no parents, profiles or grid; the inverse of ``zoo.recipe.dumps``."""
    plugins.discover()
    try:
        return resolve([Patch("recipe", tomllib.loads(text))])
    except tomllib.TOMLDecodeError as fault:
        raise ConfigError(f"recipe: is no TOML: {fault}") from None


def _at(origin: str, fault: ConfigError) -> ConfigError:
    return ConfigError(f"{origin}: {fault}")


def blame(patches: Sequence[Patch], path: str) -> str:
    """The origin of the patch that speaks most exactly of ``path``; of several such the last, which had its way."""
    best, where = -1, patches[0].origin if patches else ""
    for patch in patches:
        depth, inside = 0, patch.table
        for step in split_path(path) if path else ():
            index = step.strip("[]")
            if isinstance(inside, list) and index.isdecimal() and int(index) < len(inside):
                inside = inside[int(index)]
            elif isinstance(inside, Mapping) and step in inside:
                inside = inside[step]
            else:
                break
            depth += 1
        if depth >= best:
            best, where = depth, patch.origin
    return where


def _kinds(patches: Sequence[Patch]) -> Kinds:
    """What every bare name means, from the ``kinds`` of all patches.

    Raises:
        ConfigError: an unknown slot, kind or knob.
    """
    kinds: dict[str, dict[str, Table]] = {}
    for patch in patches:
        for slot, table in _tables(patch, "kinds", patch.table.get("kinds", {})):
            if slot not in Part.slots:
                fault = ConfigError(f"no slot is called {slot!r}, {nearest(slot, Part.slots)}", f"kinds.{slot}")
                raise _at(patch.origin, fault)
            for kind, knobs in _tables(patch, f"kinds.{slot}", table):
                known = Part.slots[slot].kinds
                path = f"kinds.{slot}.{kind}"
                if kind not in known:
                    raise _at(patch.origin, ConfigError(f"no {slot} is called {kind!r}, {nearest(kind, known)}", path))
                meant = kinds.setdefault(slot, {})
                try:
                    meant[kind] = merge(known[kind].Config, meant.get(kind), knobs)
                except ConfigError as fault:
                    raise _at(patch.origin, fault.under(path)) from None
    return kinds


def _tables(patch: Patch, path: str, value: Any) -> list[tuple[str, Table]]:
    if not isinstance(value, Mapping):
        raise _at(patch.origin, ConfigError("must be a table", path, value))
    for key, inner in value.items():
        if not isinstance(inner, Mapping):
            raise _at(patch.origin, ConfigError("must be a table", f"{path}.{key}", inner))
    return list(value.items())


def _check_roles(sections: Mapping[str, Any]) -> None:
    optim = sections.get("optim")
    known = [str(role) for role in Role]
    for role in optim if isinstance(optim, Mapping) else ():
        if role not in known:
            raise ConfigError(f"no parameters have the role {role!r}, {nearest(role, known)}", f"optim.{role}")


def _without_other_budgets(table: Table, sections: Mapping[str, Any]) -> Table:
    """A budget stated later takes the place of one stated earlier, whichever way each is spelt."""
    train = sections.get("train")
    if not isinstance(train, Mapping) or not any(name in train for name in BUDGETS) or "train" not in table:
        return table
    return {**table, "train": {name: value for name, value in table["train"].items() if name not in BUDGETS}}


def _expand_where(table: Table, kinds: Kinds) -> None:
    """Write the meaning of bare names into ``model.where``, whose patches are applied when the layers are made."""
    model = table.get("model", {})
    if not isinstance(model.get("where"), list):
        return
    written = []
    for i, entry in enumerate(model["where"]):
        if not isinstance(entry, Mapping):
            raise ConfigError("must be a table", f"model.where[{i}]", entry)
        patch = {name: value for name, value in entry.items() if name != "layers"}
        try:
            expanded = expand(Layer.Config, patch, kinds, model.get("layer"))
        except ConfigError as fault:
            raise fault.under(f"model.where[{i}]") from None
        written.append({**{name: value for name, value in entry.items() if name == "layers"}, **expanded})
    table["model"] = {**model, "where": written}


def parts_of(config: Any, path: str = "") -> list[tuple[str, type[Part]]]:
    """Every part that a config tree names, with its dotted path."""
    found: list[tuple[str, type[Part]]] = []
    if isinstance(config, Knobs):
        if isinstance(config, PartConfig):
            found.append((path, config.part))
        items = [(f"{path}.{name}".strip("."), getattr(config, name)) for name in type(config).model_fields]
    elif isinstance(config, Mapping):
        items = [(f"{path}.{key}", item) for key, item in config.items()]
    elif isinstance(config, tuple | list):
        items = [(f"{path}[{i}]", item) for i, item in enumerate(config)]
    else:
        items = []
    return found + [part for where, item in items for part in parts_of(item, where)]


def all_parts(recipe: Recipe) -> list[tuple[str, type[Part]]]:
    """Every part of a recipe, those of patched layers included."""
    layers = recipe.model.layers() if recipe.model.where else ()
    return parts_of(recipe) + [part for i, layer in enumerate(layers) for part in parts_of(layer, f"model.layer.{i}")]


def check_published(recipe: Recipe) -> None:
    """What is kept to replicate a defect trains only where the recipe asks for it.

    Raises:
        ConfigError: such a kind, or unshifted targets, in a recipe without ``as_published = true``.
    """
    if recipe.train.targets != "next" and not recipe.as_published:
        why = "scores each token on itself, which is no language modelling; write as_published = true to train it"
        raise ConfigError(why, "train.targets", recipe.train.targets)
    for path, part in all_parts(recipe):
        if part.breaks and not recipe.as_published:
            promise, why = next(iter(part.breaks.items()))
            raise ConfigError(f"breaks {promise} ({why}); write as_published = true to train it", path, part.kind)

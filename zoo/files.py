"""Recipe files as people write them: parents, profiles, meanings of kinds, plug-ins, a grid.

A file becomes a Book: patches in the order in which they are laid over each other, each with the place it was written at,
so that every later complaint can name it. Order: parent < recipe < profile < ``--set`` < arm.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zoo import plugins
from zoo.core.part import ConfigError, nearest
from zoo.core.tables import Table, join_path, nested, split_path
from zoo.recipe import Recipe

FULL = "full"  # the reserved name for "no profile"
BESIDE = ("extends", "profiles", "kinds", "grid")  # what a file says beside the sections of a Recipe


class Patch(NamedTuple):
    """A table to be laid over what came before, and where it was written."""

    origin: str
    table: Table


class Book(NamedTuple):
    """What a recipe file and its parents say."""

    path: Path
    patches: tuple[Patch, ...]  # parents first; sections and ``kinds``
    profiles: dict[str, tuple[Entry, ...]]  # each may change sections, ``kinds`` and ``grid``
    grid: Patch

    @property
    def name(self) -> str:
        """What the recipe calls itself, else the file's name."""
        return str(self.patches[-1].table.get("name", self.path.stem))

    @property
    def folder(self) -> Path:
        """Where relative paths of the recipe start from."""
        return self.path.parent / str(self.patches[-1].table.get("base", "."))


def read(path: Path) -> Book:
    """Read a recipe and its parents, and register the kinds of its plug-ins.

    Raises:
        ConfigError: a file that is missing or no TOML, a circle of parents, an unknown section, a plug-in that fails.
    """
    plugins.discover()
    chain = _chain(Path(path))
    patches, profiles, grid, found = [], {}, Patch(str(path), {}), []
    for file, table in chain:
        found += _load_plugins(file, table.get("plugins", []), chain[-1][0].parent)
        for name, profile in _table(file, "profiles", table.get("profiles", {})).items():
            origin = f"{file} [profiles.{name}]"
            if name == FULL:
                raise ConfigError(f"{origin}: {FULL!r} is reserved for 'no profile'")
            profiles[name] = (*profiles.get(name, ()), *_profile(origin, profile))
        if "grid" in table:
            grid = Patch(str(file), _table(file, "grid", table["grid"]))
        sections = {key: value for key, value in table.items() if key in Recipe.model_fields or key == "kinds"}
        patches.append(Patch(str(file), {**sections, **({"plugins": list(found)} if found else {})}))
    return Book(Path(path), tuple(patches), profiles, grid)


def _chain(path: Path) -> list[tuple[Path, Table]]:
    """The files from the oldest parent to ``path`` itself."""
    chain: list[tuple[Path, Table]] = []
    seen: list[Path] = []
    file, asked_by = path, ""
    while True:
        if file.resolve() in seen:
            circle = " -> ".join(str(p) for p, _ in reversed(chain))
            raise ConfigError(f"{asked_by}: extends = {file.name!r}: goes round in a circle: {circle} -> {file}")
        seen.append(file.resolve())
        table = read_toml(file, asked_by)
        for key in table:
            if key not in Recipe.model_fields and key not in BESIDE:
                hint = nearest(key, [*Recipe.model_fields, *BESIDE])
                raise ConfigError(f"{file}: {key}: unknown section, {hint}")
        chain.insert(0, (file, table))
        if "extends" not in table:
            return chain
        if not isinstance(table["extends"], str):
            raise ConfigError(f"{file}: extends = {table['extends']!r}: must be the path of one recipe")
        asked_by, file = str(file), Path(os.path.normpath(file.parent / table["extends"]))


def read_toml(file: Path, asked_by: str = "") -> Table:
    """The table in a TOML file.

    Raises:
        ConfigError: no such file (with the nearest name in its folder), not UTF-8, or no TOML.
    """
    place = f"{asked_by}: extends: " if asked_by else ""
    if file.is_dir():
        held = sorted(path.name for path in file.glob("*.toml"))
        raise ConfigError(
            f"{place}{file}: is a folder; a recipe is a file, there are: {', '.join(held) or 'none in it'}"
        )
    if not file.exists():
        others = [p.name for p in file.parent.glob("*.toml")] if file.parent.is_dir() else []
        hint = nearest(file.name, others) if others else f"no recipes are in {file.parent}"
        raise ConfigError(f"{place}{file}: no such file, {hint}")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as fault:
        raise ConfigError(f"{place}{file}: is not UTF-8 (byte {fault.start})") from None
    except tomllib.TOMLDecodeError as fault:
        raise ConfigError(f"{place}{file}: is no TOML: {fault}") from None
    except OSError as fault:
        raise ConfigError(f"{place}{file}: cannot be read: {fault.strerror}") from None


def _table(file: Path | str, key: str, value: Any) -> Table:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{file}: {key} = {value!r}: must be a table")
    return dict(value)


def _load_plugins(file: Path, listed: Any, start: Path) -> list[str]:
    """Register them; their paths as seen from ``start``, the folder of the recipe that is run."""
    if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
        raise ConfigError(f"{file}: plugins = {listed!r}: must be a list of paths of Python files")
    seen = []
    for index, item in enumerate(listed):
        target = file.parent / item
        try:
            plugins.load(target)
        except ConfigError as fault:
            raise ConfigError(f"{file}: plugins[{index}] = {item!r}: {fault}") from None
        seen.append(Path(os.path.relpath(target.absolute(), start.absolute())).as_posix())
    return seen


class Entry(NamedTuple):
    """One change: ``path`` becomes ``value``, as a profile or ``--set`` says it."""

    origin: str
    path: str
    value: Any


def _profile(origin: str, profile: Any) -> list[Entry]:
    """One entry for each key, in the order written: dotted paths and nested tables may stand side by side."""
    if not isinstance(profile, Mapping):
        raise ConfigError(f"{origin}: must be a table of paths and values")
    for path in profile:
        if split_path(path)[0] in ("extends", "profiles", "plugins", "name"):
            raise ConfigError(f"{origin}: {path}: a profile cannot change this")
    return [Entry(origin, path, value) for path, value in profile.items()]


def parse_set(text: str) -> Entry:
    """``path=value`` as typed; the value is TOML, and what is no TOML is a string.

    Raises:
        ConfigError: no equals sign, or no path before it.
    """
    path, equals, typed = text.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set {text}: write path=value, e.g. --set model.dim=64")
    try:
        table = tomllib.loads(f"value = {typed}")
        value = table["value"] if len(table) == 1 else typed
    except tomllib.TOMLDecodeError:
        value = typed.strip()
    return Entry(f"--set {text}", join_path(split_path(path)), value)


class Choice(NamedTuple):
    """A book with profile and ``--set`` chosen: everything below the arms."""

    book: Book
    patches: tuple[Patch, ...]
    grid: Patch  # axes by dotted path beside ``seeds``, ``design`` and ``variant``
    said: tuple[str, ...]  # what was decided on the user's behalf, in plain lines


def choose(book: Book, profile: str | None, sets: Sequence[str], device: str) -> Choice:
    """Lay a profile and ``--set`` over a book.

    Args:
        book: what the files say.
        profile: a name, ``full`` for none, or None: ``cpu`` where the device is a CPU and the recipe has that profile.
        sets: ``path=value`` as typed.
        device: settled, e.g. ``cpu`` or ``cuda``.

    Raises:
        ConfigError: an unknown profile, or a ``--set`` that is no ``path=value``.
    """
    said = []
    if profile is None:
        profile = "cpu" if device == "cpu" and "cpu" in book.profiles else FULL
        if profile == "cpu":
            said.append("No GPU is used: the recipe's profile 'cpu' applies (--profile full for the full size).")
    if profile != FULL and profile not in book.profiles:
        hint = nearest(profile, [FULL, *book.profiles])
        raise ConfigError(f"{book.path}: --profile {profile}: no such profile, {hint}")
    typed = [parse_set(text) for text in sets]
    patches = [*book.patches]
    if profile != FULL:
        patches.append(Patch(f"--profile {profile}", nested("machine.profile", profile)))
    origin, grid = book.grid
    axes = _flat(grid)
    for entry in (*book.profiles.get(profile, ()), *typed):
        first, *steps = split_path(entry.path)
        if first != "grid":
            patches.append(Patch(entry.origin, nested(entry.path, entry.value)))
        elif steps:
            axes[join_path(steps)] = entry.value
        else:
            origin, axes = entry.origin, _flat(_table(entry.origin, "grid", entry.value))
    for entry in typed:
        if axes.pop(entry.path, None) is not None:
            said.append(f"--set {entry.path} removes the grid's axis of that name.")
    return Choice(book, tuple(patches), Patch(origin, axes), tuple(said))


def _flat(table: Mapping[str, Any], path: str = "") -> Table:
    """A grid's axes by dotted path, whether they were written so or as nested tables."""
    flat: Table = {}
    for key, value in table.items():
        full = join_path(split_path(f"{path}.{key}" if path else key))
        flat.update(_flat(value, full) if isinstance(value, Mapping) else {full: value})
    return flat

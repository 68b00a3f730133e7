"""Where kinds come from: our own folders, installed packages that declare ``zoo.parts``, and files that a recipe names.

Whichever way a file comes in, its class statements are the registration.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import traceback
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from zoo.core.part import ConfigError

OWN = ("zoo.blocks", "zoo.optim", "zoo.data", "zoo.scoring", "zoo.codecs", "zoo.track")
GROUP = "zoo.parts"  # an entry point's value is the module that holds the class statements
_loaded: dict[Path, str] = {}  # plug-in file -> hash of the content that is registered


@cache
def discover() -> None:
    """Register our own kinds and those of installed packages, once.

    Raises:
        ConfigError: an installed package whose entry point cannot be imported.
    """
    for folder in OWN:
        importlib.import_module(folder)
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as fault:
            raise ConfigError(
                f"the package behind entry point {point.value!r} ({GROUP}) does not import: {fault}"
            ) from None


def load(path: Path) -> str:
    """Register the kinds of one Python file; a file that is registered as it is now is left alone.

    Returns:
        the hash of its content, for the address of trials that use it.

    Raises:
        ConfigError: no such file, or one that raises while it is imported.
    """
    path = path.resolve()
    try:
        source = path.read_bytes()
    except OSError as fault:
        raise ConfigError(f"cannot be read: {fault.strerror}") from None
    digest = hashlib.sha256(source).hexdigest()
    if digest in _loaded.values():
        return digest
    where = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    module = ModuleType(f"zoo_plugin_{re.sub(r'[^0-9a-zA-Z]', '_', path.stem)}_{where}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # annotations of nested Configs are looked up there
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    except Exception as fault:
        del sys.modules[module.__name__]
        raise ConfigError(f"does not import: {type(fault).__name__}: {fault}{_line(fault, path)}") from None
    _loaded[path] = digest
    return digest


def _line(fault: Exception, path: Path) -> str:
    """Where in the file it was raised; a fault of syntax says so itself."""
    lines = [frame.lineno for frame in traceback.extract_tb(fault.__traceback__) if frame.filename == str(path)]
    return f" (line {lines[-1]})" if lines else ""

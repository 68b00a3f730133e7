"""Kinds of zoo.track. Every file of this folder is imported, so a new kind needs no list to be entered in."""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

"""Kinds of zoo.codecs. Every file of this folder is imported, so a new kind needs no list to be entered in.

From weights to bytes in three choices: a *codec* says which tensor is stored how, a *rounding* how numbers become codes,
a *coding* how codes become bytes. ``zoo.codecs.container`` is the file they stand in.
"""

from __future__ import annotations

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

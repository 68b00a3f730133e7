"""The zoo: blocks, recipes and grids for language-model ablations.

Names are loaded when they are first used, so ``import zoo`` takes no time and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo import testing
    from zoo.api import build, load
    from zoo.core.part import ConfigError, Part
    from zoo.model import Model, ModelConfig
    from zoo.recipe import Recipe, dumps
    from zoo.resolve import loads

__version__ = "0.1.0"

_HOME = {
    "ConfigError": "zoo.core.part",
    "Model": "zoo.model",
    "ModelConfig": "zoo.model",
    "Part": "zoo.core.part",
    "Recipe": "zoo.recipe",
    "build": "zoo.api",
    "dumps": "zoo.recipe",
    "load": "zoo.api",
    "loads": "zoo.resolve",
    "testing": "zoo",
}
__all__ = ["ConfigError", "Model", "ModelConfig", "Part", "Recipe", "build", "dumps", "load", "loads", "testing"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}; it has {', '.join(__all__)}")
    if name == "testing":
        return importlib.import_module("zoo.testing")
    importlib.import_module("zoo.plugins").discover()  # whoever configures something may name any kind
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

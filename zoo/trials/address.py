"""The address of a trial: equal addresses mean equal results, so what has been trained is never trained again.

An address is the hash of everything that can change a number: the resolved recipe without its names, the class of device,
the data, and the source of plug-ins. The source of the zoo itself is hashed beside it: where it has changed, a stored result
is shown as stale, and it is trained again only when asked for.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from functools import cache
from pathlib import Path

from zoo import plugins
from zoo.core.tables import tabulate
from zoo.recipe import Recipe
from zoo.resolve import all_parts

ROOT = Path(__file__).parents[1]  # the package zoo
WHEN_KEPT = ("checkpoint_every", "checkpoint_minutes")  # change no number either
# what people call it, where its files lie, what is shown of it and to whom
NAMES = ("name", "variant", "base", "plugins", "card", "track")


def address(recipe: Recipe, data: str, folder: Path) -> str:
    """Sixteen hex digits.

    Args:
        recipe: resolved and settled, with its seed.
        data: the fingerprint of the prepared text.
        folder: where the paths of plug-ins start from.
    """
    table = {name: value for name, value in tabulate(recipe).items() if name not in NAMES}
    table["train"] = {name: value for name, value in table["train"].items() if name not in WHEN_KEPT}
    table["machine"] = {**table["machine"], "device": recipe.machine.device.partition(":")[0]}
    table["machine"].pop("graphs")  # the same kernels on the same memory, asked for at once
    if recipe.machine.ranks == 1:
        table["machine"].pop("ranks")
    if not recipe.evaluate.also:  # like one rank it changes nothing, so that it is as if the knob did not exist
        table["evaluate"].pop("also")
    guests = sorted(plugins.load(folder / plugin) for plugin in recipe.plugins)
    text = json.dumps([table, data, guests], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_hash(recipe: Recipe) -> str:
    """Sixteen hex digits of the source that a trial runs: the loop, and the modules of its parts, with all they import.

    Comments, docstrings and layout do not count.
    """
    digest = hashlib.sha256()
    for file in code_files(recipe):
        digest.update(stripped(file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:16]


def code_files(recipe: Recipe) -> list[Path]:
    """The source files that a trial runs, in a stable order."""
    start = {ROOT / "train.py"}
    for path, part in all_parts(recipe):
        if re.split(r"[.\[]", path)[0] in NAMES:
            continue
        file = getattr(sys.modules.get(part.__module__), "__file__", None)
        if file is not None:
            start.add(Path(file))
    return sorted(_closure(frozenset(start)), key=str)


@cache
def _closure(start: frozenset[Path]) -> frozenset[Path]:
    """``start`` and every module of the zoo that it imports, directly or not."""
    found, waiting = set(), list(start)
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += imported(file)
    return frozenset(found)


@cache
def imported(file: Path) -> tuple[Path, ...]:
    """The files of the zoo's modules that a file imports."""
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    files = (ROOT.parent / f"{name.replace('.', '/')}.py" for name in names if name.startswith("zoo."))
    return tuple(path for path in files if path.is_file())


@cache
def stripped(source: str) -> str:
    """Python source without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)

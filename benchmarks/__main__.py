"""Measure the zoo against what one would use instead.

python -m benchmarks                     # the whole suite; writes results/bench/<machine>.md
python -m benchmarks moe muon            # these alone; their sections of the report are replaced
python -m benchmarks --list              # the suite, and the scripts beside it
python -m benchmarks --quick             # smallest sizes, few rounds, nothing written: does all of it run?
python -m benchmarks --device cuda
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
import time
import traceback
from pathlib import Path

FOLDER = Path(__file__).parent
NOT_MEASURED = {"__init__", "__main__", "harness", "report"}


def discovered() -> dict[str, tuple[str, bool]]:
    """The files of this folder: the first sentence of each, and whether it belongs to the suite. Nothing is imported."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        if path.stem in NOT_MEASURED:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        title = (ast.get_docstring(tree) or path.stem).split("\n\n")[0].replace("\n", " ")
        measured = any(isinstance(node, ast.FunctionDef) and node.name == "figures" for node in tree.body)
        found[path.stem] = (title, measured)
    return found


def listing(found: dict[str, tuple[str, bool]]) -> str:
    lines = ["The suite:"]
    lines += [f"  {name:<14}{title}" for name, (title, measured) in found.items() if measured]
    lines += ["Scripts of their own (python -m benchmarks.NAME --help):"]
    lines += [f"  {name:<14}{title}" for name, (title, measured) in found.items() if not measured]
    return "\n".join(lines)


def run(names: list[str], found: dict[str, tuple[str, bool]], words: argparse.Namespace) -> int:
    """Measure, print, write; 1 where a benchmark failed."""
    import torch

    from benchmarks import report
    from benchmarks.harness import Figure, Settings
    from zoo import machine, plugins

    plugins.discover()
    machine.keep_freed_memory()  # as training has it; for all contestants alike
    device = machine.settle_device(words.device)
    dtype = machine.DTYPES[machine.settle_dtype(words.dtype, device)]
    settings = Settings(device, dtype, machine.settle_threads(words.threads), words.quick)
    torch.set_num_threads(settings.threads)
    sections, failed = {}, []
    for name in names:
        began, figures = time.perf_counter(), []
        try:
            for figure in importlib.import_module(f"benchmarks.{name}").figures(settings):
                figures.append(figure)
                print(f"{name}: {report.in_a_line(figure)}", file=sys.stderr, flush=True)
        except Exception as fault:  # one benchmark that fails must not cost the others, nor its rows before
            traceback.print_exc()
            failed.append(name)
            figures.append(Figure("the rest", f"failed: {type(fault).__name__}: {fault}"[:200]))
        command = f"python -m benchmarks {name}" + _words(words)
        sections[name] = report.section(name, found[name][0], figures, settings, command, time.perf_counter() - began)
        print(sections[name], flush=True)
    if sections and not words.quick:
        print(f"written: {report.write(words.out, settings, sections)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def _words(words: argparse.Namespace) -> str:
    """The options of the command that are not the usual ones."""
    said = {"--device": (words.device, "auto"), "--dtype": (words.dtype, "auto"), "--threads": (words.threads, 0)}
    others = "".join(f" {name} {value}" for name, (value, usual) in said.items() if value != usual)
    return others + (" --quick" if words.quick else "")


def main(argv: list[str] | None = None) -> int:
    found = discovered()
    suite = [name for name, (_, measured) in found.items() if measured]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(suite)}; all of them without")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--quick", action="store_true", help="smallest sizes, few rounds, nothing written")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=0, help="0: as many as there are cores")
    parser.add_argument("--out", type=Path, default=FOLDER.parent / "results" / "bench")
    words = parser.parse_args(argv)
    if unknown := [name for name in words.names if name not in suite]:
        parser.error(f"{', '.join(unknown)}: not in the suite; --list shows what there is")
    if words.list:
        print(listing(found))
        return 0
    return run(words.names or suite, found, words)


if __name__ == "__main__":
    sys.exit(main())

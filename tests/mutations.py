"""Small faults that a line of code could have: what they are, where they fit, and what the line then says.

Each is worked out on the syntax tree and spliced into the text, so that everything else of the file stays as it was.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FLIPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
RENAMED = {
    "tril": "triu",
    "triu": "tril",
    "tril_": "triu_",
    "triu_": "tril_",
    "amax": "amin",
    "max": "min",
    "min": "max",
    "cos": "sin",
    "sin": "cos",
    "sum": "mean",
    "mean": "sum",
    "ones": "zeros",
    "zeros": "ones",
    "ones_like": "zeros_like",
    "zeros_like": "ones_like",
    "clamp_min": "clamp_max",
    "clamp_max": "clamp_min",
    "softmax": "sigmoid",
    "silu": "gelu",
}
# Methods without which the receiver still has the same shape and meaning enough to go on.
DROPPED = {
    *("sigmoid", "tanh", "softmax", "square", "sqrt", "rsqrt", "abs", "exp", "log", "clamp", "clamp_min", "clamp_max"),
    *("roll", "flip", "transpose", "detach", "clone", "contiguous", "masked_fill", "masked_fill_", "where", "float"),
    *("to", "sort", "cumsum", "sign", "mul", "mul_", "add", "add_", "sub_", "div_", "lerp_", "copy_", "zero_"),
}
SKIPPED_FUNCTIONS = {"extra_repr", "__repr__", "__str__", "idea", "notes"}


@dataclass(frozen=True)
class Mutation:
    """One fault: in ``file`` at ``line``, ``kind`` of change, and the whole line before and after."""

    file: str
    line: int
    kind: str
    before: str
    after: str
    start: int  # the replaced span of the file's text
    end: int
    text: str  # what stands there instead
    function: str  # where it is

    def apply(self, source: str) -> str:
        """``source`` with the fault in it."""
        return source[: self.start] + self.text + source[self.end :]

    @property
    def key(self) -> str:
        """What tells it from every other one, wherever the line moves."""
        return f"{self.file}: {self.before} -> {self.after}"


def mutations(path: Path, root: Path) -> list[Mutation]:
    """Every fault that fits into one file, in its order."""
    source = path.read_text(encoding="utf-8")
    return mutations_of(source, path.relative_to(root).as_posix())


def mutations_of(source: str, name: str) -> list[Mutation]:
    """Every fault that fits into ``source``, called ``name``; what would not parse or changes nothing is left out."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    found, tree = [], ast.parse(source)
    original = ast.dump(tree)
    for node, kind, text, function in _changes(tree):
        begin = starts[node.lineno - 1] + _characters(lines[node.lineno - 1], node.col_offset)
        end = starts[node.end_lineno - 1] + _characters(lines[node.end_lineno - 1], node.end_col_offset)
        changed = source[:begin] + text + source[end:]
        if _dump(changed) in (None, original):
            continue
        first, last = starts[node.lineno - 1], starts[node.end_lineno]
        before, after = source[first:last], source[first:begin] + text + source[end:last]
        found.append(Mutation(name, node.lineno, kind, _one_line(before), _one_line(after), begin, end, text, function))
    return found


def draw(files: list[Path], root: Path, n: int, seed: int) -> list[Mutation]:
    """``n`` lines, then a kind of fault that fits, then one such fault, all drawn by ``seed``; in the order of drawing."""
    by_line: dict[tuple[str, int], list[Mutation]] = {}
    for path in sorted(files):
        for mutation in mutations(path, root):
            by_line.setdefault((mutation.file, mutation.line), []).append(mutation)
    rng = random.Random(seed)
    chosen = rng.sample(sorted(by_line), min(n, len(by_line)))
    drawn = []
    for line in chosen:
        kind = rng.choice(sorted({mutation.kind for mutation in by_line[line]}))
        drawn.append(rng.choice([mutation for mutation in by_line[line] if mutation.kind == kind]))
    return drawn


def _characters(line: str, n_bytes: int) -> int:
    return len(line.encode()[:n_bytes].decode())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _dump(source: str) -> str | None:
    try:
        return ast.dump(ast.parse(source))
    except SyntaxError:
        return None


def _changes(tree: ast.Module) -> Iterator[tuple[ast.expr | ast.stmt, str, str, str]]:
    """Nodes with the kind of fault, the text that takes their place, and the function around them."""
    for node, function in _walk(tree, ""):
        for kind, text in _faults(node):
            yield node, kind, text, function


def _walk(node: ast.AST, function: str) -> Iterator[tuple[ast.AST, str]]:
    """Everything that runs: no annotations, docstrings, decorators, messages of errors, or what only prints."""
    if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr):
        return
    if isinstance(node, ast.FunctionDef):
        if node.name in SKIPPED_FUNCTIONS:
            return
        function = node.name
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    yield node, function
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases", "keywords") and not isinstance(node, ast.Call):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not (isinstance(child, ast.keyword) and child.arg == "strict"):
                yield from _walk(child, function)


def _faults(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.BinOp) and type(node.op) in FLIPPED and not _of_types(node):
        yield "operator", _with(node, op=FLIPPED[type(node.op)]())
    elif isinstance(node, ast.UnaryOp):
        yield "sign or mask dropped", f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in FLIPPED:
        yield "comparison", _with(node, ops=[FLIPPED[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.BoolOp):
        yield "and / or", _with(node, op=FLIPPED[type(node.op)]())
    elif isinstance(node, ast.IfExp):
        yield "branches swapped", _with(node, body=node.orelse, orelse=node.body)
    elif isinstance(node, ast.AugAssign) and type(node.op) in FLIPPED:
        yield "operator", ast.unparse(ast.AugAssign(node.target, FLIPPED[type(node.op)](), node.value))
    elif isinstance(node, ast.Constant):
        yield from _constants(node.value)
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "call dropped", "pass"
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice) and isinstance(node.ctx, ast.Load):
        yield "slice dropped", ast.unparse(node.value)


def _of_types(node: ast.BinOp) -> bool:
    """``A | B`` of classes, as in isinstance, or of tables."""
    return isinstance(node.op, ast.BitOr) and not {"mask", "same", "seen"} & set(ast.unparse(node).split())


def _constants(value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, bool):
        yield "constant", str(not value)
    elif isinstance(value, int):
        yield "offset", str(value + 1)
        yield "offset", f"({value - 1})"
    elif isinstance(value, float):
        yield "constant", repr(2 * value if value else 1.0)


def _calls(node: ast.Call) -> Iterator[tuple[str, str]]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
    if name in RENAMED:
        yield "function", _with(node, func=ast.Attribute(node.func.value, RENAMED[name], ast.Load()))
    if name in DROPPED and ast.unparse(node.func.value) not in ("torch", "F", "math"):
        yield "call dropped", f"({ast.unparse(node.func.value)})"
    if "norm" in (name or ast.unparse(node.func)) and node.args:
        yield "norm dropped", f"({ast.unparse(node.args[0])})"
    numbers = [i for i, a in enumerate(node.args) if _is_axis(a)]
    if len(numbers) >= 2:
        i, j = numbers[:2]
        if ast.dump(node.args[i]) != ast.dump(node.args[j]) and name not in ("transpose", "transpose_"):
            yield "axes swapped", _with(node, args=_swapped(node.args, i, j))
    elif len(numbers) == 1 and name in ("softmax", "mean", "sum", "amax", "cumsum", "flip", "chunk", "cat", "stack"):
        axis = ast.literal_eval(node.args[numbers[0]])
        other = ast.Constant(-2 if axis == -1 else -1)
        yield "other axis", _with(node, args=[*node.args[: numbers[0]], other, *node.args[numbers[0] + 1 :]])
    if name == "where" and len(node.args) == 3:
        yield "branches swapped", _with(node, args=_swapped(node.args, 1, 2))


def _swapped(args: list[ast.expr], i: int, j: int) -> list[ast.expr]:
    args = list(args)
    args[i], args[j] = args[j], args[i]
    return args


def _is_axis(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) is int


def _with(node: ast.AST, **changes: object) -> str:
    """The node's source with some of its fields changed, in parentheses where it might need them."""
    fields = {name: getattr(node, name) for name in node._fields} | changes
    text = ast.unparse(ast.fix_missing_locations(type(node)(**fields)))
    return text if isinstance(node, ast.Call) else f"({text})"

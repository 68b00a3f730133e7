"""The faults that tests/mutate.py draws: each is one, each parses, and one seed draws the same ones again."""

from __future__ import annotations

import ast
from pathlib import Path

from mutations import draw, mutations, mutations_of

ROOT = Path(__file__).parents[1]

SOURCE = '''
"""A text - not code + at all."""

def attend(q: int | None, n: int = 2) -> int:
    """Neither is this."""
    if n < 1:
        raise ValueError(f"must be {1 + 1}")
    mask = ones(n, n).tril(-1) & ~hidden
    return norm(q).transpose(1, 2).softmax(-1) - q[1:]
'''


def changed(kind: str) -> set[str]:
    return {m.after for m in mutations_of(SOURCE, "x.py") if m.kind == kind}


def test_each_kind_of_fault_is_found_where_it_fits() -> None:
    assert changed("comparison") == {"if (n <= 1):"}
    assert changed("function") == {
        "mask = ones(n, n).triu(-1) & ~hidden",
        "return norm(q).transpose(1, 2).sigmoid(-1) - q[1:]",
    }
    assert "return (q).transpose(1, 2).softmax(-1) - q[1:]" in changed("norm dropped")
    assert "return (norm(q)).softmax(-1) - q[1:]" in changed("call dropped")
    assert "return norm(q).transpose(1, 2).softmax(-2) - q[1:]" in changed("other axis")
    assert "mask = ones(n, n).tril(-1) & (hidden)" in changed("sign or mask dropped")
    assert "mask = (ones(n, n).tril(-1) | ~hidden)" in changed("operator")
    assert "def attend(q: int | None, n: int = 3) -> int:" in changed("offset")
    assert changed("slice dropped") == {"return norm(q).transpose(1, 2).softmax(-1) - q"}


def test_texts_annotations_and_messages_are_left_alone() -> None:
    lines = {m.line for m in mutations_of(SOURCE, "x.py")}
    assert lines == {4, 6, 8, 9}
    assert not [m for m in mutations_of(SOURCE, "x.py") if "int & None" in m.after]


def test_every_fault_of_the_blocks_parses_and_changes_its_line_alone() -> None:
    for path in sorted((ROOT / "zoo" / "blocks").glob("*.py"))[:6]:
        source = path.read_text(encoding="utf-8")
        for mutation in mutations(path, ROOT)[::7]:
            faulty = mutation.apply(source)
            assert ast.dump(ast.parse(faulty)) != ast.dump(ast.parse(source))
            assert mutation.before != mutation.after
            assert source[: mutation.start] == faulty[: mutation.start]
            assert source[mutation.end :] == faulty[mutation.start + len(mutation.text) :]


def test_one_seed_draws_the_same_lines_again_each_once() -> None:
    files = sorted((ROOT / "zoo" / "optim").glob("*.py"))
    first, again, other = (draw(files, ROOT, 20, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len({(m.file, m.line) for m in first}) == 20

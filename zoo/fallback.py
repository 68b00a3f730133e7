"""What a run does without where it cannot have it all: smaller micro-batches where memory runs out, eager mode where the
compiler fails. Either is said in the Result, so that no table compares the two unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, TypeVar

from zoo import machine

if TYPE_CHECKING:
    from zoo.loop import Loop

T = TypeVar("T")


class Lack(IntEnum):
    """What a run has to go on without; of several the largest is dealt with first."""

    NOTHING = 0
    MEMORY = 1
    COMPILER = 2
    HOPE = 3


def with_less(loop: Loop, compute: Callable[[], T]) -> T:
    """What ``compute`` returns, tried again with less where less may help. It must be repeatable: change nothing but gradients.

    Processes that train together do without the same, whichever of them lacks it.

    Raises:
        Exception: whatever ``compute`` raises when there is nothing left to do without.
    """
    while True:
        why = ""
        try:
            value = compute()
        except Exception as fault:
            why = said(fault)
            lack = loop.world.most(_lack(loop, fault))[0]
            if lack == Lack.HOPE:
                loop.world.give_up(fault)
        else:
            lack = loop.world.most(Lack.NOTHING)[0]
            if lack == Lack.HOPE:
                loop.world.give_up(None)
            if lack == Lack.NOTHING:
                return value
            del value
        loop.model.zero_grad(set_to_none=True)
        machine.release_memory()  # outside the handler, whose fault holds on to what it used
        if lack == Lack.MEMORY:
            smaller(loop)
        else:
            uncompiled(loop, loop.world.words(why))


def without_compiler(loop: Loop, compute: Callable[[], T]) -> T:
    """What ``compute`` returns, once more in eager mode where the compiler fails."""
    try:
        return compute()
    except Exception as fault:
        if _lack(loop, fault) is not Lack.COMPILER:
            raise
        why = said(fault)
    uncompiled(loop, why)
    return compute()


def _lack(loop: Loop, fault: Exception) -> Lack:
    """What may help against a fault."""
    if loop.rows > loop.world.size and machine.is_out_of_memory(fault):
        return Lack.MEMORY
    origins = {part.__module__.partition(".")[2].partition(".")[0] for part in type(fault).__mro__}
    return Lack.COMPILER if loop.compiled and origins & {"_dynamo", "_inductor", "_functorch"} else Lack.HOPE


def smaller(loop: Loop) -> None:
    """Halve the micro-batch and double the accumulation (an odd one is divided by its smallest factor)."""
    each = loop.rows // loop.world.size
    factor = next(n for n in range(2, each + 1) if each % n == 0)
    loop.split(loop.rows // factor)
    whole = loop.recipe.train
    remark = (
        f"out of memory: micro-batches of {loop.rows} instead of {whole.batch} rows, "
        f"{loop.accumulate} instead of {whole.accumulate} a step"
    )
    loop.remarks = [*(r for r in loop.remarks if not r.startswith("out of memory:")), remark]
    loop.signals.say(f"step {loop.step + 1:,}: {remark}")


def uncompiled(loop: Loop, why: str) -> None:
    """Go on without the compiler, which said ``why``."""
    loop.model.compile_stages(None)
    loop.compiled = False
    loop.anew()
    remark = f"not compiled from step {loop.step + 1:,} on: {why}"[:240]
    loop.remarks = [*loop.remarks, remark]
    loop.signals.say(remark)


def said(fault: Exception) -> str:
    """All of what a fault says, in one line: the first of a compiler's lines rarely says what was wrong."""
    return f"{type(fault).__name__}: {' '.join(str(fault).split())}"

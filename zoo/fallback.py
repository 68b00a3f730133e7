"""What a run does without where it cannot have it all: smaller micro-batches where memory runs out, eager mode where the
compiler fails. Either is said in the Result, so that no table compares the two unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from zoo import machine

if TYPE_CHECKING:
    from zoo.train import Loop

T = TypeVar("T")


def with_less(loop: Loop, compute: Callable[[], T]) -> T:
    """What ``compute`` returns, tried again with less where less may help. It must be repeatable: change nothing but gradients.

    Raises:
        Exception: whatever ``compute`` raises when there is nothing left to do without.
    """
    while True:
        try:
            return compute()
        except Exception as fault:
            if not (smaller(loop, fault) or uncompiled(loop, fault)):
                raise
        loop.model.zero_grad(set_to_none=True)
        machine.release_memory()  # outside the handler, whose fault holds on to what it used


def without_compiler(loop: Loop, compute: Callable[[], T]) -> T:
    """What ``compute`` returns, once more in eager mode where the compiler fails."""
    try:
        return compute()
    except Exception as fault:
        if not uncompiled(loop, fault):
            raise
    return compute()


def smaller(loop: Loop, fault: Exception) -> bool:
    """Halve the micro-batch and double the accumulation (an odd one is divided by its smallest factor).

    Returns:
        whether memory was the fault and there was more than one row.
    """
    if loop.rows == 1 or not machine.is_out_of_memory(fault):
        return False
    factor = next(n for n in range(2, loop.rows + 1) if loop.rows % n == 0)
    loop.split(loop.rows // factor)
    whole = loop.recipe.train
    remark = (
        f"out of memory: micro-batches of {loop.rows} instead of {whole.batch} rows, "
        f"{loop.accumulate} instead of {whole.accumulate} a step"
    )
    loop.remarks = [*(r for r in loop.remarks if not r.startswith("out of memory:")), remark]
    loop.signals.say(f"step {loop.step + 1:,}: {remark}")
    return True


def uncompiled(loop: Loop, fault: Exception) -> bool:
    """Go on without the compiler.

    Returns:
        whether the compiler was the fault.
    """
    origins = {part.__module__.partition(".")[2].partition(".")[0] for part in type(fault).__mro__}
    if not loop.compiled or not origins & {"_dynamo", "_inductor", "_functorch"}:
        return False
    loop.model.compile_stages(None)
    loop.compiled = False
    why = " ".join(str(fault).split())  # the first of its lines rarely says what was wrong
    remark = f"not compiled from step {loop.step + 1:,} on: {type(fault).__name__}: {why}"[:240]
    loop.remarks = [*loop.remarks, remark]
    loop.signals.say(remark)
    return True

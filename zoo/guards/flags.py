"""After a trial has trained: is its result too good to be true?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.data.counts import unigram_entropy
from zoo.result import Result

if TYPE_CHECKING:
    from zoo.data.prepare import Prepared

BELOW_XZ = 0.35  # the best published models of any size stand at about a third of xz on text they have not seen
EARLY = 0.9  # of the unigram entropy


def judged(result: Result, prepared: Prepared, guarded: bool) -> Result:
    """A finished trial's result with its flags, and with the word whether it was guarded."""
    update = {"guards": "passed" if guarded else "off", "flags": tuple(flags(result, prepared))}
    return result.model_copy(update=update)


def flags(result: Result, prepared: Prepared) -> list[str]:
    """Why a result may be too good to be true: each reason one line."""
    found = []
    xz = prepared.facts.get("xz_bpb")
    if xz is not None and result.bits_per_byte is not None and result.bits_per_byte < BELOW_XZ * float(xz):
        share = result.bits_per_byte / float(xz)
        found.append(
            f"too good to be true? {result.bits_per_byte:.4f} bits per byte are {share:.2f} of what xz reaches"
        )
    if result.early_loss is not None and result.early_loss < EARLY * (entropy := unigram_entropy(prepared.valid)):
        said = f"the loss falls to {result.early_loss:.4f} within ten steps, where the frequencies of tokens alone give"
        found.append(f"too good to be true? {said} {entropy:.4f}")
    return found

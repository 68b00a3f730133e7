"""The evaluation plan: what must be equal for two scores to be compared."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from zoo.core.part import Knobs
from zoo.core.tables import tabulate
from zoo.scoring.slots import Scorer

if TYPE_CHECKING:
    from zoo.data.prepare import Prepared


class Plan(Knobs):
    """How a trial was scored. Bits per byte are ranked among equal ``hash``, nats per token only where ``tokens`` agree too.

    The number of rows per call is not in it: it changes speed, and scores by rounding alone.
    """

    hash: str  # twelve hex digits of the split, its text, the context and the scorer with every knob
    split: str
    text: str  # hash of the raw text that was scored, whatever the tokenizer
    bytes: int  # of it, which bits are counted against
    context: int  # the most tokens the model sees at once
    scorer: dict[str, Any]  # kind and knobs, a stride among them where it has one
    tokens: str  # hash of the tokenizer: the unit of nats per token


def plan_of(scorer: Scorer.Config, context: int, prepared: Prepared) -> Plan:
    """The plan by which a model of ``context`` is scored on the validation text."""
    knobs = tabulate(scorer)
    said = ["valid", prepared.valid_text, prepared.valid_bytes, context, knobs]
    return Plan(
        hash=hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12],
        split="valid",
        text=prepared.valid_text[:12],
        bytes=prepared.valid_bytes,
        context=context,
        scorer=knobs,
        tokens=hashlib.sha256(prepared.tokenizer.fingerprint().encode()).hexdigest()[:12],
    )

"""Grouped-query attention."""

from __future__ import annotations

from zoo.core.grouped import Grouped


class GQA(Grouped, kind="gqa"):
    """Grouped-query attention: H query heads share G key/value heads (G = H: multi-head, G = 1: multi-query).

    Query head i reads key/value head i // (H / G). QK-norm and a learned gain per query head are knobs; the order is
    norm, weight, rotation, gain.

    Source: GQA, arXiv:2305.13245; QK-norm, arXiv:2010.04245; gain as in the parameter-golf entry openai/parameter-golf#828.
    """

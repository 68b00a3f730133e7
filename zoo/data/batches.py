"""Windows of a token stream, in an order that the seed alone decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from zoo.core.part import ConfigError
from zoo.data.windows import Draw, Group, SideBySide, WholeDocuments, generator

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = -100  # zoo.core.slots.IGNORE, which would bring torch along


class Batches:
    """Training batches: rows of the stream, permuted anew each epoch, each exactly once per epoch.

    A row is ``context`` inputs and their successors, so a row's last target is the first input of the next one. What is
    left at the end of the stream and fills no row is not used. ``batch(step, micro)`` depends on the arguments and the seed
    alone: arms that share data, seed and batch see the same rows, and a resumed run goes on with the right ones.

    Args:
        tokens: (N,) ids.
        context: T, inputs per row.
        rows: B, rows per micro-batch.
        seed: of the order.
        bos: the id that starts a document.
        document_mask: "segments" numbers the documents of each row; "none" gives None for them.
        accumulate: micro-batches per step.
        packing: "stream" takes windows side by side, across documents; "documents" lets no row begin or end inside a
            document that fits into one: the rest of a row is filled up with bos and targets that are not scored.
        groups: of a mixture: stretches that are drawn from by weight, each with epochs of its own; none: all is one.
        share: (k, n): give only the k-th (from 0) of n equal shares of the rows of every micro-batch.

    Raises:
        ConfigError: fewer tokens than one row.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        context: int,
        rows: int,
        seed: int,
        bos: int,
        document_mask: Literal["none", "segments"] = "none",
        accumulate: int = 1,
        packing: Literal["stream", "documents"] = "stream",
        groups: tuple[Group, ...] = (),
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.tokens, self.context, self.rows, self.seed = tokens, context, rows, seed
        self.bos, self.document_mask, self.accumulate = bos, document_mask, accumulate
        self.packing, stretches, self.share = packing, groups or (Group(0, len(tokens), 1.0),), share
        self.parts = [self._part(group) for group in stretches]
        self.windows = sum(part.count for part in self.parts)  # per epoch
        self._draw = Draw(tuple(group.weight for group in stretches), seed) if groups else None
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # group -> its epoch and order

    def _part(self, group: Group) -> SideBySide | WholeDocuments:
        if self.packing == "documents":
            part = WholeDocuments(self.tokens, group.start, group.stop, self.context, self.bos)
        else:
            part = SideBySide(group.start, group.stop, self.context)
        if not part.count:
            n = group.stop - group.start
            raise ConfigError(
                f"a window takes {self.context + 1:,} tokens, the text has {n:,}", "context", self.context
            )
        return part

    def batch(self, step: int, micro: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs, targets and document numbers, each (B, T) int64 on the CPU, of one micro-batch or this share of it.

        Args:
            step: number of the update, from 1.
            micro: number of the micro-batch within it, from 0.
        """
        import torch  # here, since processes that only encode text need none

        part, parts = self.share
        places = np.array_split(self._places(step, micro), parts)[part]
        index = places[:, :1] + np.arange(self.context + 1)  # (B, T + 1)
        rows = self.tokens[np.minimum(index, len(self.tokens) - 1)].astype(np.int64)
        inputs, targets = (torch.from_numpy(t.copy()) for t in (rows[:, :-1], rows[:, 1:]))
        if self.packing == "documents":
            empty = torch.arange(self.context) >= torch.from_numpy(places[:, 1:])
            inputs[empty], targets[empty] = self.bos, IGNORE
        return inputs, targets, segments(inputs, self.bos) if self.document_mask == "segments" else None

    def _places(self, step: int, micro: int) -> np.ndarray:
        """(B, 2): where each row begins, and how many of its inputs are text."""
        if step < 1 or not 0 <= micro < self.accumulate:
            raise ValueError(
                f"no micro-batch {micro} of step {step}: steps count from 1, {self.accumulate} per step from 0"
            )
        first = ((step - 1) * self.accumulate + micro) * self.rows
        return np.array([self._place(first + row) for row in range(self.rows)])

    def _place(self, n: int) -> tuple[int, int]:
        group, row = self._row(n)
        return self.parts[group].place(row)

    def _row(self, n: int) -> tuple[int, int]:
        group, n = self._draw(n) if self._draw else (0, n)
        epoch, place = divmod(n, self.parts[group].count)
        if self._orders.get(group, (-1, None))[0] != epoch:
            name = f"{self.seed} {epoch}{f' {group}' if self._draw else ''}"
            self._orders[group] = epoch, generator(name).permutation(self.parts[group].count)
        return group, int(self._orders[group][1][place])

    def window(self, n: int) -> int:
        """Which row of its stretch of the stream is drawn as number ``n`` of the run."""
        return self._row(n)[1]

    def scale(self, step: int) -> float:
        """Positions of a step over its scored ones: the mean over all positions, times this, is that over the scored."""
        if self.packing == "stream":
            return 1.0
        scored = sum(int(self._places(step, micro)[:, 1].sum()) for micro in range(self.accumulate))
        return self.accumulate * self.rows * self.context / scored

    def facts(self) -> dict[str, str]:
        """What must stand beside a figure where rows are not simply full."""
        if self.packing == "stream":
            return {}
        text = sum(int(part.lengths.sum()) for part in self.parts)
        cut = sum(part.unused for part in self.parts)
        padding = 1 - text / (self.windows * self.context)
        return {"padding": f"{padding:.2%} of positions", "cut": f"{cut / (text + cut):.2%} of tokens"}


def segments(inputs: Tensor, bos: int) -> Tensor:
    """The number of each token's document within its row, (B, T) -> (B, T): each bos begins the next one."""
    return (inputs == bos).long().cumsum(1)

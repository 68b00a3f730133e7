"""Windows of a token stream, in an order that the seed alone decides."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from zoo.core.part import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


class Group(NamedTuple):
    """A stretch of the training stream that is drawn from with a weight of its own."""

    start: int  # tokens
    stop: int
    weight: float


class Batches:
    """Training batches: non-overlapping windows, permuted anew each epoch, each exactly once per epoch.

    A window is ``context`` inputs and their successors, so a window's last target is the first input of the next one. What is
    left at the end of the stream and fills no window is not used. ``batch(step, micro)`` depends on the arguments and the seed
    alone: arms that share data, seed and batch see the same windows, and a resumed run goes on with the right ones.

    Args:
        tokens: (N,) ids.
        context: T, inputs per row.
        rows: B, rows per micro-batch.
        seed: of the order.
        bos: the id that starts a document.
        document_mask: "segments" numbers the documents of each row; "none" gives None for them.
        accumulate: micro-batches per step.

    Raises:
        ConfigError: fewer tokens than one window.
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
    ) -> None:
        self.tokens, self.context, self.rows, self.seed = tokens, context, rows, seed
        self.bos, self.document_mask, self.accumulate = bos, document_mask, accumulate
        self.windows = (len(tokens) - 1) // context  # per epoch
        if self.windows < 1:
            raise ConfigError(
                f"a window takes {context + 1:,} tokens, the text has {len(tokens):,}", "context", context
            )
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def batch(self, step: int, micro: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs, targets and document numbers, each (B, T) int64 on the CPU, of one micro-batch.

        Args:
            step: number of the update, from 1.
            micro: number of the micro-batch within it, from 0.
        """
        if step < 1 or not 0 <= micro < self.accumulate:
            raise ValueError(
                f"no micro-batch {micro} of step {step}: steps count from 1, {self.accumulate} per step from 0"
            )
        first = ((step - 1) * self.accumulate + micro) * self.rows
        starts = np.array([self.window(first + row) * self.context for row in range(self.rows)])
        import torch  # here, since processes that only encode text need none

        rows = self.tokens[starts[:, None] + np.arange(self.context + 1)]  # (B, T + 1)
        rows = torch.from_numpy(rows.astype(np.int64))
        inputs, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        return inputs, targets, segments(inputs, self.bos) if self.document_mask == "segments" else None

    def window(self, n: int) -> int:
        """Which window of the stream is drawn as number ``n`` of the run."""
        epoch, place = divmod(n, self.windows)
        if epoch != self._epoch:
            words = np.frombuffer(hashlib.sha256(f"{self.seed} {epoch}".encode()).digest(), np.uint32)
            # RandomState: the generator whose stream numpy promises never to change.
            self._epoch, self._order = epoch, np.random.RandomState(words).permutation(self.windows)
        return int(self._order[place])


def segments(inputs: Tensor, bos: int) -> Tensor:
    """The number of each token's document within its row, (B, T) -> (B, T): each bos begins the next one."""
    return (inputs == bos).long().cumsum(1)

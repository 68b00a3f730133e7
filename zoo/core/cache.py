"""What a model remembers while it decodes: one dictionary of buffers per stage, batch first."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.core.part import ConfigError
from zoo.core.wires import Past


class Cache:
    """Room for ``capacity`` tokens of ``batch`` rows. Made by ``Model.cache``, filled by calls of the model.

    Args:
        batch: rows.
        capacity: tokens per row, prompt and continuation together.
        n_stages: how many stages keep a memory.
    """

    def __init__(self, batch: int, capacity: int, n_stages: int) -> None:
        self.batch, self.capacity, self.length = batch, capacity, 0
        self.dropped = 0  # of length, the oldest tokens, which are no longer seen
        self.stages: list[dict[str, Tensor]] = [{} for _ in range(n_stages)]
        self._shifts = [0] * n_stages
        self._segments: Tensor | None = None

    def past(self, stage: int) -> Past:
        """The memory of one stage, as its Bus wants it."""
        shift, self._shifts[stage] = self._shifts[stage], 0
        return Past(self.stages[stage], self.length, self.capacity, self.dropped, shift)

    def forget(self, n: int) -> None:
        """No longer see the oldest ``n`` tokens; those that follow keep their positions.

        Raises:
            ConfigError: fewer tokens than that are remembered, or documents are kept apart.
        """
        if not 0 <= n <= self.length - self.dropped:
            raise ConfigError(f"cannot forget {n} of {self.length - self.dropped} tokens")
        if self._segments is not None:
            raise ConfigError("a cache that keeps documents apart cannot forget: a document would lose its beginning")
        self.dropped += n
        self._shifts = [shift + n for shift in self._shifts]

    def admit(self, tokens: Tensor, segments: Tensor | None) -> Tensor | None:
        """Make room for tokens (B, T) and return the document numbers (B, S) of everything so far.

        Without ``segments`` the new tokens go on with each row's last document.

        Raises:
            ConfigError: another batch size, or more tokens than there is room for.
        """
        batch, new = tokens.shape
        if batch != self.batch:
            raise ConfigError(f"the cache was made for {self.batch} rows, this call has {batch}")
        if (held := self.length - self.dropped) + new > self.capacity:
            raise ConfigError(f"{held} + {new} tokens exceed the cache's capacity of {self.capacity}")
        if segments is None and self._segments is None:
            return None
        if self._segments is None:
            past = torch.zeros(batch, self.length, dtype=torch.long, device=tokens.device)
        else:
            past = self._segments
        if segments is None:
            segments = past[:, -1:].expand(batch, new)
        self._segments = torch.cat([past, segments], 1)
        return self._segments

    def is_whole(self) -> bool:
        """Whether every row is one document, of which nothing was forgotten."""
        return self._segments is None and not self.dropped

    def reorder(self, index: Tensor) -> None:
        """Row i becomes what row ``index[i]`` was: beams that survive are copied, those that do not are dropped.

        There may be more or fewer rows afterwards.
        """
        self.batch = len(index)
        self.stages = [{name: t.index_select(0, index) for name, t in stage.items()} for stage in self.stages]
        if self._segments is not None:
            self._segments = self._segments.index_select(0, index)

    def n_bytes(self) -> int:
        """Bytes that the buffers take now."""
        return sum(t.numel() * t.element_size() for stage in self.stages for t in stage.values())

"""Source `mix`: several sources, drawn from by weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, model_validator

from zoo.core.part import ConfigError, build_child
from zoo.data.slots import Document, Source


class Mixture(Source, kind="mix"):
    """Several sources: each row of a batch is of one of them, drawn by ``weights`` from the seed and the row's number.

    Each source has epochs of its own, so a small one with a large weight is repeated. Caps on bytes are shared out by
    weight, and the validation text is that of all sources.

    Source: mixtures of training text, Brown et al., arXiv:2005.14165, table 2.2.
    """

    class Config(Source.Config):
        sources: tuple[Source.Config, ...] = Field(min_length=2)
        weights: tuple[PositiveFloat, ...]

        @model_validator(mode="after")
        def _fit(self) -> Mixture.Config:
            if len(self.weights) != len(self.sources):
                reason = f"has {len(self.weights)} weights for {len(self.sources)} sources"
                raise ConfigError(reason, "weights", self.weights)
            for i, source in enumerate(self.sources):
                if source.part.holds_tokens or source.part.kind == "mix":
                    raise ConfigError("only sources of text can be mixed", f"sources[{i}]", source.part.kind)
            return self

    config: Config

    def __init__(self, config: Config, base: Path) -> None:
        super().__init__(config, base)
        self.sources: list[Source] = build_child(config, "sources", base)
        self._firsts = {0: 0}  # the number of each source's first document, as far as it is known

    @property
    def weights(self) -> tuple[float, ...]:
        return self.config.weights

    def split(self) -> tuple[Iterator[Document], Iterator[Document]]:
        return self._part("train"), self._part("valid")

    def _part(self, part: str) -> Iterator[Document]:
        return (document for belongs, document in self.stream() if belongs == part)

    def stream(self, start: int = 0, mark: Any = None) -> Iterator[tuple[str, Document]]:
        group, first, inner = mark or (0, 0, None)
        self._firsts[group] = number = first
        skip = start - first
        while group < len(self.sources):
            if mark:
                items, skip = self.sources[group].stream(skip, inner), 0
                number, mark = start, None
            else:
                items = self.sources[group].stream()
            for part, document in self._blamed(group, items):
                number += 1
                if skip:
                    skip -= 1
                    continue
                yield part, document._replace(group=group)
            group += 1
            self._firsts[group] = number

    def _blamed(self, group: int, items: Iterator[tuple[str, Document]]) -> Iterator[tuple[str, Document]]:
        try:
            yield from items
        except ConfigError as fault:
            raise fault.under(f"sources[{group}]") from None

    def mark(self, start: int) -> Any:
        group = max(g for g, first in self._firsts.items() if first <= start and g < len(self.sources))
        first = self._firsts[group]
        return group, first, self.sources[group].mark(start - first)

    def size(self) -> int | None:
        sizes = [source.size() for source in self.sources]
        return None if None in sizes else sum(sizes)

    def fingerprint(self) -> str:
        told = ["mix", self.config.weights, [self._of(i, source.fingerprint) for i, source in enumerate(self.sources)]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def _of(self, i: int, ask: Any) -> str:
        try:
            return ask()
        except ConfigError as fault:
            raise fault.under(f"sources[{i}]") from None

    def facts(self) -> dict[str, str]:
        total = sum(self.config.weights)
        shares = (
            f"{weight / total:.3g} {source.kind} {source.facts().get('corpus', '')}".strip()
            for weight, source in zip(self.config.weights, self.sources, strict=True)
        )
        return {"corpus": self.fingerprint()[:12], "mixture": ", ".join(shares)}

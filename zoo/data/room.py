"""How much text a recipe takes: whole documents in order, up to a number of bytes for training and for validation."""

from __future__ import annotations

from zoo.core.part import ConfigError
from zoo.data.slots import Document

Limits = tuple[int | None, int | None]  # bytes of training and of validation text


class Room:
    """Which documents are taken: of each part and group whole ones in order, for as long as they fit into its limit."""

    def __init__(self, limits: Limits, weights: tuple[float, ...], used: dict[str, int] | None = None) -> None:
        shares = [weight / sum(weights) for weight in weights]
        self.limits = {
            f"{part} {group}": None if limit is None else int(limit * share)
            for part, limit in zip(("train", "valid"), limits, strict=True)
            for group, share in enumerate(shares)
        }
        self.used = used or {}  # bytes; once a document did not fit, -1

    def takes(self, part: str, document: Document) -> bool:
        """Whether the next document is taken; from the first that does not fit on, none is."""
        key = f"{part} {document.group}"
        used, limit = self.used.get(key, 0), self.limits[key]
        if used < 0:
            return False
        used += byte_length(document)
        fits = limit is None or used <= limit
        self.used[key] = used if fits else -1
        return fits and bool(document.text)

    def full(self) -> bool:
        """Whether no document can be taken any more."""
        return len(self.used) == len(self.limits) and all(used < 0 for used in self.used.values())


def byte_length(document: Document) -> int:
    """UTF-8 bytes of a document.

    Raises:
        ConfigError: half of a surrogate pair, which JSON can spell and UTF-8 cannot.
    """
    try:
        return len(document.text) if document.text.isascii() else len(document.text.encode("utf-8"))
    except UnicodeEncodeError as fault:
        half = f"U+{ord(document.text[fault.start]):04X} at character {fault.start}"
        raise ConfigError(f"{document.name} is no UTF-8: it has half a surrogate pair, {half}", "source") from None

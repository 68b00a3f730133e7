"""Source `hf`: a dataset of the Hugging Face hub, or local files, through the `datasets` library."""

from __future__ import annotations

import glob
import hashlib
import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from zoo.core.part import ConfigError, nearest
from zoo.data import remote, retries
from zoo.data.cache import NO_ROOM, default_cache
from zoo.data.digests import digest_of
from zoo.data.slots import Document, Source, Unfinished

EVERY = 256  # rows between two places that a broken stream can be taken up at
COMMIT = re.compile(r"@([0-9a-f]{40})/")


class Mark(NamedTuple):
    """A place in the dataset: the number of its next row, and where the library has to look for it."""

    row: int
    state: dict[str, Any] | None
    commit: str | None


class HubSource(Source, kind="hf"):
    """A dataset by hub name, streamed; or a builder ("parquet", "json", "text") over ``files``, compressed or not.

    A document goes to validation when the hash of its text says so, so the split needs no second pass and is the same on
    every machine. Cap a large stream with ``data.train_bytes`` and ``data.valid_bytes``. A stream that breaks is taken up
    again at the very document, after a pause that doubles; a dataset that changes on the hub is not noticed unless
    ``revision`` names a commit. Files behind http:// or https:// are fetched into the cache once, and are local files then.

    Source: the datasets library, huggingface/datasets.
    """

    class Config(Source.Config):
        name: str  # hub name, or a builder's name beside `files`
        config: str | None = None
        split: str = "train"
        column: str = "text"
        files: tuple[str, ...] = ()  # paths or globs, relative to the recipe, or http:// and https:// addresses
        revision: str | None = None
        valid_share: float = Field(0.01, gt=0, lt=1)
        streaming: bool = True  # False: the dataset is downloaded as a whole first
        shuffle_buffer: NonNegativeInt = (
            0  # rows that are shuffled together, one buffer after the other; 0: not shuffled
        )
        seed: NonNegativeInt = 0  # of the shuffle
        sample_by: Literal["line", "paragraph", "document"] = "line"  # what a row of a text file is
        retries: PositiveInt = 8  # in a row

    config: Config

    def __init__(self, config: Config, base: Path) -> None:
        super().__init__(config, base)
        self._marks: deque[Mark] = deque()
        self._builder: Any = None

    def split(self) -> tuple[Iterator[Document], Iterator[Document]]:
        return self._part("train"), self._part("valid")

    def _part(self, part: str) -> Iterator[Document]:
        return (document for belongs, document in self.stream() if belongs == part)

    def stream(self, start: int = 0, mark: Any = None) -> Iterator[tuple[str, Document]]:
        if mark is not None:
            self._marks = deque([Mark(*mark)])
        size = self.config.shuffle_buffer or 1
        block, skip = divmod(start, size)
        rows = self._rows(block * size)
        while buffer := list(islice(rows, size)):
            order = range(len(buffer)) if size == 1 else self._order(block, len(buffer))
            for i in list(order)[skip:]:
                text = buffer[i]
                digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
                part = "valid" if int.from_bytes(digest[:8], "big") / 2**64 < self.config.valid_share else "train"
                yield part, Document(f"{self.config.name}[{block * size + i}]", text)
            block, skip = block + 1, 0

    def _order(self, block: int, n: int) -> list[int]:
        """In which order the rows of a buffer come: the seed and the number of the buffer decide."""
        words = np.frombuffer(hashlib.sha256(f"shuffle {self.config.seed} {block}".encode()).digest(), np.uint32)
        return np.random.RandomState(words).permutation(n).tolist()

    def mark(self, start: int) -> Mark:
        size = self.config.shuffle_buffer or 1
        found = self._mark_before(start // size * size)
        while self._marks and self._marks[0].row < found.row:
            self._marks.popleft()  # nobody begins before what has been prepared
        return found

    def _mark_before(self, row: int) -> Mark:
        """The last place at or before a row."""
        return next((mark for mark in reversed(self._marks) if mark.row <= row), Mark(0, None, self._commit()))

    def fingerprint(self) -> str:
        described = self.config.model_dump_json(exclude={"files", "retries", "streaming"})
        return hashlib.sha256((described + self._content()).encode()).hexdigest()

    def _content(self) -> str:
        try:
            return "".join(digest_of(path) for path in self._files())
        except OSError as fault:
            raise ConfigError(f"cannot be read: {fault.strerror}", "files", str(fault.filename)) from None

    def facts(self) -> dict[str, str]:
        cfg = self.config
        if cfg.files:
            return {"corpus": self.fingerprint()[:12]}
        named = "/".join(filter(None, (cfg.name, cfg.config, cfg.split)))
        return {"corpus": f"{named}@{cfg.revision}" if cfg.revision else named}

    def _files(self) -> list[Path]:
        found: list[Path] = []
        for i, pattern in enumerate(self.config.files):
            if remote.is_address(pattern):
                found.append(remote.fetched(pattern, self.config.retries))
                continue
            matches = sorted(glob.glob(str(self.base / Path(pattern).expanduser()), recursive=True))
            if not matches:
                raise ConfigError("no such file", f"files[{i}]", pattern)
            found += map(Path, matches)
        return found

    def _rows(self, at: int) -> Iterator[str]:
        """The texts of all rows from number ``at`` on, whatever the network does meanwhile.

        Raises:
            Unfinished: it did not come back.
            ConfigError: what no waiting will mend.
        """
        patience = retries.Patience(self.config.name, self.config.retries)
        while True:
            try:
                for text in self._read(at):
                    at = at + 1
                    patience.went_on()
                    yield text
                if not at:
                    raise self._empty()
                return
            except ConfigError:
                raise
            except Exception as fault:
                _raise_if_full(fault)
                if self.config.files or not retries.may_pass(fault):
                    raise self._hopeless(fault) from None
                if not patience.again(fault, f"document {at:,}"):
                    raise self._gone(at, patience.failed, fault) from None

    def _gone(self, at: int, failed: int, fault: Exception) -> Unfinished:
        why = f"cannot be read on at document {at:,} after {failed} tries ({retries.reason(fault)})"
        how = "what has been prepared is kept: give the same command again to go on from there"
        return Unfinished(f"{why}; {how}", "name", self.config.name)

    def _where(self) -> tuple[str, Any]:
        """The knob that says what is read, and its value."""
        return ("files", self.config.files) if self.config.files else ("name", self.config.name)

    def _empty(self) -> ConfigError:
        return ConfigError("is empty: it has not one row", *self._where())

    def _hopeless(self, fault: Exception) -> ConfigError:
        while type(fault).__name__.startswith("DatasetGeneration") and fault.__cause__ is not None:
            fault = fault.__cause__
        if isinstance(fault, RuntimeError) and isinstance(fault.__cause__, StopIteration):
            return self._empty()
        if (path := self._without_rows()) is not None:  # the library stumbles over it and does not say so
            return ConfigError("is empty: it has not one row", "files", str(path))
        knob, value = self._where()
        if isinstance(fault, UnicodeDecodeError):
            byte = f"byte 0x{fault.object[fault.start]:02x}"
            return ConfigError(f"is not UTF-8: {byte} in a row of it", knob, value)
        return ConfigError(f"cannot be read: {retries.reason(fault)}", knob, value)

    def _without_rows(self) -> Path | None:
        """The first parquet file that holds no row."""
        if self.config.name != "parquet" or not self.config.files:
            return None
        import pyarrow.parquet

        for path in self._files():
            with suppress(OSError, pyarrow.ArrowInvalid):
                if not pyarrow.parquet.read_metadata(path).num_rows:
                    return path
        return None

    def _read(self, at: int) -> Iterator[str]:
        """The texts from row ``at`` on, up to the first fault."""
        mark, column = self._mark_before(at), self.config.column
        dataset = self._open(mark.commit)
        commit = self._commit()
        if not self.config.streaming:
            rows: Iterable[Any] = dataset.select(range(at, len(dataset))) if at < len(dataset) else ()
            number = at
        else:
            if mark.state is not None:
                dataset.load_state_dict(mark.state)
            rows, number = dataset, mark.row
        for row in rows:
            number += 1
            if column not in row:
                raise ConfigError(f"no such column; there are: {', '.join(row)}", "column", column)
            text = row[column]
            if text is not None and not isinstance(text, str):
                reason = f"holds {type(text).__name__} and not text in row {number - 1:,}"
                raise ConfigError(reason, "column", column)
            if number % EVERY == 0 and self.config.streaming and not self._knows(number):
                self._marks.append(Mark(number, dataset.state_dict(), commit))
            if number > at:
                yield text or ""

    def _knows(self, row: int) -> bool:
        return bool(self._marks) and self._marks[-1].row >= row

    def _commit(self) -> str | None:
        """The commit that the hub's files are of, so that a stream that is taken up again is of the same one."""
        found = self._builder and COMMIT.search(str(getattr(self._builder.config, "data_files", "")))
        return found[1] if found else None

    def _open(self, commit: str | None) -> Any:
        """The dataset from its beginning."""
        import datasets
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES as BUILDERS

        retries.quiet_libraries()
        cfg, files = self.config, [str(path) for path in self._files()]
        if files and cfg.name not in BUILDERS:  # the library would look for it on the hub
            raise ConfigError(f"is no builder for files; {nearest(cfg.name, BUILDERS)}", "name", cfg.name)
        more = {"sample_by": cfg.sample_by} if cfg.name == "text" and files else {}
        if self._builder is None and not files and not retries.hub_answers():
            raise ConnectionError("the hub cannot be reached")  # the library would try for minutes to find out
        if self._builder is None:
            self._builder = datasets.load_dataset_builder(
                cfg.name,
                cfg.config,
                data_files={cfg.split: files} if files else None,
                revision=cfg.revision or commit,
                cache_dir=str(default_cache() / "datasets"),
                **more,
            )
        if cfg.streaming:
            return self._builder.as_streaming_dataset(split=cfg.split)
        self._builder.download_and_prepare()
        return self._builder.as_dataset(split=cfg.split)


def _raise_if_full(fault: BaseException | None) -> None:
    """A disk without room is the cache's, whatever the library was doing: raise what the system said."""
    while fault is not None:
        if isinstance(fault, OSError) and fault.errno in NO_ROOM:
            raise fault
        fault = fault.__cause__ or fault.__context__

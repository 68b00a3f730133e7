"""Data files behind http:// and https:// addresses: fetched into the cache, however often the connection breaks."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path

from zoo.core.part import ConfigError
from zoo.data.cache import MANIFEST, NO_ROOM, default_cache, entry
from zoo.data.retries import Patience, may_pass, reason
from zoo.data.slots import Unfinished

PIECE = 2**20  # bytes that are written together
TIMEOUT = 60.0  # seconds without a byte
NOTES = "notes.json"  # what the server said of the file; only while it is being fetched
BEYOND = 416  # asked for bytes behind the end


def is_address(pattern: str) -> bool:
    """Whether a name of a data file is one of another machine."""
    return pattern.startswith(("http://", "https://"))


def fetched(address: str, tries: int) -> Path:
    """The file behind an address, in the cache; what is there already is not asked for again.

    An interrupted fetch goes on where it stopped, if the server says that the file is still the same.

    Args:
        address: http:// or https://.
        tries: in a row, before it gives up.

    Raises:
        Unfinished: the server does not answer for now; what has been fetched is kept.
        ConfigError: what no waiting will mend, or a cache that cannot be written.
    """
    key = f"fetched-{hashlib.sha256(address.encode()).hexdigest()[:32]}"
    folder = entry(default_cache(), key, lambda draft: _fetch(address, draft, tries), resumes=True)
    (file,) = (path for path in folder.iterdir() if path.name != MANIFEST)
    return file


def _fetch(address: str, folder: Path, tries: int) -> None:
    part = folder / "part"
    patience = Patience(address, tries, begun=part.exists())
    while True:
        before = _size(part)
        try:
            _go_on(address, part, folder / NOTES)
            break
        except OSError as fault:
            if fault.errno in NO_ROOM:
                raise
            _wait(fault, address, part, before, patience)
        except Exception as fault:  # broken off: http.client has exceptions of its own
            _wait(fault, address, part, before, patience)
    (folder / NOTES).unlink(missing_ok=True)
    part.rename(folder / _name(address))


def _wait(fault: Exception, address: str, part: Path, before: int, patience: Patience) -> None:
    """Until the next try.

    Raises:
        ConfigError: there is none.
    """
    if not may_pass(fault):
        raise ConfigError(f"cannot be read: {reason(fault)}", "files", address) from None
    if _size(part) > before:
        patience.went_on()
    if not patience.again(fault, f"byte {_size(part):,}"):
        why = f"cannot be read on at byte {_size(part):,} after {patience.failed} tries ({reason(fault)})"
        how = "what has been fetched is kept: give the same command again to go on from there"
        raise Unfinished(f"{why}; {how}", "files", address) from None


def _go_on(address: str, part: Path, notes: Path) -> None:
    """Ask for what is missing, up to the first fault."""
    size, known = _size(part), _read(notes)
    if size and size == known.get("size"):
        return
    headers = {"User-Agent": "ablation-zoo", "Accept-Encoding": "identity"}
    if size and known.get("version"):
        headers |= {"Range": f"bytes={size}-", "If-Range": known["version"]}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT) as answer:
            _write(answer, part, notes)
    except urllib.error.HTTPError as fault:
        if fault.code == BEYOND:  # the file has become shorter: from its beginning
            part.unlink(missing_ok=True)
            raise EOFError("the file has changed on the server") from None
        raise


def _write(answer: HTTPResponse, part: Path, notes: Path) -> None:
    goes_on = answer.status == 206
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range") or "")
    if goes_on and (found is None or int(found[1]) != _size(part)):
        raise EOFError("the server answers with other bytes than it was asked for")
    length = answer.headers.get("Content-Length")
    if not goes_on:
        told = {"size": length and int(length), "version": _version(answer)}
        notes.write_text(json.dumps(told), encoding="utf-8")
    with part.open("ab" if goes_on else "wb") as file:
        received = 0
        while piece := answer.read(PIECE):
            file.write(piece)
            file.flush()
            received += len(piece)
    if length is not None and received < int(length):  # the library takes an early end for the end
        raise EOFError(f"the connection closed after {received:,} of {int(length):,} bytes")


def _version(answer: HTTPResponse) -> str | None:
    """What tells one state of the file from the next, byte for byte; None: the server says nothing of the kind."""
    tag = answer.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


def _read(notes: Path) -> dict[str, object]:
    with suppress(OSError, ValueError):
        return dict(json.loads(notes.read_text(encoding="utf-8")))
    return {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _name(address: str) -> str:
    """The file's own name, by whose end the library tells how it is packed."""
    last = urllib.parse.unquote(urllib.parse.urlsplit(address).path).rpartition("/")[2]
    return re.sub(r"[^\w.-]", "_", last).strip(".")[-100:] or "file"

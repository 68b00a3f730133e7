"""Faults of a network that may pass: which they are, and how long to wait for the next try."""

from __future__ import annotations

import logging
import random
import ssl
import time
import urllib.error
import zlib

LONGEST = 60.0  # seconds
FIRST = 3  # tries before anything has been read: whoever has no network should not wait long
HTTP = ("aiohttp", "h11", "http", "httpcore", "httpcore2", "httpx", "httpx2", "requests", "urllib3")
BUSY = (408, 425, 429)  # beside 5xx
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, UnicodeError)


class Patience:
    """Tries in a row at one thing, a pause ahead of each and a line in the log.

    Args:
        name: what is being read.
        most: tries in a row.
        begun: whether something has been read before.
    """

    def __init__(self, name: str, most: int, begun: bool = False) -> None:
        self.name, self.most, self.begun, self.failed = name, most, begun, 0

    def went_on(self) -> None:
        """Something has been read since the last fault."""
        self.failed, self.begun = 0, True

    def again(self, fault: BaseException, place: str) -> bool:
        """Wait for the next try, which begins at ``place``; False: there is none."""
        self.failed += 1
        tries = self.most if self.begun else min(FIRST, self.most)
        if self.failed > tries:
            return False
        seconds = pause(self.failed)
        said = f"{self.name}: {reason(fault)}; again from {place} in {seconds:.1f} s ({self.failed}/{tries})"
        logging.getLogger("zoo").warning(said)
        wait(seconds)
        return True


def may_pass(fault: BaseException) -> bool:
    """Whether a later try may go better: timeouts, resets, busy servers, and data that came broken over a network."""
    chain: list[BaseException] = []
    while fault is not None and fault not in chain:
        chain.append(fault)
        fault = fault.__cause__ or fault.__context__
    codes = [code for f in chain if (code := _code(f)) is not None]
    if codes:
        return any(code in BUSY or code >= 500 for code in codes)
    if isinstance(chain[0], FINAL) or any(isinstance(f, ssl.SSLCertVerificationError) for f in chain):
        return False
    return any(
        isinstance(f, OSError | EOFError | zlib.error)
        or type(f).__module__.partition(".")[0] in HTTP
        or type(f).__name__ in ("ArrowInvalid", "ZstdError", "LZMAError", "JSONDecodeError")
        for f in chain
    )


def _code(fault: BaseException) -> int | None:
    """What the server answered, where it did."""
    if isinstance(fault, urllib.error.HTTPError):
        return fault.code
    code = getattr(getattr(fault, "response", None), "status_code", None)
    return code if isinstance(code, int) else None


def reason(fault: BaseException) -> str:
    """A fault in one line."""
    words = " ".join(str(fault).split()) or type(fault).__name__
    return words if len(words) <= 160 else f"{words[:150]} ..."


def pause(failed: int) -> float:
    """Seconds before the next try after ``failed`` tries in a row: 1, 2, 4, ... up to LONGEST, up to half of it cut at random.

    Chance keeps many readers of one server from coming back all at once.
    """
    return min(LONGEST, 2.0 ** (failed - 1)) * random.uniform(0.5, 1.0)


def wait(seconds: float) -> None:
    """Do nothing for a while."""
    time.sleep(seconds)


def hub_answers() -> bool:
    """Whether the hub can be reached now; asking first spares an offline user a minute of retries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # whatever its HTTP library raises: no route, no name, proxy refused
        return False
    return True


def quiet_libraries() -> None:
    """Leave retrying to us: the libraries below would wait on their own terms and say so in several lines each."""
    import datasets

    for knob in ("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES"):
        setattr(datasets.config, knob, 1)
    for knob in dir(datasets.config):
        if knob.startswith("STREAMING_") and knob.endswith("RETRY_INTERVAL"):
            setattr(datasets.config, knob, 0)
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    below = logging.getLogger("huggingface_hub.utils._http")
    if not any(isinstance(f, _OneLine) for f in below.filters):
        below.addFilter(_OneLine())


class _OneLine(logging.Filter):
    """Of the two lines that the hub's library writes for every try of its own, the one with the reason."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "[Retry " not in record.getMessage()

"""Prepares the dataset of tests/hub_server.py, in a process of its own since the address of a hub is read at import.

CACHE KNOBS: the source's knobs as JSON. The address is in HF_ENDPOINT. Prints what came of it as JSON.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

from huggingface_hub import constants
from preparing import Wanted

from zoo.core.part import ConfigError
from zoo.data import encode, hub, retries
from zoo.data.prepare import prepare
from zoo.data.slots import Source, Tokenizer


def main(cache: str, knobs: str) -> None:
    waits: list[float] = []
    lines: list[str] = []
    constants.HF_HUB_DOWNLOAD_TIMEOUT = 0.3
    time.sleep = lambda seconds: None  # the hub's library waits, too
    retries.wait = waits.append
    hub.EVERY, encode.CHUNK, encode.Encoding.every = 64, 20_000, 0.0

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    for name in ("zoo", "huggingface_hub", "datasets"):
        logging.getLogger(name).handlers = [Lines()]
        logging.getLogger(name).propagate = False
    source = Source.parse({"kind": "hf", "name": "o/d", "config": "cosmo", **json.loads(knobs)})
    told: dict[str, object] = {}
    try:
        found = prepare(Wanted(source, Tokenizer.parse("byte")), Path(), Path(cache), None, 0)
        told = {"fingerprint": found.fingerprint, "documents": found.facts["train_documents"]}
    except ConfigError as fault:
        told = {"error": str(fault), "type": type(fault).__name__}
    print(json.dumps({**told, "waits": waits, "lines": lines}))


if __name__ == "__main__":
    main(*sys.argv[1:])

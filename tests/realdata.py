"""Real texts and tokenizers for tests, from the folder ZOO_TEST_DATA, else ../shared/data beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("ZOO_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")


def real(name: str) -> Path:
    """The path of a real file; where it is absent the test is skipped."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"{name} is not in {FOLDER}: set ZOO_TEST_DATA to a folder that holds it")
    return path

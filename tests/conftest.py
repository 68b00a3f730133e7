"""One thread per test process, so that processes can share the cores; hypothesis draws the same examples every time.

Pictures and page take longer than the small grids of most tests, so in this process only tests marked ``pictures`` draw them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from faults import planted
from hypothesis import Phase, settings

from zoo import plugins

torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("mutants", settings.get_profile("suite"), phases=(Phase.explicit, Phase.generate))
settings.load_profile("suite")
logging.getLogger("torch.__trace").propagate = False  # else a failure after compiling shows thousands of its lines


plugins.discover()  # a kind that is first imported inside a test is no kind of that test


@pytest.fixture(autouse=True)
def own_kinds() -> Iterator[None]:
    """Kinds that a test registers are gone after it, whichever test comes next."""
    read = dict(plugins._loaded)
    with planted():
        yield
    plugins._loaded.clear()
    plugins._loaded.update(read)


@pytest.hookimpl(tryfirst=True)  # ahead of every fixture
def pytest_runtest_setup(item: pytest.Item) -> None:
    from zoo.report import publish, session

    drawn = item.get_closest_marker("pictures") is not None
    session.write_pictures = publish.write_pictures if drawn else _left_out


def _left_out(*study: object) -> list[str]:
    return []

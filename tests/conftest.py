"""One thread per test process, so that processes can share the cores; hypothesis draws the same examples every time."""

from __future__ import annotations

import logging

import torch
from hypothesis import Phase, settings

torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("mutants", settings.get_profile("suite"), phases=(Phase.explicit, Phase.generate))
settings.load_profile("suite")
logging.getLogger("torch.__trace").propagate = False  # else a failure after compiling shows thousands of its lines

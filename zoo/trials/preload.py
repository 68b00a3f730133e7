"""Everything that a worker imports and knows of the source, for the process that workers are copies of (processes.py).

Installed packages with kinds of their own are left to each worker: what they do while they are imported nobody can know, and a
process that has used a GPU cannot be copied.
"""

from __future__ import annotations

import gc
import importlib

from zoo import collector

with collector.at_rest():
    import sentencepiece  # noqa: F401  (what reading a tokenizer imports late)
    import typer  # noqa: F401  (what the command's own file imports, which every worker runs)

    import zoo.trials.run  # noqa: F401
    from zoo.plugins import OWN
    from zoo.recipe import Recipe
    from zoo.trials.address import code_hash

    for folder in OWN:
        importlib.import_module(folder)
    code_hash(Recipe())  # to parse most of the source that is hashed for a trial takes as long as a short trial
gc.collect()
gc.freeze()  # what was imported stays: not to be looked through again in every worker, nor copied for its marks

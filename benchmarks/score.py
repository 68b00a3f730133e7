"""What scorers cost on a finished trial: bits per byte, seconds, and peak memory while each of them works.

    python benchmarks/score.py TRIAL [SCORER ...]      # without scorers: plain, sliding and rolling at stride 64

A trial is a folder, or variant-seed under any folder of results; a scorer is a kind's name or a TOML table of its knobs.
"""

from __future__ import annotations

import sys
import time

import torch

from zoo.machine import PeakMemory
from zoo.report.proof import scorer_named
from zoo.trials.open import open_trial

USUAL = ("plain", "sliding", "rolling")


def main(name: str, *scorers: str) -> None:
    trial = open_trial(name)
    torch.set_num_threads(trial.recipe.machine.threads or 1)
    model, text, context = trial.model(), trial.text(), trial.recipe.model.context
    bos = text.tokenizer.bos if trial.recipe.data.document_mask == "segments" else None
    print(f"{trial.folder.name}: context {context}, {len(text.valid):,} tokens, {torch.get_num_threads()} threads")
    for word in scorers or USUAL:
        scorer = scorer_named(word)
        memory, began, own = PeakMemory("cpu"), time.perf_counter(), time.process_time()
        before = memory.read()
        score = scorer.build().score(model, text.valid, text.valid_spans, context, trial.recipe.evaluate.batch, bos)
        print(
            f"{scorer.label():<24} {score.bits_per_byte:.4f} bits/byte  {time.perf_counter() - began:7.1f} s on the clock "
            f"{time.process_time() - own:7.1f} s of processor time  {(memory.read() - before) / 1e6:5.0f} MB beside the "
            f"{before / 1e6:.0f} MB of the process"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

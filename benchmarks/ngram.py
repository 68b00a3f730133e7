"""How fast n-gram contexts are counted, orders 2 to 7, on one core: tokens a second, and bytes a token at the peak.

    python benchmarks/ngram.py            # 1, 2 and 4 million tokens

Streams: uniform over 1,024 ids; bytes of Python's own standard library, over and over where it is too short.
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

from zoo.scoring.grams import levels
from zoo.scoring.slots import Scorer

SIZES = (1_000_000, 2_000_000, 4_000_000)
WIDTHS = range(1, 7)


def streams(n: int) -> dict[str, np.ndarray]:
    """Tokens by the name of what they are, (n,) uint16 each."""
    folder = Path(sys.modules["json"].__file__).parents[1]
    text = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return {
        "uniform, V 1,024": np.random.default_rng(0).integers(0, 1024, n).astype(np.uint16),
        "text, V 256": np.resize(np.frombuffer(text, np.uint8), n).astype(np.uint16),
    }


def counted(tokens: np.ndarray) -> None:
    for _ in levels(tokens, WIDTHS, 1024):
        pass


def timed(call: object, *given: object) -> tuple[float, float]:
    """Seconds on the clock and of this process, the better of two runs."""
    found = []
    for _ in range(2):
        clock, own = time.perf_counter(), time.process_time()
        call(*given)
        found.append((time.perf_counter() - clock, time.process_time() - own))
    return min(found)


def peak(tokens: np.ndarray) -> float:
    """Bytes a token at the peak, the stream itself not counted."""
    tracemalloc.start()
    counted(tokens)
    found = tracemalloc.get_traced_memory()[1] / len(tokens)
    tracemalloc.stop()
    return found


def main() -> None:
    import zoo.scoring

    assert zoo.scoring
    print(f"numpy {np.__version__}")
    for n in SIZES:
        nats = np.full(n - 1, 5.0)
        for name, tokens in streams(n).items():
            for what in ("counts", "ngram_backoff", "ngram_witten_bell", "ngram_as_published"):
                if what == "counts":
                    clock, own = timed(counted, tokens)
                else:
                    scorer = Scorer.parse(what).build()
                    clock, own = timed(scorer.mixed, tokens, nats, nats, 1024, 1024, lambda share: None)
                print(
                    f"{n:>9,} tokens, {name:<18} {what:<20} {n / clock / 1e6:5.2f} M/s on the clock, "
                    f"{n / own / 1e6:5.2f} M/s of processor time"
                )
            print(f"{'':9} {'':8} {name:<18} {'counts':<20} {peak(tokens):5.1f} bytes a token at the peak")


if __name__ == "__main__":
    main()

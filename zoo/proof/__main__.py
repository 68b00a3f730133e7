"""``python -m zoo.proof ARTIFACT PROOF TEXT``: decode a proof in a process that knows nothing else.

Prints shares of the work as it goes on. Exit code 2: a file that cannot be used, with the reason.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(artifact: str, proof: str, text: str) -> int:
    from zoo.core.part import ConfigError
    from zoo.proof.decode import decode
    from zoo.proof.file import save

    try:
        save(Path(text), decode(Path(artifact), Path(proof), lambda share: print(f"{share:.4f}", flush=True)))
    except ConfigError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

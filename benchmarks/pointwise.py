"""Pointwise work that is written by hand for CPUs, against torch's own: RMS norms and squared ReLUs, forward and backward.

python -m benchmarks.pointwise [threads]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.activations import leaky_relu2, relu2
from zoo.core.normalise import rms_norm

Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
ROUNDS = 40


def pairs(width: int) -> dict[str, Pair]:
    """Ours and torch's of each."""
    return {
        "rms_norm": (lambda x: rms_norm(x, None, 1e-6), lambda x: F.rms_norm(x, (width,), None, 1e-6)),
        "relu2": (relu2, lambda x: F.relu(x).square()),
        "leaky_relu2": (leaky_relu2, lambda x: F.leaky_relu(x, 0.5).square()),
    }


def milliseconds(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The quickest of several forwards and backwards."""
    weight, best = torch.randn_like(x), float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        torch.autograd.grad(call(x), x, weight)
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def main() -> None:
    """One line per function and shape, after their gradients have been compared."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds forward + backward")
    for shape in ((2048, 128), (2048, 4, 32), (2048, 512), (2048, 2048)):
        x = torch.randn(*shape, requires_grad=True)
        for name, (ours, theirs) in pairs(shape[-1]).items():
            grads = [torch.autograd.grad(f(x).square().sum(), x)[0] for f in (ours, theirs)]
            torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
            took = [milliseconds(f, x) for f in (ours, theirs)]
            print(f"{name:12s} {shape!s:16s} ours {took[0]:8.3f}  torch {took[1]:8.3f}  ratio {took[1] / took[0]:.2f}")


if __name__ == "__main__":
    main()

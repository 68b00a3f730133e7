"""Where plain products beat SDPA on this CPU: forward and backward of causal attention, best of several runs.

    python benchmarks/attend.py [threads]

The crossing point is PLAIN_UP_TO in zoo/core/attend.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.core.attend import plain

SHAPES = ((8, 4, 2, 128, 16), (8, 12, 4, 256, 64), (4, 8, 4, 512, 64), (4, 8, 8, 1024, 64), (1, 8, 4, 2048, 64))


def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The fused kernel."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def milliseconds(call: Callable[..., Tensor], leaves: list[Tensor], seconds: float = 1.0) -> float:
    """The quickest forward and backward within ``seconds`` (and at least three)."""
    weight, best, end, runs = torch.randn_like(leaves[0]), float("inf"), time.perf_counter() + seconds, 0
    while time.perf_counter() < end or runs < 3:
        start = time.perf_counter()
        torch.autograd.grad(call(*leaves, leaves[0].shape[-1] ** -0.5), leaves, weight)
        best, runs = min(best, time.perf_counter() - start), runs + 1
    return 1e3 * best


def main() -> None:
    """One line per dtype and shape."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds forward + backward")
    for dtype in (torch.float32, torch.bfloat16):
        for batch, heads, groups, tokens, width in SHAPES:
            leaves = [
                torch.randn(batch, tokens, n, width, dtype=dtype).transpose(1, 2).requires_grad_()
                for n in (heads, groups, groups)
            ]
            took = {call.__name__: milliseconds(call, leaves) for call in (plain, sdpa)}
            shape = f"B {batch} H {heads} G {groups} T {tokens} h {width}"
            print(f"{str(dtype)[6:]:9s} {shape:32s}" + "".join(f"{name:>8s} {ms:8.2f}" for name, ms in took.items()))


if __name__ == "__main__":
    main()

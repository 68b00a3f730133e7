"""Newton-Schulz: every singular value of a matrix moved close to 1, by products alone.

A step is X <- a X + (b A + c A^2) X with A = X X^T. It is written in three ways that are equal but for rounding:

- as it stands, whole stacks at once: for GPUs, where small products are cheap by the dozen, and for bfloat16;
- *by halves*: A and A^2 are symmetric, so only their upper bands are multiplied out and the rest is mirrored;
- *by the Gram matrix*, for X wider than it is high: with P = a I + b A + c A^2 the next A is P A P, so that X is touched once
  for A and once for (P_3 P_2 P_1) X, whatever happens between. A squares the singular values, and what rounding adds to the
  small ones grows about twelvefold a step, so A is taken from X again after three steps: without that the result in fp32 was
  off by up to 2 % ("keller") and 14 % ("polar_express", whose first steps are steeper: with it still by 0.04 %). So
  "keller" in fp32 alone goes this way.

Sources: KellerJordan/Muon; Polar Express, arXiv:2505.16932.
"""

from __future__ import annotations

import torch
from torch import Tensor

Triple = tuple[float, float, float]

KELLER: Triple = (3.4445, -4.7750, 2.0315)
POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# Measured in fp32 on two cores of an AMD EPYC with AVX2, torch 2.13; benchmarks/muon.py measures the whole again.
ALONE_FROM = 512  # rows from which one matrix after another beats the whole stack at once
BAND = 128  # the fewest rows of a symmetric product that are worth a product of their own; from 4 BAND on it is cut
GRAM_FROM = 1.5  # columns per row from which the Gram matrix pays
UNSEEN = 3  # steps that the Gram matrix makes before it is taken from X again


def newton_schulz(x: Tensor, steps: int = 5, coefficients: str = "keller") -> Tensor:
    """Each matrix of x (n, r, c), r <= c, with its singular values moved close to 1. In the dtype of x.

    "keller" sends singular values in [0.01, 1] (of the matrix over its Frobenius norm) into [0.68, 1.14], "polar_express"
    into [0.85, 1.15], each in five steps; "polar_express" repeats its last step if there are more.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=wide)
    x = x / (norm + 1e-7 if coefficients == "keller" else 1.02 * norm + 1e-6).to(x.dtype)
    triples = [KELLER if coefficients == "keller" else POLAR_EXPRESS[min(i, 4)] for i in range(steps)]
    rows, cols = x.shape[-2:]
    if x.dtype != torch.float32 or x.device.type != "cpu" or rows < ALONE_FROM:
        return _as_it_stands(x, triples)
    by_gram = coefficients == "keller" and cols >= rows * GRAM_FROM
    for one in x:  # all of a matrix's products stay in the cache
        if by_gram:
            _by_gram(one, triples)
        else:
            _by_halves(one, triples)
    return x


def _as_it_stands(x: Tensor, triples: list[Triple]) -> Tensor:
    """(n, r, c) -> (n, r, c)."""
    for a, b, c in triples:
        gram = torch.bmm(x, x.mT)  # (n, r, r)
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b A + c A^2
        # Putting a on the factor's diagonal instead would save a copy, but triples the rounding error in bf16.
        x = torch.baddbmm(x, factor, x, beta=a)
    return x


def _by_halves(x: Tensor, triples: list[Triple]) -> None:
    """(r, c), in place."""
    moved = torch.empty_like(x)
    now, then = x, moved
    for a, b, c in triples:
        gram = _symmetric(now, now.T)
        factor = _symmetric(gram, gram, gram, b, c)
        torch.addmm(now, factor, now, beta=a, out=then)
        now, then = then, now
    if now is not x:
        x.copy_(now)


def _by_gram(x: Tensor, triples: list[Triple]) -> None:
    """(r, c), in place."""
    for start in range(0, len(triples), UNSEEN):
        x.copy_(torch.mm(_polynomial(_symmetric(x, x.T), triples[start : start + UNSEEN]), x))


def _polynomial(gram: Tensor, triples: list[Triple]) -> Tensor:
    """P_k ... P_1 for A = ``gram``, (r, r). All of the factors commute, so every product of them is symmetric."""
    product = None
    for i, (a, b, c) in enumerate(triples):
        factor = _symmetric(gram, gram, gram, b, c)  # P - a I
        if i + 1 < len(triples):
            once = _symmetric(factor, gram, gram, a)  # P A
            gram = _symmetric(factor, once, once, a)  # P A P
        if product is None:
            product = factor
            product.diagonal().add_(a)
        else:
            product = _symmetric(factor, product, product, a)
    return product


def _symmetric(
    left: Tensor, right: Tensor, plus: Tensor | None = None, beta: float = 0.0, alpha: float = 1.0
) -> Tensor:
    """beta plus + alpha left right, (r, k) (k, r) -> (r, r), where that is known to be symmetric."""
    size = left.shape[0]
    out = left.new_empty(size, size)
    for start, end in _bands(size):
        band, rows, cols = out[start:end, start:], left[start:end], right[:, start:]
        if plus is None:
            torch.mm(rows, cols, out=band)
        else:
            torch.addmm(plus[start:end, start:], rows, cols, beta=beta, alpha=alpha, out=band)
        out[start:end, :start] = out[:start, start:end].T
    return out


def _bands(size: int) -> list[tuple[int, int]]:
    """First row and the row after the last: half of the rows, half of the rest, and so on."""
    if size < 4 * BAND:
        return [(0, size)]
    bands, start = [], 0
    while start < size:
        end = start + max(BAND, (size - start) // 2)
        end = size if size - end < BAND else end
        bands.append((start, end))
        start = end
    return bands

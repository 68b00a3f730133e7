"""Head: from the last stream to logits and loss, at least in fp32, without ever holding all logits at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zoo.core.params import Embedding, Linear, Role, Use
from zoo.core.slots import IGNORE, Head, Site


class Projection(Head):
    """What tied and untied heads share: softcap, and the loss in chunks whose logits are recomputed in the backward."""

    class Config(Head.Config):
        """Knobs of both."""

        softcap: PositiveFloat | None = Field(None, examples=[5.0, 30.0])  # c of c tanh(z / c), Gemma 2; None: none
        chunk_elements: PositiveInt = 2**24  # logits held at once, N x V

    def __init__(self, cfg: Config, site: Site, embedding: Embedding) -> None:
        super().__init__()
        self.softcap, self.chunk = cfg.softcap, max(1, cfg.chunk_elements // site.vocab_size)

    def matrix(self) -> Tensor:
        """The (V, D) matrix from stream to logits."""
        raise NotImplementedError

    def logits(self, x: Tensor) -> Tensor:
        return self._logits(x, self.matrix())

    def nll(self, x: Tensor, targets: Tensor) -> Tensor:
        flat, wanted, weight = x.flatten(0, 1), targets.flatten(), self.matrix()  # (N, D), (N,), (V, D)
        if flat.shape[0] <= self.chunk:
            return self._nll(flat, wanted, weight).view_as(targets)
        pieces = zip(flat.split(self.chunk), wanted.split(self.chunk), strict=True)
        parts = [
            checkpoint(self._nll, piece, want, weight, use_reentrant=False, preserve_rng_state=False)
            for piece, want in pieces
        ]
        return torch.cat(parts).view_as(targets)

    def _nll(self, x: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(self._logits(x, weight), targets, ignore_index=IGNORE, reduction="none")

    def _logits(self, x: Tensor, weight: Tensor) -> Tensor:
        z = F.linear(x, weight.to(x.dtype))
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


class Tied(Projection, kind="tied"):
    """The embedding's own matrix turns the stream into logits. Source: arXiv:1608.05859; softcap: Gemma 2, arXiv:2408.00118."""

    class Config(Projection.Config):
        pass

    def __init__(self, cfg: Config, site: Site, embedding: Embedding) -> None:
        super().__init__(cfg, site, embedding)
        self._shared = (embedding,)  # in a tuple: seen, but not registered a second time

    def matrix(self) -> Tensor:
        return self._shared[0].weight

    def extra_flops(self, context: int) -> float:
        return 2.0 * self.matrix().numel()


class Untied(Projection, kind="untied"):
    """A matrix of its own turns the stream into logits. Source: compared with the tied one in arXiv:1608.05859."""

    class Config(Projection.Config):
        pass

    def __init__(self, cfg: Config, site: Site, embedding: Embedding) -> None:
        super().__init__(cfg, site, embedding)
        self.out = Linear(site.dim, site.vocab_size, role=Role.HEAD, init=Use.HEAD)

    def matrix(self) -> Tensor:
        return self.out.weight

"""Head: from the last stream to logits and loss, at least in fp32, without ever holding all logits at once."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from zoo.core.cross_entropy import linear_cross_entropy, logits_of
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
        return logits_of(x, self.matrix(), self.softcap)

    def nll(self, x: Tensor, targets: Tensor) -> Tensor:
        flat = linear_cross_entropy(
            x.flatten(0, 1), self.matrix(), targets.flatten(), IGNORE, self.chunk, self.softcap
        )  # (N,)
        return flat.view_as(targets)


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

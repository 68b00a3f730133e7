"""The slots of a model, their signatures, and the legend of shape letters.

Legend, used in every comment of the project::

    B batch            D width of the stream (dim)      E experts          V vocabulary
    T tokens of call   H query heads                    K experts chosen   L layers
    S keys so far      G key/value heads                M latents          N tokens, flattened (B * T)
    h head width       F hidden width of a feed-forward

A layer is a block made of blocks; attention, feed-forward, stem pieces and layers share one forward. Sources: the cut at
the residual stream follows OLMo-core's SequenceMixer; nested Configs follow torchtitan's ``Configurable``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ClassVar

from pydantic import PositiveInt
from torch import Tensor, nn

from zoo.core.params import HasParameters
from zoo.core.part import Part, PartConfig
from zoo.core.wires import SEGMENTS, Bus, Wire


@dataclass(frozen=True)
class Site:
    """Where a block stands, so that ``dim`` is written once in a recipe.

    ``index`` is the layer's number (-1 outside the layers). A block may use it for a constant, which it keeps as a
    buffer; it never stores the number, since that makes the compiler build a graph per layer.
    """

    dim: int
    n_layers: int = 1
    vocab_size: int = 256
    context: int = 1024
    index: int = -1

    def at(self, dim: int) -> Site:
        """The same place with another width, e.g. of one head."""
        return replace(self, dim=dim)


class Block(HasParameters, Part, nn.Module):
    """A piece of the model: tensors and a Bus in, a tensor out; nothing is remembered during forward.

    Declare ``reads`` and ``writes`` (wires), ``roles`` and ``inits`` (bare parameters). ``scope``, set by the stage, is the
    block's path within it; every method in ``speaks`` sees the Bus under that path.
    """

    reads: ClassVar[tuple[Wire, ...]] = ()
    writes: ClassVar[tuple[Wire, ...]] = ()
    speaks: ClassVar[tuple[str, ...]] = ("forward",)
    scope: str = ""

    def __init_subclass__(cls, *, kind: str | None = None, slot: str | None = None) -> None:
        super().__init_subclass__(kind=kind, slot=slot)
        for name in cls.speaks:
            if name in cls.__dict__:
                setattr(cls, name, _under_own_path(cls.__dict__[name]))

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        """Called after the optimizer's step with this block's own stats, summed over micro-batches. Default: nothing."""

    def extra_flops(self, context: int) -> float:
        """Forward FLOPs per token beside those of ``Linear`` children, at ``context`` tokens (2 per multiply-add).

        Elementwise work is not counted; attention counts the full T x T products, as every published counter does.
        """
        return 0.0

    def idle_parameters(self) -> int:
        """How many of this block's own and its children's parameters one token does not use (experts not chosen)."""
        return 0

    def cache_elements(self) -> int:
        """Elements kept per token while decoding by this block itself (children say their own)."""
        return 0


def _under_own_path(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def run(self: Block, *args: Any) -> Any:
        return method(self, *[a.at(self.scope) if isinstance(a, Bus) else a for a in args])

    return run


class Norm(Block, slot="norm"):
    """``(x) -> x``, (B, T, D) -> (B, T, D); also per head on (..., h). A norm may stand in a stem."""

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Position(Block, slot="position"):
    """``(t, bus) -> t``: queries or keys (B, H, T, h) told where they stand."""

    reads = (SEGMENTS,)

    class Config(PartConfig):
        """What a host may ask of any position."""

        def is_partial(self) -> bool:
            """Whether a number of entries, not a share of the width, is told where it stands."""
            return False

    def forward(self, t: Tensor, bus: Bus) -> Tensor:
        raise NotImplementedError


class Value(Block, slot="value"):
    """``(v, bus) -> v``: this layer's values (B, G, T, h), perhaps mixed with an earlier layer's."""

    identity: ClassVar[bool] = False  # v comes back as it is: a host may remember what v is made of instead of v

    def forward(self, v: Tensor, bus: Bus) -> Tensor:
        raise NotImplementedError


class Output(Block, slot="output"):
    """``(y, x, v, bus) -> y``: what may be done to attention's result before its output projection.

    y (B, H, T, h) is attention's result, x (B, T, D) attention's own input, v (B, G, T, h) the current tokens' values.
    Built at a Site whose ``dim`` is D; the heads are in ``HeadSite``.
    """

    def forward(self, y: Tensor, x: Tensor, v: Tensor, bus: Bus) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class HeadSite(Site):
    """A Site inside an attention: ``dim`` is the width of the stream, beside it the heads of the result."""

    n_heads: int = 1
    head_dim: int = 1

    @classmethod
    def within(cls, site: Site, n_heads: int, head_dim: int) -> HeadSite:
        """``site`` inside an attention whose result has these heads."""
        return cls(site.dim, site.n_layers, site.vocab_size, site.context, site.index, n_heads, head_dim)


class Attention(Block, slot="attention"):
    """``(x, bus) -> x``: mixes tokens, causally. (B, T, D) -> (B, T, D)."""

    reads = (SEGMENTS,)

    class Config(PartConfig):
        """Knobs that every attention has, and that therefore survive a swap of kind."""

        n_heads: PositiveInt = 4
        head_dim: PositiveInt | None = None  # None: dim / n_heads
        position: Position.Config = Position.pick("rope")
        value: Value.Config = Value.pick("plain")
        output: tuple[Output.Config, ...] = ()

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        raise NotImplementedError


class Balance(Block, slot="balance"):
    """How a mixture's load is kept even: ``select`` changes scores for choosing only, ``observe`` sees what was chosen.

    Built at a Site whose ``dim`` is the number of experts.
    """

    speaks = ("observe",)

    def select(self, scores: Tensor) -> Tensor:
        """Scores (N, E) to choose by; weights are always taken from the scores as they were."""
        return scores

    def observe(self, probs: Tensor, counts: Tensor, bus: Bus) -> None:
        """probs (N, E) sum to one over E and carry gradients; counts (E,) int64 are the assignments of this call."""


class FeedForward(Block, slot="ffn"):
    """``(x, bus) -> x``: works on each token alone. (B, T, D) -> (B, T, D)."""

    class Config(PartConfig):
        """The knob that every feed-forward has."""

        hidden_dim: PositiveInt | None = None  # F; None: 4 x dim

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        raise NotImplementedError


class Stem(Block, slot="stem"):
    """``(x, bus) -> x`` at the model's entrance or at a layer's. (B, T, D) -> (B, T, D), causal.

    A knob that holds stems also takes norms; ``run_stem`` applies either.
    """

    guests = (Norm,)

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        raise NotImplementedError


def run_stem(stem: Iterable[nn.Module], x: Tensor, bus: Bus) -> Tensor:
    """The pieces of a stem in order: stems see the Bus, norms only the stream."""
    for piece in stem:
        x = piece(x) if isinstance(piece, Norm) else piece(x, bus)
    return x


class Layer(Block, slot="layer"):
    """``(x, bus) -> x``: one layer, a block made of blocks. (B, T, D) -> (B, T, D)."""

    class Config(PartConfig):
        """What every layer is made of."""

        stem: tuple[Stem.Config, ...] = ()
        norm: Norm.Config = Norm.pick("rms_norm")
        attention: Attention.Config = Attention.pick("gqa")
        ffn: FeedForward.Config = FeedForward.pick("swiglu")

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        raise NotImplementedError


class Trunk(Block, slot="trunk"):
    """``(x, steps) -> x``: the order in which layers are applied; ``steps`` are the layers as plain functions."""

    def forward(self, x: Tensor, steps: list[Callable[[Tensor], Tensor]]) -> Tensor:
        raise NotImplementedError


class Head(Block, slot="head"):
    """From the last stream to the loss. Built with the model's embedding; logits and loss are at least fp32."""

    def logits(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V)."""
        raise NotImplementedError

    def nll(self, x: Tensor, targets: Tensor) -> Tensor:
        """(B, T, D), (B, T) -> (B, T): nats per token, in chunks; 0 where the target is ``IGNORE``."""
        raise NotImplementedError


IGNORE = -100  # a target that is not scored

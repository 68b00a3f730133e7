"""The model: an embedding, a stem, a trunk of layers, a norm and a head. It knows slots, never a block.

A Stage is the pure edge around a layer: it is all that the model calls, compiles or recomputes, it gets exactly the wires
that its blocks declare, and it returns exactly what they wrote. Nothing is remembered in a module during forward.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.core.cache import Cache
from zoo.core.model_config import ModelConfig
from zoo.core.params import Embedding, initialise
from zoo.core.part import ConfigError, build_child
from zoo.core.slots import Block, Head, Norm, Site, Trunk, run_stem
from zoo.core.tables import tabulate
from zoo.core.wires import NOISE, OFFERED, SEGMENTS, TOKENS, X0, Bus, Past, Report, Wire, stage_key


class Stage(nn.Module):
    """A block behind a pure edge: ``(x, inbox, past) -> (x, outbox, report, present)``, tensors in, tensors out."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.parts = {name: part for name, part in block.named_modules() if isinstance(part, Block)}
        for name, part in self.parts.items():
            part.scope = name
        self.reads = _declared(self.parts, "reads")
        self.writes = _declared(self.parts, "writes")

    def forward(
        self, x: Tensor, inbox: dict[Wire, Tensor], past: Past | None = None
    ) -> tuple[Tensor, dict[Wire, Tensor], Report, dict[str, Tensor]]:
        bus = Bus(inbox, past)
        x = self.block(x, bus)
        return x, *bus.close()


def _declared(parts: Mapping[str, Block], what: str) -> tuple[Wire, ...]:
    """The wires that blocks declare, those of their base classes included, each once."""
    wires = (w for part in parts.values() for c in type(part).__mro__ for w in c.__dict__.get(what, ()))
    return tuple(dict.fromkeys(wires))


class _Once:
    """A stage that answers what another like it has answered to the same shapes."""

    def __init__(self, stage: Stage, like: str, called: dict[Any, Any]) -> None:
        self.stage, self.like, self.called = stage, like, called
        self.reads = stage.reads

    def __call__(self, x: Tensor, inbox: dict[Wire, Tensor]) -> Any:
        given = (self.like, _kind(x), *((wire.name, _kind(t)) for wire, t in inbox.items()))
        if given not in self.called:
            self.called[given] = self.stage(x, inbox)
        return self.called[given]


def _kind(t: Tensor) -> tuple[torch.Size, torch.dtype, torch.device]:
    return t.shape, t.dtype, t.device


class Entrance(nn.ModuleList):
    """The model's stem as one block."""

    def forward(self, x: Tensor, bus: Bus) -> Tensor:
        return run_stem(self, x, bus)


class Out(NamedTuple):
    """What a call returns. With targets ``logits`` is None, without them ``nll`` is."""

    nll: Tensor | None  # (B, T) nats per token
    logits: Tensor | None  # (B, T, V)
    losses: dict[str, Tensor]  # auxiliary losses summed over layers by name; never part of nll
    stats: dict[str, Tensor]  # "<stage>.<block>/<name>", detached


class Model(nn.Module):
    """A decoder language model assembled from parts.

    Args:
        config: the ``[model]`` tree, with ``vocab_size`` known.
        stream: the dtype of the residual stream; None: that of the parameters. Parameters stay as they are.
        seed: seed of the first draw; None leaves the parameters undefined (to be loaded).
        called: on the meta device, what stages of other models have answered; this one's are added.

    Raises:
        ConfigError: parts that do not fit together, with the dotted path.
    """

    def __init__(
        self,
        config: ModelConfig,
        stream: torch.dtype | None = None,
        seed: int | None = 0,
        called: dict[Any, Any] | None = None,
    ) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ConfigError("is not known: set it, or build the model from a recipe with a tokenizer", "vocab_size")
        self.config, self.stream, self.recompute = config, stream, False
        site = Site(config.dim, config.n_layers, config.vocab_size, config.context)
        self.embedding = Embedding(config.vocab_size, config.dim)
        self.stem = Entrance(build_child(config, "stem", site))
        self.layer = nn.ModuleList(_build_layer(c, site, i) for i, c in enumerate(config.layers()))
        self.trunk: Trunk = build_child(config, "trunk", site)
        self.norm: Norm = build_child(config, "norm", site)
        self.head: Head = build_child(config, "head", site, self.embedding)
        self.stages = [Stage(self.stem), *(Stage(layer) for layer in self.layer)]  # a plain list: views, not children
        self._check_wires()
        if seed is not None and not self.embedding.weight.is_meta:
            initialise(self, seed, config.init.build(), config.n_layers)
        self._check_shapes({} if called is None else called)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        segments: Tensor | None = None,
        cache: Cache | None = None,
        noise: Tensor | None = None,
        last: int | None = None,
    ) -> Out:
        """tokens (B, T), targets (B, T) or None, segments (B, T): the document of each token.

        With a ``cache`` the call goes on where the last one stopped. ``noise`` is ``noise_key(seed, step, micro_step)``.
        ``last``: answer for so many tokens at the end of each row alone, which spares the head the others.
        """
        if cache is not None:
            segments = cache.admit(tokens, segments)
        wires: dict[Wire, Tensor] = {TOKENS: tokens}
        if segments is not None:
            wires[SEGMENTS] = segments
        losses: dict[str, Tensor] = {}
        stats: dict[str, Tensor] = {}
        noise = noise if noise is None else noise.to(tokens.device)
        x = self.embedding(tokens)
        x = x if self.stream is None else x.to(self.stream)
        steps = [self._step(i, wires, losses, stats, cache, noise) for i in range(len(self.stages))]
        x = wires[X0] = steps[0](x)
        x = self.norm(self.trunk(x, steps[1:]))
        if cache is not None:
            cache.length += tokens.shape[1]
        if last is not None and last < tokens.shape[1]:
            x, targets = x[:, -last:], None if targets is None else targets[:, -last:]
        if targets is None:
            return Out(None, self.head.logits(x), losses, stats)
        return Out(self.head.nll(x, targets), None, losses, stats)

    def _step(
        self,
        index: int,
        wires: dict[Wire, Tensor],
        losses: dict[str, Tensor],
        stats: dict[str, Tensor],
        cache: Cache | None,
        noise: Tensor | None,
    ) -> Callable[[Tensor], Tensor]:
        """One stage as a function of the stream alone; what it writes and reports goes into the tables."""
        stage = self.stages[index]

        def run(x: Tensor) -> Tensor:
            inbox = {wire: wires[wire] for wire in stage.reads if wire in wires}
            if noise is not None:
                inbox[NOISE] = stage_key(noise, index)
            try:
                if self.recompute and torch.is_grad_enabled() and cache is None:
                    x, outbox, report, _ = checkpoint(stage, x, inbox, use_reentrant=False, preserve_rng_state=False)
                elif cache is None:
                    x, outbox, report, _ = stage(x, inbox)
                else:
                    x, outbox, report, cache.stages[index] = stage(x, inbox, cache.past(index))
            except ConfigError as fault:
                raise ConfigError(f"{_stage_name(index)}: {fault.message}", fault.path, fault.value) from None
            wires.update(outbox)
            for key, value in report.losses.items():
                name = key.rpartition("/")[2]
                losses[name] = losses[name] + value if name in losses else value
            stats.update({_stat_key(index, key): value for key, value in report.stats.items()})
            return x

        return run

    def cache(self, batch: int, capacity: int) -> Cache:
        """An empty memory for decoding ``batch`` rows of up to ``capacity`` tokens each."""
        return Cache(batch, capacity, len(self.stages))

    @torch.no_grad()
    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        """Give every block its own stats, summed over micro-batches and ranks, once the optimizer has stepped."""
        for index, stage in enumerate(self.stages):
            for scope, part in stage.parts.items():
                prefix = _stat_key(index, f"{scope}/")
                if own := {k.removeprefix(prefix): v for k, v in stats.items() if k.startswith(prefix)}:
                    part.after_step(own)

    def compile_stages(self, backend: str | None = "inductor") -> None:
        """Compile layer by layer: one graph serves all layers of equal structure. None: from now on without a compiler."""
        for stage in self.stages:
            if backend is None:
                stage._compiled_call_impl = None
            else:
                stage.compile(backend=backend)

    def _check_wires(self) -> None:
        """Every read has an earlier writer of the same shape, or a ConfigError names both."""
        live = {wire.name: (wire, "the model") for wire in OFFERED if wire is not X0}
        for index, stage in enumerate(self.stages):
            if index == 1:
                live[X0.name] = (X0, "the model")  # what the stem puts out, so nothing within the stem can read it
            for wire in (*stage.writes, *stage.reads):
                known, writer = live.get(wire.name, (wire, ""))
                if known.shape != wire.shape:
                    raise ConfigError(
                        f"wire {wire.name!r} is written by {writer} as ({known.shape}) but "
                        f"{_stage_name(index)} takes it as ({wire.shape})"
                    )
                if not writer and wire not in stage.writes:
                    raise ConfigError(f"{_stage_name(index)} reads wire {wire.name!r}, which nothing before it writes")
            live = {wire.name: (wire, _stage_name(index)) for wire in stage.writes if wire.name not in live} | live

    def likes(self) -> list[str]:
        """For each stage its knobs and the facts it was built with: stages of which these are equal differ in numbers alone."""
        c = self.config
        facts = [c.dim, c.n_layers, c.vocab_size, c.context, str(self.stream)]
        kinds = [[tabulate(piece) for piece in c.stem], *map(tabulate, c.layers())]
        return [json.dumps([facts, kind]) for kind in kinds]

    @torch.no_grad()
    def _check_shapes(self, called: dict[Any, Any]) -> None:
        """One call with a few tokens, so that shapes that do not fit fail here and by name.

        Of stages that are alike and are given equal shapes, one is called. A call is cheap where it computes: the meta
        device's operations are Python, and take ten times as long as those on so few tokens. A fault that the meta device does
        not know is none of shapes (an operation for GPUs alone, before the model is sent to one), and is left to training.
        """
        tokens = torch.zeros(2, min(8, self.config.context), dtype=torch.long, device=self.embedding.weight.device)
        training, stages = self.training, self.stages
        self.stages = [_Once(stage, like, called) for stage, like in zip(stages, self.likes(), strict=True)]
        self.eval()
        try:
            self(tokens, tokens)
        except ConfigError:
            raise
        except Exception:
            if tokens.is_meta:
                raise
            with torch.device("meta"):
                Model(self.config, self.stream, seed=None)
        finally:
            self.stages = stages
            self.train(training)


class Uncalled(Model):
    """A model whose shapes are not checked: whoever builds it calls it at once."""

    def _check_shapes(self, called: dict[Any, Any]) -> None:
        pass


def _build_layer(config: Layer.Config, site: Site, index: int) -> Layer:
    try:
        return config.build(replace(site, index=index))
    except ConfigError as fault:
        raise ConfigError(f"{fault.message} (layer {index})", fault.path, fault.value).under("layer") from None


def _stage_name(index: int) -> str:
    return "stem" if index == 0 else f"layer.{index - 1}"


def _stat_key(index: int, key: str) -> str:
    """``layer.3`` + ``ffn/load`` -> ``layer.3.ffn/load``."""
    return f"{_stage_name(index)}{'' if key.startswith('/') else '.'}{key}"

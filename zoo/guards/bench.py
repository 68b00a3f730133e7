"""A recipe's model on the bench: its layer structure with random parameters, called the way the loop calls it."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.core.params import Constant, Role, Rows, entries
from zoo.core.slots import Layer
from zoo.core.tables import tabulate
from zoo.core.wires import noise_key
from zoo.cost import cost, cost_of
from zoo.data.batches import segments
from zoo.model import Model, ModelConfig, Out

LENGTH = 64  # tokens of a row
LONGEST = 512  # of the few rows that are as long as in training
VOCABULARY = 256  # rows of the embedding, where the recipe has more
FLOPS = {"cpu": 5e9, "cuda": 5e12}  # of one forward and backward: how many rows are probed at once
PARAMETERS = {"cpu": 2e7, "cuda": 1e9}  # up to so many the whole model is probed, above them one of each structure
ENOUGH = (0.6, 0.3)  # spread of what starts constant, and of buffers: wide enough to open a gate that starts shut


class Precision(NamedTuple):
    """In which dtype a model is probed, and what rounding may do in it."""

    parameters: torch.dtype
    stream: torch.dtype | None
    gradient: float  # largest gradient that counts as none, relative to the largest of its row
    value: (
        float | None
    )  # likewise for a change of logits; None: rounding may flip a choice of experts, so none is asked


def exact(device: str) -> Precision:
    """fp64, where a leak and rounding cannot be mistaken for each other; fp32 on devices without it."""
    if device == "mps":
        return Precision(torch.float32, None, 1e-5, 1e-4)
    return Precision(torch.float64, None, 1e-12, 1e-10)


class _Chosen(ModelConfig):
    """A model of which some layers are left."""

    chosen: tuple[Layer.Config, ...] = ()

    def layers(self) -> tuple[Layer.Config, ...]:
        return self.chosen or super().layers()


def cut(config: ModelConfig, every_layer: bool = False) -> ModelConfig:
    """The same model with a small vocabulary, and of equal layers only the first two."""
    times: dict[str, int] = {}
    chosen = []
    for layer in config.layers():
        name = repr(tabulate(layer))
        times[name] = times.get(name, 0) + 1
        if every_layer or times[name] <= 2:
            chosen.append(layer)
    knobs = {name: getattr(config, name) for name in ModelConfig.model_fields}
    size = {"vocab_size": min(config.vocab_size or VOCABULARY, VOCABULARY), "n_layers": len(chosen), "where": ()}
    return _Chosen.model_construct(**{**knobs, **size, "chosen": tuple(chosen)})


def whole(config: ModelConfig, few: Bench) -> ModelConfig:
    """The model with all its layers, or with the few that are on the bench where all would be too large."""
    config = cut(config, every_layer=True)
    if config.n_layers == few.model.config.n_layers or cost(config).parameters > PARAMETERS[few.kind]:
        return few.model.config
    return config


class Bench:
    """One model with random parameters, and how to ask it.

    Args:
        config: which model, its vocabulary known.
        device: where it runs.
        precision: its dtypes.
        masked: whether documents are kept apart by a mask.
        recompute: whether each layer is computed again in the backward.
        seed: of parameters, tokens and places.
    """

    def __init__(
        self, config: ModelConfig, device: str, precision: Precision, masked: bool, recompute: bool, seed: int
    ) -> None:
        self.device, self.masked = torch.device(device), masked
        self.kind = "cuda" if device.startswith("cuda") else "cpu"
        self.random = random.Random(seed)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        with self.device:
            self.model = Model(config, seed=None)
        stir(self.model, self.generator)
        self.model.recompute = recompute
        self.noise = noise_key(seed, 1)
        self.settle(precision)
        per_token = cost_of(self.model).flops_per_token
        self.length = min(LENGTH, config.context)  # tokens of a row
        self.rows = max(2, min(self.length - 1, int(FLOPS[self.kind] / (per_token * self.length))))
        self.longest = max(self.length, min(LONGEST, config.context, int(FLOPS[self.kind] / (per_token * 2))))

    def stretch(self) -> None:
        """Go on with two rows as long as in training, or as long as can be afforded."""
        self.length, self.rows = self.longest, 2

    def settle(self, precision: Precision, device: str | None = None) -> None:
        """Go on in another precision, and on another device."""
        if device is not None and torch.device(device) != self.device:
            self.device = torch.device(device)
            self.generator = torch.Generator(self.device).manual_seed(self.generator.initial_seed())
        self.precision, self.model.stream = precision, precision.stream
        self.model = self.model.to(self.device, precision.parameters)

    def tokens(self, rows: int) -> Tensor:
        """Random ids (B, T), the same for every equal bench; id 0 begins a document, and about two begin in each row."""
        shape, size = (rows, self.length), self.model.config.vocab_size
        ids = torch.randint(min(1, size - 1), size, shape, generator=self.generator, device=self.device)
        if not self.masked:
            return ids
        begins = torch.rand(shape, generator=self.generator, device=self.device) < 2 / self.length
        return ids.masked_fill(begins, 0)

    def others(self, tokens: Tensor) -> Tensor:
        """Ids (B, T), none of which is the one in ``tokens`` at its place."""
        size = self.model.config.vocab_size
        shift = torch.randint(min(1, size - 1), size, tokens.shape, generator=self.generator, device=self.device)
        return (tokens + shift) % size

    def normal(self, shape: torch.Size) -> Tensor:
        """Random weights of a sum of outputs."""
        return torch.randn(shape, generator=self.generator, device=self.device)

    def cuts(self, share: float = 1.0) -> Tensor:
        """One cut between past and future for each row (B, 1): every one there is, or as many as there is time for."""
        places, rows = range(1, self.length), max(2, round(share * self.rows))
        drawn = list(places) if rows >= len(places) else self.random.sample(places, rows)
        return torch.tensor(drawn, device=self.device)[:, None]

    def ask(self, tokens: Tensor, training: bool, targets: Tensor | None = None, seed: int = 0) -> Out:
        """A call as the loop makes it (training) or a scorer; ``seed`` is that of torch's own generators."""
        self.model.train(training)
        documents = segments(tokens, 0) if self.masked else None
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.set_grad_enabled(training):
            torch.manual_seed(seed)
            return self.model(tokens, targets, segments=documents, noise=self.noise if training else None)

    def logits(self, tokens: Tensor, training: bool, seed: int = 0) -> Tensor:
        """(B, T, V), without a graph."""
        logits = self.ask(tokens, training, seed=seed).logits
        assert logits is not None
        return logits.detach()

    def gradient(self, tokens: Tensor, training: bool, outputs: Tensor) -> Tensor:
        """How much a random sum of the logits at ``outputs`` (bool, B T) depends on each input: (B, T), at least 0."""
        x = self.model.embedding(tokens).detach().requires_grad_()  # (B, T, D)
        hook = self.model.embedding.register_forward_hook(lambda *_: x)
        self.model.train(training)
        documents = segments(tokens, 0) if self.masked else None
        try:
            with torch.enable_grad():
                out = self.model(tokens, segments=documents, noise=self.noise if training else None)
                weight = self.normal(out.logits.shape).to(out.logits.dtype) * outputs[..., None]
                (gradient,) = torch.autograd.grad((out.logits * weight).sum(), x)
        finally:
            hook.remove()
        return gradient.abs().amax(-1).double() if self.device.type != "mps" else gradient.abs().amax(-1)


@torch.no_grad()
def stir(model: Model, generator: torch.Generator) -> None:
    """Give every parameter a random value, those that start constant too, so that no zero hides what they would let through.

    Matrices get a spread at which their outputs are as large as their inputs: a softmax over larger ones has one winner, and
    the rest of what it sees would be rounded away.
    """
    for entry in entries(model):
        p = entry.parameter
        if p.ndim > 1:
            p.normal_(0.0, 0.5 if entry.role is Role.EMBEDDING else 1 / math.sqrt(p.shape[-1]), generator=generator)
            continue
        p.fill_(0.0)
        if isinstance(entry.init, Constant | Rows) and math.prod(p.shape):
            entry.init(p, generator)
        p.add_(ENOUGH[0] * torch.randn(p.shape, generator=generator, device=p.device))
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, buffer in model.state_dict(keep_vars=True).items():
        if name not in known and buffer.is_floating_point():
            buffer.add_(ENOUGH[1] * torch.randn(buffer.shape, generator=generator, device=buffer.device).to(buffer))

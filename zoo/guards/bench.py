"""A recipe's model on the bench: its layer structure with random parameters, called the way the loop calls it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.core.params import Constant, Role, Rows, entries
from zoo.core.slots import Layer
from zoo.core.tables import tabulate
from zoo.core.wires import noise_key
from zoo.cost import cost_of
from zoo.data.batches import segments
from zoo.model import Model, ModelConfig, Out, Uncalled

LENGTH = 64  # tokens of a row
LONGEST = 512  # of the few rows that are as long as in training
VOCABULARY = 256  # rows of the embedding, where the recipe has more
FLOPS = {"cpu": 3e9, "cuda": 5e12}  # of a forward and backward of one row for each cut: how many cuts are asked
LONG_FLOPS = {"cpu": 5e9, "cuda": 5e12}  # of a forward and backward of the few long rows: how long they are
PER_ROW = 4  # cuts that are asked of one row of tokens
LEAST, LONG = 2, 2  # cuts that are asked at the least, and of the long rows
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
    if config.n_layers == few.model.config.n_layers or _parameters(config, few) > PARAMETERS[few.kind]:
        return few.model.config
    return config


def _parameters(config: ModelConfig, few: Bench) -> int:
    """How many parameters ``config`` has, by those of the layers of each structure that are on the bench."""
    by_part = cost_of(few.model).by_part
    of = {repr(tabulate(layer)): by_part[f"layer.{i}"] for i, layer in enumerate(few.model.config.layers())}
    outside = sum(n for part, n in by_part.items() if not part.startswith("layer."))
    return outside + sum(of[repr(tabulate(layer))] for layer in config.layers())


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
            self.model: Model = Uncalled(config, seed=None)
        stir(self.model, self.generator)
        self.model.recompute = recompute
        self.noise = noise_key(seed, 1)
        self.settle(precision)
        per_token = cost_of(self.model).flops_per_token
        self.length = min(LENGTH, config.context)  # tokens of a row
        self.n_cuts = max(2, min(self.length - 1, int(FLOPS[self.kind] / (per_token * self.length))))
        self.longest = max(self.length, min(LONGEST, config.context, int(LONG_FLOPS[self.kind] / (per_token * 2))))
        self.decks: dict[str, list[int]] = {}
        self.answers: dict[bool, tuple[Tensor, Tensor]] = {}

    def stretch(self) -> None:
        """Go on with two rows as long as in training, or as long as can be afforded."""
        self.length, self.n_cuts, self.decks, self.answers = self.longest, LONG, {}, {}

    def settle(self, precision: Precision, device: str | None = None) -> None:
        """Go on in another precision, and on another device."""
        if device is not None and torch.device(device) != self.device:
            self.device = torch.device(device)
            self.generator = torch.Generator(self.device).manual_seed(self.generator.initial_seed())
        self.precision, self.model.stream, self.answers = precision, precision.stream, {}
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

    def cuts(self, share: float = 1.0, per_row: int = PER_ROW) -> Tensor:
        """Cuts between past and future (R, K), K for each of R rows: every one there is, or as many as there is time for.

        They are dealt like cards: a place comes again only when all have been asked, by whatever probe.
        """
        n = min(self.length - 1, max(LEAST, round(share * self.n_cuts)))
        rows = max(2, math.ceil(n / per_row))
        per_row = math.ceil(n / rows)
        deck = self.decks.setdefault("all" if share == 1.0 else "some", [])
        drawn = [self._deal(deck) for _ in range(rows * per_row)]
        return torch.tensor(drawn, device=self.device).view(rows, per_row)

    def _deal(self, deck: list[int]) -> int:
        if not deck:
            deck += self.random.sample(range(1, self.length), self.length - 1)
        return deck.pop()

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

    def answers_to(self, versions: Sequence[Tensor], training: bool) -> list[Tensor]:
        """The logits (R, T, V) of several versions of the same rows (R, T).

        In training each by itself, since noise goes with the number of a row.
        """
        if training:
            return [self.logits(tokens, training) for tokens in versions]
        return list(self.logits(torch.cat(list(versions)), training).split(len(versions[0])))

    def answer(self, training: bool, rows: int) -> tuple[Tensor, Tensor]:
        """Some tokens (B, T) and their logits (B, T, V), computed once for all probes that need no more than these."""
        if training not in self.answers:
            tokens = self.tokens(rows)
            self.answers[training] = tokens, self.logits(tokens, training)
        return self.answers[training]

    def gradients(self, tokens: Tensor, training: bool, outputs: Sequence[Tensor]) -> list[Tensor]:
        """How much a random sum of the logits at each of ``outputs`` (bool, B T) depends on each input: (B, T), at least 0.

        One forward serves all of them.
        """
        x = self.model.embedding(tokens).detach().requires_grad_()  # (B, T, D)
        hook = self.model.embedding.register_forward_hook(lambda *_: x)
        self.model.train(training)
        documents = segments(tokens, 0) if self.masked else None
        found = []
        try:
            with torch.enable_grad():
                logits = self.model(tokens, segments=documents, noise=self.noise if training else None).logits
                for i, chosen in enumerate(outputs):
                    weight = self.normal(logits.shape).to(logits.dtype) * chosen[..., None]
                    (gradient,) = torch.autograd.grad(logits, x, weight, retain_graph=i + 1 < len(outputs))
                    size = gradient.abs().amax(-1)
                    found.append(size if self.device.type == "mps" else size.double())
        finally:
            hook.remove()
        return found

    def gradient(self, tokens: Tensor, training: bool, outputs: Tensor) -> Tensor:
        """``gradients`` for one choice of outputs."""
        (found,) = self.gradients(tokens, training, [outputs])
        return found


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

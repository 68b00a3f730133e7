"""Where a kind can stand, and the small models in which it is examined there.

A slot's hosts are read off the Configs: whoever has a knob of that slot is a host, so a new host is found by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

import zoo.blocks  # noqa: F401  (the kinds register themselves)
from zoo.core.params import Init
from zoo.core.part import ConfigError, Knobs, Part, PartConfig
from zoo.core.slots import Block, Site
from zoo.core.tree import Holds, structure
from zoo.model import Model, ModelConfig

SITE = Site(dim=32, n_layers=2, vocab_size=53, context=32)


class Step(NamedTuple):
    """One knob on the way from the model down to a part."""

    host: type[Knobs]
    knob: str
    holds: Holds


Place = tuple[Step, ...]


def slots() -> dict[str, type[Part]]:
    """The slots of a model by name."""
    return {name: slot for name, slot in Part.slots.items() if issubclass(slot, Block | Init)}


def all_kinds() -> list[type[Part]]:
    """Every registered kind of every slot of a model."""
    return [kind for slot in slots().values() for kind in slot.kinds.values()]


def find(name: str) -> type[Part]:
    """The kind called ``"gqa"``, or ``"position.none"`` where two slots have a kind of one name.

    Raises:
        LookupError: no such kind, or several.
    """
    slot, _, kind = name.rpartition(".")
    found = [part for part in all_kinds() if part.kind == kind and slot in ("", part.slot)]
    if len(found) != 1:
        names = ", ".join(label(part) for part in found or all_kinds())
        raise LookupError(f"{name!r} names {len(found)} kinds; there are: {names}")
    return found[0]


def label(part: type[Part]) -> str:
    """``slot.kind``."""
    return f"{part.slot}.{part.kind}"


def _hosts(part: type[Part]) -> Iterator[Step]:
    """Every knob, of the model or of a kind, that takes ``part``."""
    for config in (ModelConfig, *(kind.Config for kind in all_kinds())):
        for name, knob in structure(config).items():
            slot = getattr(knob.config, "part", None)
            if slot is not None and part in slot.all_kinds().values():
                yield Step(config, name, knob.holds)


def places(part: type[Part]) -> list[Place]:
    """Every way into a model: each knob that takes ``part``, its owner by the shortest way."""
    if part not in slots().get(part.slot or "", Part).__dict__.get("kinds", {}).values():
        raise LookupError(f"{part.__qualname__} is no kind of a model's slot, or it is registered no more")
    return [(*_route(step.host), step) for step in _hosts(part)]


def _route(host: type[Knobs], seen: tuple[type[Knobs], ...] = ()) -> Place:
    """The way from the model to the kind that owns the Config ``host``: the shortest, through the layers if any is."""
    if host is ModelConfig:
        return ()
    ways = [s for s in _hosts(host.part) if s.host is not host and s.host not in seen]
    routes = [(*_route(step.host, (*seen, host)), step) for step in ways]
    reaching = [route for route in routes if route and route[0].host is ModelConfig]
    return min(reaching, key=lambda route: (route[0].knob != "layer", len(route))) if reaching else ()


def describe(place: Place) -> str:
    """``model.layer.attention[gqa].value``: the last host by its kind."""
    owner = "" if place[-1].host is ModelConfig else f"[{place[-1].host.part.kind}]"
    return ".".join(["model", *(step.knob for step in place[:-1])]) + f"{owner}.{place[-1].knob}"


def assemble(part: type[Part], knobs: Mapping[str, Any], place: Place, site: Site) -> ModelConfig:
    """A model that has ``part`` with ``knobs`` at ``place`` in every layer, and defaults elsewhere."""
    table: Any = part.Config.model_validate(dict(knobs))
    for step in reversed(place):
        value = (table,) if step.holds is Holds.MANY else table
        if step.host is not ModelConfig:
            table = step.host(**{step.knob: value})
        else:
            size = {"dim": site.dim, "n_layers": site.n_layers}
            table = ModelConfig(**size, vocab_size=site.vocab_size, context=site.context, **{step.knob: value})
    return table


class Specimen:
    """A small model of which promises are asked, its parameters randomised, those that start at zero too.

    Models are kept per dtype and shared by the promises, which leave them as they are.

    Args:
        config: the model, vocabulary included.
        seed: of the parameters and of the tokens.
        model: a model of this config to ask instead of a newly drawn one.
    """

    def __init__(self, config: ModelConfig, seed: int = 0, model: Model | None = None) -> None:
        self.config, self.seed = config, seed
        model = randomised(Model(config, seed=seed), seed) if model is None else model
        self._models: dict[tuple[torch.dtype, torch.dtype | None], Model] = {}
        self._models[torch.float64, None] = model.double().eval()

    def __str__(self) -> str:
        return f"the model {self.config.model_dump(exclude_none=True)}"

    @property
    def breaks(self) -> Mapping[str, str]:
        """The promises that must be broken, and why."""
        return {}

    @property
    def excused(self) -> set[str]:
        """The promises that some kind of the model declares as broken."""
        return {name for module in self.model().modules() if isinstance(module, Part) for name in module.breaks}

    def model(self, dtype: torch.dtype = torch.float64, stream: torch.dtype | None = None) -> Model:
        """The model in evaluation mode, parameters in ``dtype``; not to be changed."""
        if (dtype, stream) not in self._models:
            made = copy.deepcopy(self._models[torch.float64, None]).to(dtype)
            made.stream = stream
            self._models[dtype, stream] = made
        return self._models[dtype, stream]

    def fresh(self, dtype: torch.dtype = torch.float64, stream: torch.dtype | None = None) -> Model:
        """A copy to train or to change, in training mode."""
        return copy.deepcopy(self.model(dtype, stream)).train()

    def tokens(self, rows: int, n_tokens: int, seed: int = 0) -> Tensor:
        """Random token ids (B, T)."""
        generator = torch.Generator().manual_seed(1000 * self.seed + seed)
        return torch.randint(self.config.vocab_size, (rows, n_tokens), generator=generator)


class Subject(Specimen):
    """One kind with its knobs at one place of a small model, defaults elsewhere."""

    def __init__(
        self, part: type[Part], knobs: Mapping[str, Any], place: Place, site: Site = SITE, seed: int = 0
    ) -> None:
        self.part, self.knobs, self.place, self.site = part, knobs, place, site
        super().__init__(assemble(part, knobs, place, site), seed)

    def __str__(self) -> str:
        knobs = ", ".join(f"{name} = {_short(value)}" for name, value in self.knobs.items())
        size = f"dim {self.site.dim}, {self.site.n_layers} layers"
        return f"{label(self.part)} ({knobs or 'default knobs'}) at {describe(self.place)}, {size}"

    @property
    def breaks(self) -> Mapping[str, str]:
        return self.part.breaks


def _short(value: Any) -> str:
    if isinstance(value, PartConfig):
        value = value.model_dump(exclude_none=True, exclude_defaults=True)
    return repr(value)


@torch.no_grad()
def randomised(model: Model, seed: int = 0, std: float = 0.2) -> Model:
    """``model`` with N(0, std^2) added to every parameter, and a tenth of it to every buffer of its state, in place.

    Matrices that were drawn wilder than 0.3 are calmed first: what is asked is the block, not the init. Buffers get
    less because selection biases, the ones there are, move in thousandths and starve experts when large.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = [t for name, t in model.state_dict(keep_vars=True).items() if name not in parameters]
    for matrix in (p for p in model.parameters() if p.ndim > 1):
        matrix.mul_(0.3 / matrix.square().mean().sqrt().clamp_min(0.3))
    for size, tensors in ((std, list(model.parameters())), (0.1 * std, buffers)):
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.add_(size * torch.randn(tensor.shape, generator=generator).to(tensor.dtype))
    return model


def subjects(
    part: type[Part], knobs: Mapping[str, Any] | None = None, site: Site = SITE, seed: int = 0
) -> tuple[list[Subject], dict[str, str]]:
    """``part`` in every host that accepts it, and the hosts that refuse it with their reasons."""
    accepted: list[Subject] = []
    refused: dict[str, str] = {}
    for place in places(part):
        try:
            accepted.append(Subject(part, knobs or {}, place, site, seed))
        except ConfigError as fault:
            refused[describe(place)] = str(fault)
    return accepted, refused

"""The ``[model]`` table of a recipe: sizes, slots, and the layers that differ from the others."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveInt, ValidationError, field_validator, model_validator

from zoo.core.params import Init
from zoo.core.part import ConfigError, Knobs, faults
from zoo.core.slots import Head, Layer, Norm, Stem, Trunk
from zoo.core.tables import tabulate
from zoo.core.tree import merge


class ModelConfig(Knobs):
    """The ``[model]`` table. ``where`` is the only way in which layers differ: select, patch, in order."""

    vocab_size: PositiveInt | None = None  # None: the tokenizer's
    context: PositiveInt = 256
    dim: PositiveInt = 128
    n_layers: PositiveInt = 4
    init: Init.Config = Init.pick("normal")
    stem: tuple[Stem.Config, ...] = ()
    trunk: Trunk.Config = Trunk.pick("plain")
    layer: Layer.Config = Layer.pick("pre_norm")
    where: tuple[dict[str, Any], ...] = ()
    norm: Norm.Config = Norm.pick("rms_norm")
    head: Head.Config = Head.pick("tied")

    @field_validator("where")
    @classmethod
    def _as_toml_has_them(cls, where: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        return tuple(map(tabulate, where))

    @model_validator(mode="after")
    def _patches_fit(self) -> ModelConfig:
        self.layers()  # a ConfigError knows the entry; pydantic carries it (see part.faults)
        return self

    def layers(self) -> tuple[Layer.Config, ...]:
        """The Config of every layer, patches applied.

        Raises:
            ConfigError: a selection outside the layers, or a patch that the layer's kinds do not know.
        """
        if not self.where:
            return (self.layer,) * self.n_layers
        unpatched = (tabulate(self.layer), self.layer)
        made = [unpatched] * self.n_layers  # the table of each layer, and what it says; of equal layers the same pair
        for i, entry in enumerate(self.where):
            patch = {name: value for name, value in entry.items() if name != "layers"}
            try:
                for indices in _alike(made, select(entry.get("layers"), self.n_layers)):
                    table = merge(Layer.Config, made[indices[0]][0], patch)
                    pair = (table, Layer.parse(table))
                    for index in indices:
                        made[index] = pair
            except ConfigError as fault:
                raise fault.under(f"where[{i}]") from None
            except ValidationError as fault:
                raise faults(fault)[0].under(f"where[{i}]") from None
        return tuple(layer for _, layer in made)


def _alike(made: list[Any], chosen: list[int]) -> list[list[int]]:
    """The numbers in ``chosen`` in groups that stand for the same thing in ``made``."""
    groups: dict[int, list[int]] = {}
    for index in chosen:
        groups.setdefault(id(made[index]), []).append(index)
    return list(groups.values())


def select(pattern: Any, n_layers: int) -> list[int]:
    """Layer numbers of ``"all"``, ``"3"``, ``"-4:"``, ``"::2"``, or several of them with commas between.

    Raises:
        ConfigError: not such a pattern, or a layer that does not exist.
    """
    chosen: list[int] = []
    for piece in str(pattern).split(","):
        try:
            bounds = (
                [int(b) if b.strip() else None for b in piece.split(":")] if piece.strip() != "all" else [None, None]
            )
            found = range(n_layers)[slice(*bounds)] if len(bounds) > 1 else [range(n_layers)[bounds[0]]]
        except (ValueError, TypeError, IndexError):
            found = []
        if not found:
            raise ConfigError(f'selects none of the {n_layers} layers; write e.g. "-4:" or "0,2"', "layers", pattern)
        chosen += found
    return chosen

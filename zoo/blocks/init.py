"""Init: how weights are first drawn where the block leaves it to the recipe."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import NonNegativeFloat, PositiveFloat

from zoo.core.params import Constant, Init, Normal, Orthogonal, Rule, Use


class NormalInit(Init, kind="normal"):
    """N(0, std^2) for everything; outputs of residual branches the same, divided by sqrt(2 L), or zero.

    Source: GPT-2, "Language Models are Unsupervised Multitask Learners" (2019).
    """

    class Config(Init.Config):
        std: PositiveFloat = 0.02
        output: Literal["same", "scaled", "zero"] = "scaled"
        embedding_std: PositiveFloat | None = None  # None: std
        head_std: NonNegativeFloat | None = None  # None: std

    def rule(self, use: Use, shape: tuple[int, ...], n_layers: int) -> Rule:
        cfg = self.config
        if use is Use.EMBEDDING:
            return Normal(cfg.std if cfg.embedding_std is None else cfg.embedding_std)
        if use is Use.HEAD:
            return Normal(cfg.std if cfg.head_std is None else cfg.head_std)
        if use is Use.OUTPUT and cfg.output != "same":
            return Normal(cfg.std / math.sqrt(2 * n_layers)) if cfg.output == "scaled" else Constant(0.0)
        return Normal(cfg.std)


class OrthogonalInit(Init, kind="orthogonal"):
    """Orthogonal matrices, zero outputs of residual branches, a small normal embedding.

    Source: openai/parameter-golf#828, after KellerJordan/modded-nanogpt.
    """

    class Config(Init.Config):
        gain: PositiveFloat = 1.0
        embedding_std: PositiveFloat = 0.005

    def rule(self, use: Use, shape: tuple[int, ...], n_layers: int) -> Rule:
        if use is Use.EMBEDDING:
            return Normal(self.config.embedding_std)
        return Constant(0.0) if use in (Use.OUTPUT, Use.HEAD) else Orthogonal(self.config.gain)


class FanInInit(Init, kind="fan_in"):
    """N(0, 1 / fan-in): every matrix keeps the size of what it reads; outputs of residual branches start at zero.

    Source: LeCun et al., "Efficient BackProp" (1998); zero outputs, arXiv:1901.09321.
    """

    class Config(Init.Config):
        embedding_std: PositiveFloat = 0.02

    def rule(self, use: Use, shape: tuple[int, ...], n_layers: int) -> Rule:
        if use is Use.EMBEDDING:
            return Normal(self.config.embedding_std)
        return Constant(0.0) if use in (Use.OUTPUT, Use.HEAD) else Normal(shape[-1] ** -0.5)

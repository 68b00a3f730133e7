"""Codecs: raw, one width for all matrices, or a width for each by role and name."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Literal

from zoo.codecs.slots import Codec, Coding, Share, Weight
from zoo.core.params import Role
from zoo.core.part import Knobs

Storage = Literal["int2", "int3", "int4", "int5", "int6", "int7", "int8", "float16", "float32"]
TABLES = (Role.MATRIX, Role.EMBEDDING, Role.HEAD)  # what is worth rounding; scalars and control decide much with little


class Raw(Codec, kind="raw"):
    """Every number in fp32, as it is.

    Source: the plain checkpoint, against which codecs are measured.
    """

    class Config(Codec.Config):
        coding: Coding.Config = Coding.pick("stored")

    def storage(self, weight: Weight) -> str:
        return "float32"


class Int8(Codec, kind="int8"):
    """Matrices, embeddings and head as 8-bit codes with an fp16 scale for each row, all else in fp16.

    Source: arXiv:2208.07339 (LLM.int8, row by row), symmetric.
    """

    width = "int8"

    def storage(self, weight: Weight) -> str:
        small = weight.tensor.numel() <= self.config.small
        return "float16" if small or weight.role not in TABLES else self.width


class Int6(Int8, kind="int6"):
    """The same with 6-bit codes.

    Source: openai/parameter-golf#828, its attention matrices.
    """

    width = "int6"


class Int5(Int8, kind="int5"):
    """The same with 5-bit codes.

    Source: openai/parameter-golf#828, its MLP matrices.
    """

    width = "int5"


class Rule(Knobs):
    """How tensors that ``match`` are stored: a role's name, or a pattern of full names such as ``layer.*.ffn.*``."""

    match: str
    store: Storage

    def fits(self, weight: Weight) -> bool:
        """Whether this rule speaks of a tensor."""
        if self.match in list(Role):
            return weight.role == self.match
        return fnmatch.fnmatchcase(weight.name, self.match)


class Mixed(Codec, kind="mixed"):
    """Each tensor by the first rule that matches it; small ones and whatever no role or rule names in fp16.

    The defaults are those of a published entry: 3 % of each larger tensor pruned, the token embedding in fp16, MLPs in 5
    bits, attention and hashed bigrams in 6, other tables in 8.

    Source: openai/parameter-golf#828; the pruning of small magnitudes, arXiv:1506.02626.
    """

    class Config(Codec.Config):
        prune: Share = 0.03  # of each larger tensor: the smallest numbers become zero
        rules: tuple[Rule, ...] = (
            Rule(match="embedding.weight", store="float16"),
            Rule(match="layer.*.ffn.*", store="int5"),
            Rule(match="layer.*.attention.*", store="int6"),
            Rule(match="stem.*", store="int6"),
        )

    config: Config

    def storage(self, weight: Weight) -> str:
        if weight.tensor.numel() <= self.config.small or weight.role not in TABLES:
            return "float16"
        return next((rule.store for rule in self.config.rules if rule.fits(weight)), "int8")

    def remarks(self, weights: Sequence[Weight]) -> list[str]:
        """Rules of one's own that speak of no tensor at all: a misspelt pattern, or a part that this arm lacks."""
        own = [rule for rule in self.config.rules if rule not in type(self.config).model_fields["rules"].default]
        idle = [rule.match for rule in own if not any(map(rule.fits, weights))]
        return [f"codec.rules: no tensor is called {match!r}" for match in idle]

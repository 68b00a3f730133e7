"""The recipe: a TOML tree that is the config tree that is the module tree.

This file is the schema; zoo/files.py reads what people write (parents, profiles, grids, meanings of kinds), and
zoo/resolve.py turns it into a Recipe.
"""

from __future__ import annotations

from typing import Literal

import tomli_w
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from zoo.codecs.slots import Codec
from zoo.core.params import Role
from zoo.core.part import ConfigError, Knobs
from zoo.core.tables import tabulate
from zoo.data.slots import Source, Tokenizer
from zoo.model import ModelConfig
from zoo.optim.slots import Average, Optimizer, Schedule
from zoo.scoring.slots import Scorer
from zoo.track.slots import Tracker


class DataConfig(Knobs):
    """``[data]``: text and tokens."""

    source: Source.Config = Source.pick("stdlib")
    tokenizer: Tokenizer.Config = Tokenizer.pick("byte")
    document_mask: Literal["none", "segments"] = "none"  # whether attention may cross documents packed into one row
    packing: Literal["stream", "documents"] = "stream"  # rows across documents, or of whole ones, filled up
    train_bytes: PositiveInt | None = None  # use at most this much training text, whole documents in order; None: all
    valid_bytes: PositiveInt | None = None  # likewise for validation
    duplicates: Literal["removed", "kept"] = "removed"  # validation documents that (nearly) stand in the training text


class TrainConfig(Knobs):
    """``[train]``: the budget (exactly one of steps, tokens, seconds) and how a step is made."""

    steps: PositiveInt | None = None
    tokens: PositiveInt | None = None
    seconds: PositiveFloat | None = None
    batch: PositiveInt = 8  # rows of model.context tokens in one micro-batch
    accumulate: PositiveInt = 1  # micro-batches per step
    short_context: PositiveInt | None = None  # at first rows are cut into pieces of this many tokens; None: never
    short_share: float = Field(0.5, gt=0, lt=1)  # of the run's updates: how long that lasts
    clip: PositiveFloat | None = 1.0  # largest global gradient norm; None: not clipped
    targets: Literal["next", "unshifted"] = (
        "next"  # "unshifted" shows what that fault looks like; it wants as_published = true
    )
    recompute: Literal["none", "layers"] = "none"  # keep each layer's input only and compute it again in the backward
    compile: Literal["auto", "none", "layers"] = "auto"  # auto: layers on a GPU, where it pays within the budget
    log_every: PositiveInt = 10  # steps
    evaluate_every: PositiveInt | None = None  # steps; None: at the end only
    seed: NonNegativeInt = 0
    checkpoint_every: PositiveInt | None = (
        None  # steps; like the next no part of the address, since it changes no number
    )
    checkpoint_minutes: PositiveFloat | None = 10.0  # of the clock; None and None: a run cannot go on


class EvaluateConfig(Knobs):
    """``[evaluate]``: the plan by which every arm is scored."""

    scorer: Scorer.Config = Scorer.pick("plain")
    also: tuple[Scorer.Config, ...] = ()  # further scorers of the trained model, each with a column of its own
    batch: PositiveInt = 16  # rows per call
    during_tokens: PositiveInt = 16_384  # tokens scored during training; the final score takes all

    @model_validator(mode="after")
    def _columns_are_honest(self) -> EvaluateConfig:
        if not self.scorer.part.code_length:
            why = "its figure is not the length of a code, so nothing may be ranked by it; put it into evaluate.also"
            raise ConfigError(why, "scorer", self.scorer.part.kind)
        labels = [scorer.label() for scorer in self.also]
        for i, label in enumerate(labels):
            if label in labels[:i]:
                raise ConfigError("asked for twice", f"also[{i}]", label)
        return self


class MachineConfig(Knobs):
    """``[machine]``: where it runs, settled before the run because each of these changes bits."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"  # of the residual stream
    threads: NonNegativeInt = 0  # 0: as many as there are cores
    profile: str = "full"
    graphs: Literal["auto", "none"] = (
        "auto"  # auto: a GPU replays its kernels from a recording; no number depends on it
    )
    ranks: PositiveInt = 1  # processes that share each trial's batches, as torchrun has started them


class CardConfig(Knobs):
    """``[card]``: what a trial's model card shows of its text. Nothing of it changes a number."""

    prompts: tuple[str, ...] = ()  # none: the card shows no generations
    samples: PositiveInt = 20  # made per prompt
    top: PositiveInt = 5  # shown of them, by log-probability per token
    max_tokens: PositiveInt = 60
    temperature: PositiveFloat = 0.8
    top_k: PositiveInt | None = None


class Recipe(Knobs):
    """One trial, wholly said: every knob that can change a number, and nothing else."""

    name: str = "recipe"
    variant: str = "baseline"
    as_published: bool = False  # whether kinds that replicate a defect may train
    base: str = "."  # the folder that relative paths start from, relative to the recipe's own
    plugins: tuple[str, ...] = ()  # Python files with kinds of one's own
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    optim: dict[Role, Optimizer.Config] = Field(default_factory=dict)
    schedule: Schedule.Config = Schedule.pick("constant")
    average: Average.Config = Average.pick("none")
    codec: Codec.Config | None = None  # how the artifact is written; its bytes and score are then columns
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    machine: MachineConfig = Field(default_factory=MachineConfig)
    card: CardConfig = Field(default_factory=CardConfig)
    track: tuple[Tracker.Config, ...] = Tracker.pick_all("auto")

    @model_validator(mode="after")
    def _rows_can_be_cut(self) -> Recipe:
        short, context = self.train.short_context, self.model.context
        if short is not None and context % short:
            raise ConfigError(f"does not divide model.context = {context}", "train.short_context", short)
        if short is not None and self.data.packing == "documents":
            raise ConfigError(
                'cuts documents, which data.packing = "documents" keeps whole', "train.short_context", short
            )
        return self


def dumps(recipe: Recipe) -> str:
    """The recipe as TOML, every knob stated; ``zoo.resolve.loads`` is its inverse."""
    return tomli_w.dumps(tabulate(recipe))

"""Averages: which weights are scored in the end."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from zoo.core.params import Embedding
from zoo.optim.slots import Average, restore


class NoAverage(Average, kind="none"):
    """The live weights.

    Source: the plain run, against which averages are measured.
    """

    class Config(Average.Config):
        pass

    def update(self, model: nn.Module, step: int, total: int, scale: float) -> None:
        pass

    def weights(self) -> dict[str, Tensor] | None:
        return None

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        restore({}, state)


class EMA(Average, kind="ema"):
    """An exponential moving average, from the initial weights on: shadow <- d shadow + (1 - d) weights, in fp32.

    With ``every`` = n the average moves at each n-th update by d^n, which costs an n-th and lags as far.

    Source: arXiv:1412.6980 section 7.2; openai/parameter-golf#287 (0.997 per update).
    """

    class Config(Average.Config):
        decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.997  # per update of the weights
        every: PositiveInt = 1  # updates

    def __init__(self, config: Config, model: nn.Module) -> None:
        super().__init__(config, model)
        self.shadow = {name: wide(p).clone() for name, p in model.named_parameters()}

    def update(self, model: nn.Module, step: int, total: int, scale: float) -> None:
        if step % self.config.every == 0:
            move(self.shadow, model, 1.0 - self.config.decay**self.config.every)

    def weights(self) -> dict[str, Tensor] | None:
        return self.shadow

    def state(self) -> dict[str, Tensor]:
        """``<name>/ema``, like the parameter, fp32."""
        return {f"{name}/ema": t for name, t in self.shadow.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        restore(self.state(), state)


class EMABug828(EMA, kind="ema_bug828"):
    """A published mistake: the average of every embedding table is kept in bf16, where its small moves round away.

    Once the table is nearer than half a unit in the last place over 1 - decay, the average stays where it is, and those are the
    weights that are scored.

    Source: openai/parameter-golf#828, whose shadow had each parameter's own dtype, bf16 for embeddings.
    """

    breaks = {
        "average_follows_the_weights": "keeps embeddings in bf16, where moves under half a unit in the last place are lost; "
        "seen in openai/parameter-golf#828"
    }

    def __init__(self, config: EMABug828.Config, model: nn.Module) -> None:
        super().__init__(config, model)
        tables = {id(p) for module in model.modules() if isinstance(module, Embedding) for p in module.parameters()}
        self.narrow = [name for name, p in model.named_parameters() if id(p) in tables]
        self.shadow |= {name: self.shadow[name].bfloat16() for name in self.narrow}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, total: int, scale: float) -> None:
        if step % self.config.every:
            return
        kept, live = self.config.decay**self.config.every, dict(model.named_parameters())
        move({name: t for name, t in self.shadow.items() if name not in self.narrow}, model, 1.0 - kept)
        for name in self.narrow:
            self.shadow[name].mul_(kept).add_(live[name].detach().bfloat16(), alpha=1.0 - kept)

    def weights(self) -> dict[str, Tensor] | None:
        return {name: wide(t) for name, t in self.shadow.items()}


class SWA(Average, kind="swa"):
    """The equal average of the weights at every n-th update once the rate's factor is under ``below``, in fp32.

    Source: arXiv:1803.05407; openai/parameter-golf#198 (every 50 updates of the warm-down).
    """

    class Config(Average.Config):
        every: PositiveInt = 50  # updates
        below: Annotated[float, Field(gt=0.0)] = 0.4  # of the schedule's factor; above 1: from the first update on

    def __init__(self, config: Config, model: nn.Module) -> None:
        super().__init__(config, model)
        self.mean = {name: torch.zeros_like(wide(p)) for name, p in model.named_parameters()}
        self.count = 0

    def update(self, model: nn.Module, step: int, total: int, scale: float) -> None:
        if step % self.config.every == 0 and scale < self.config.below:
            self.count += 1
            move(self.mean, model, 1.0 / self.count)

    def weights(self) -> dict[str, Tensor] | None:
        return self.mean if self.count else None

    def state(self) -> dict[str, Tensor]:
        """``<name>/swa``, like the parameter, fp32; ``count``, an int64 scalar: how many weights the mean holds."""
        return {"count": torch.tensor(self.count)} | {f"{name}/swa": t for name, t in self.mean.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        own = self.state()
        restore(own, state)
        self.count = int(own["count"])


def wide(parameter: Tensor) -> Tensor:
    """A parameter without its gradient, in fp32 or wider: in bf16 an average would stall once its steps round away."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))


@torch.no_grad()
def move(average: dict[str, Tensor], model: nn.Module, share: float) -> None:
    """Move every averaged tensor towards the live parameter of its name by ``share`` of the way, in place."""
    live = dict(model.named_parameters())
    torch._foreach_lerp_(list(average.values()), [wide(live[name]) for name in average], share)

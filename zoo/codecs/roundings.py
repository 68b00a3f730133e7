"""Roundings: the row's largest number as its scale, or a search for the scale that loses least."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from zoo.codecs.slots import Rounding
from zoo.core.part import ConfigError

HALF = torch.finfo(torch.float16)


class RowMax(Rounding, kind="row_max"):
    """Each row's largest magnitude gets the largest code: scale = fp16(max |row| / q), code = round(w / scale).

    Source: openai/parameter-golf#828; the usual symmetric quantiser, arXiv:2106.08295.
    """

    def codes(self, table: Tensor, largest: int, hessian: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        scales = half(table.abs().amax(1) / largest)
        return nearest_codes(table, scales, largest), scales


class ClipSearch(Rounding, kind="clip_search"):
    """Each row's scale is the one of ``candidates`` with the least squared error; outliers are clipped where that pays.

    Source: the clipping of arXiv:1909.13144 (MSE criterion), searched row by row.
    """

    class Config(Rounding.Config):
        candidates: PositiveInt = 40  # scales tried, evenly between ``narrowest`` and 1 times that of row_max
        narrowest: Annotated[float, Field(gt=0.0, le=1.0)] = 0.4

    config: Config

    def codes(self, table: Tensor, largest: int, hessian: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        scales = best_scales(table, largest, self.config.candidates, self.config.narrowest)
        return nearest_codes(table, scales, largest), scales


class GPTQ(ClipSearch, kind="gptq"):
    """Column by column, each column's rounding error made good in the columns to come, as their inputs' products allow.

    The output's squared error E |W x - Q x|^2 falls, the weights' own rises. A matrix whose inputs are not known is rounded by
    clip search.

    Source: GPTQ, arXiv:2210.17323; columns in their own order, damping as there.
    """

    class Config(ClipSearch.Config):
        rows: PositiveInt = 32  # of training text that show what the matrices' inputs are
        damping: Annotated[float, Field(gt=0.0)] = 0.01  # of the mean square of the inputs, added to all of them

        def rows_wanted(self) -> int:
            return self.rows

    config: Config

    def codes(self, table: Tensor, largest: int, hessian: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
        if hessian is None or hessian.shape[0] != table.shape[1]:
            return super().codes(table, largest, None)
        scales = best_scales(table, largest, self.config.candidates, self.config.narrowest)
        return self._carried(table, scales, largest, hessian), scales

    def _carried(self, table: Tensor, scales: np.ndarray, largest: int, hessian: Tensor) -> np.ndarray:
        """Codes (R, C), with errors carried to the right by the Cholesky factor of the inverse Hessian."""
        n = table.shape[1]
        damped = hessian.double() + torch.eye(n, dtype=torch.float64) * (
            self.config.damping * float(hessian.diagonal().mean()) + 1e-12
        )
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        upper = torch.linalg.cholesky(inverse, upper=True)  # (C, C)
        rest, pruned = table.double().clone(), table == 0
        step = torch.from_numpy(scales.astype(np.float64))
        codes = torch.empty(table.shape, dtype=torch.int8)
        for j in range(n):
            chosen = (rest[:, j] / step).round().clamp(-largest, largest)
            chosen[pruned[:, j]] = 0.0
            codes[:, j] = chosen.to(torch.int8)
            error = (rest[:, j] - chosen * step) / upper[j, j]
            rest[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
        return codes.numpy()


def half(scales: Tensor) -> np.ndarray:
    """Scales in fp16, those of empty rows the smallest that fp16 holds in full.

    Raises:
        ConfigError: a scale beyond fp16.
    """
    if scales.numel() and float(scales.max()) > HALF.max:
        raise ConfigError(f"a row has the scale {float(scales.max()):.6g}, which is too large for fp16")
    return scales.clamp_min(HALF.tiny).to(torch.float16).numpy()


def nearest_codes(table: Tensor, scales: np.ndarray, largest: int) -> np.ndarray:
    """(R, C) int8: round(w / scale), clipped to [-largest, largest]."""
    step = torch.from_numpy(scales.astype(np.float32))[:, None]
    return (table / step).round().clamp(-largest, largest).to(torch.int8).numpy()


def best_scales(table: Tensor, largest: int, candidates: int, narrowest: float) -> np.ndarray:
    """(R,) float16: for each row the scale among shares of its largest magnitude with the least squared error."""
    whole = table.abs().amax(1) / largest
    best, least = half(whole), torch.full_like(whole, torch.inf)
    for share in torch.linspace(1.0, narrowest, candidates).tolist():
        scales = half(whole * share)
        step = torch.from_numpy(scales.astype(np.float32))[:, None]
        error = (table - (table / step).round().clamp(-largest, largest) * step).square().sum(1)
        better = error < least
        best[better.numpy()], least = scales[better.numpy()], torch.minimum(error, least)
    return best

"""95 % intervals of means over a validation split: the percentile bootstrap (Efron 1979; Efron and Tibshirani 1993,
section 13.3).

Which items a resample draws follows from their number alone. So a run that was killed and resumed has the intervals of
one that was not, and runs that are measured on the same items are resampled alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

RESAMPLES = 2_000
LEVEL = 0.95
SEED = 95
DRAWS = 2**20
"""Draws at once, which bounds the memory."""


def intervals(numerators: Tensor, denominators: Tensor) -> Tensor:
    """Intervals of the ratios of means Σ numerator / Σ denominator over items.

    Args:
        numerators: [M, N], one row per ratio, one column per item.
        denominators: [N], above 0; ones for plain means.

    Returns:
        [M, 2] float64 on the CPU: the 2.5 % and 97.5 % quantiles of each ratio over RESAMPLES resamples of N items.
    """
    columns = torch.cat([numerators, denominators[None]]).double().cpu().T.contiguous()  # [N, M + 1]
    count = len(columns)
    generator = torch.Generator().manual_seed(SEED)
    sums = []
    at_once = max(1, DRAWS // count)
    for done in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - done)
        places = torch.randint(count, (rows, count), generator=generator) + count * torch.arange(rows)[:, None]
        times = torch.bincount(places.flatten(), minlength=places.numel()).view_as(places)  # how often each was drawn
        sums.append(times.double() @ columns)
    resampled = torch.cat(sums)  # [RESAMPLES, M + 1]
    ratios = resampled[:, :-1] / resampled[:, -1:]
    tail = (1 - LEVEL) / 2
    return torch.quantile(ratios, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0).T

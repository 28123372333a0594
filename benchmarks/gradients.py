"""How far two gradients of the same loss are apart, tensor by tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open


@dataclass(frozen=True, slots=True)
class Difference:
    largest: float
    """The largest difference of any element."""

    of: float
    """The largest element of either."""

    relative: float
    """‖a − b‖ / ‖a‖ over all elements."""


def compare(one: Path, other: Path) -> Difference:
    """Of two safetensors files with the same names and shapes.

    Raises:
        ValueError: they hold different tensors.
    """
    largest = of = squares = difference = 0.0
    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
        if set(a.keys()) != set(b.keys()):
            raise ValueError(f"Gradients of different tensors: {set(a.keys()) ^ set(b.keys())}")
        for name in a.keys():  # noqa: SIM118 (not a dict)
            left, right = a.get_tensor(name).double(), b.get_tensor(name).double()
            largest = max(largest, float((left - right).abs().max()))
            of = max(of, float(left.abs().max()), float(right.abs().max()))
            squares += float(left.square().sum())
            difference += float((left - right).square().sum())
    return Difference(largest, of, math.sqrt(difference / squares))

"""The parts of a run's data, and where each one's token table lies. Imports nothing: a worker needs no more of data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Part = Literal["training", "validation"]


def table_path(folder: Path, part: Part) -> Path:
    return folder / f"{part}.safetensors"

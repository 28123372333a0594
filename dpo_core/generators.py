"""The random generators that dropout draws from: one on each rank, and on its GPU where it has one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save(folder: Path, rank: int, device: torch.device) -> None:
    """Writes `folder/rng-RANK.safetensors`."""
    save_file(states(device), file_of(folder, rank))


def restore(folder: Path, rank: int, device: torch.device) -> None:
    """Goes on where `save` was called, on the same rank of as many, on the same kind of device."""
    saved = load_file(file_of(folder, rank))
    torch.set_rng_state(saved["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda"], device)


def reseed(seed: int, step: int, rank: int) -> None:
    """Numbers of their own for this step and rank, where there is nothing to go on from."""
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big"))


def are_used(model: nn.Module) -> bool:
    """Whether training draws numbers: only dropout does."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())


def file_of(folder: Path, rank: int) -> Path:
    return folder / f"rng-{rank}.safetensors"


def states(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state

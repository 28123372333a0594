"""Where DeepSpeed's ZeRO stages keep the state of each trained parameter (Rajbhandari et al. 2020, arXiv:1910.02054).

Reads the objects of DeepSpeed 0.19.8, and imports nothing of it. Its own access by name (`safe_get_full_fp32_param`
and the like) adds up a zero-filled copy of the whole parameter over all ranks for each of the three tensors: more
communication than an update, and -0.0 becomes 0.0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dpo_core.optimizer_state import Shard


def size(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter; stage 3 leaves it empty between two uses."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def shards(
    trained: dict[str, nn.Parameter], zero_optimizer: Any, adamw: torch.optim.Optimizer, stage: int, rank: int
) -> list[Shard]:
    """What this rank updates; at stage 0 that is everything, on every rank."""
    if stage == 0:
        return [Shard(name, 0, weight.numel(), weight, 0) for name, weight in trained.items()]
    if stage == 3:
        found = [stage_3_shard(name, weight, zero_optimizer, rank) for name, weight in trained.items()]
        return [shard for shard in found if shard.length]
    mappings: dict[str, Any] = {name: weight._hp_mapping for name, weight in trained.items()}  # type: ignore[attr-defined]
    return [flat_shard(name, mapping, adamw) for name, mapping in mappings.items() if mapping is not None]


def flat_shard(name: str, mapping: Any, adamw: torch.optim.Optimizer) -> Shard:
    """Stages 1 and 2 lay all parameters in a row, cut it into as many parts as ranks, and give each rank one."""
    (owner,) = adamw.param_groups[mapping.param_group_index]["params"]
    inside, part = mapping.lp_fragment_address, mapping.hp_fragment_address
    return Shard(name, inside.start, inside.numel, owner, part.start)


def stage_3_shard(name: str, parameter: nn.Parameter, zero_optimizer: Any, rank: int) -> Shard:
    """Stage 3 cuts every parameter into as many equal parts as ranks; the last ones are padded, or nothing else."""
    group, offset, width = zero_optimizer.grad_position[zero_optimizer.get_param_id(parameter)]
    length = max(0, min(width, size(parameter) - rank * width))
    return Shard(name, rank * width, length, zero_optimizer.fp32_partitioned_groups_flat[group], offset)


def weights_follow_masters(zero_optimizer: Any, stage: int) -> None:
    """Makes the weights that the model computes with what an update would make of the master weights. All ranks."""
    if stage == 3:
        zero_optimizer.checkpoint_event_prologue()
        for group in range(len(zero_optimizer.fp32_partitioned_groups_flat)):
            zero_optimizer._reassign_or_swap_out_partitioned_parameters(group)
        zero_optimizer.checkpoint_event_epilogue()
    elif stage > 0:
        zero_optimizer.update_lp_params()

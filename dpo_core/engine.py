"""DeepSpeed behind one class; beside it only zero.py and layerwise.py know of it.

Stages 1 to 3 in bfloat16 keep float32 master weights inside DeepSpeed. Stage 0 has no such masters for
float32 accumulation, so there the trained weights are float32 and the forward pass runs under autocast.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dpo_core import layerwise, optimizer_state, zero
from dpo_core.footprint import BUCKET_ELEMENTS
from dpo_core.optimizer_state import Shard
from dpo_core.packing import Batch
from dpo_core.scorer import Scorer
from dpo_core.settings import Settings
from dpo_core.spec import Device, TrainingSpec


@dataclass(frozen=True, slots=True)
class World:
    """The processes of this run."""

    rank: int
    size: int
    device: torch.device

    def gather(self, vector: Tensor) -> Tensor:
        """Every rank's [K] vector, as [size, K] on the CPU, the same on all ranks."""
        if self.size == 1:
            return vector.detach().cpu().unsqueeze(0)
        parts = [torch.empty_like(vector) for _ in range(self.size)]
        dist.all_gather(parts, vector)
        return torch.stack(parts).cpu()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's `tensor`, on the CPU, the same on all ranks."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor.cpu()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank; all ranks call it."""
        return float(self.sum(torch.tensor([float(flag)], device=self.device))) > 0

    def barrier(self) -> None:
        # An all-reduce: NCCL's own barrier has to guess the device.
        dist.all_reduce(torch.zeros(1, device=self.device))


@contextmanager
def processes(device: Device) -> Iterator[World]:
    """Joins the process group that torchrun described, or makes a group of one where there is no torchrun.

    The group is destroyed at the end whatever happened: stage 3 aborts otherwise.
    """
    os.environ.setdefault("DS_ACCELERATOR", device)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed's stage 3 calls two collectives by their old names, several times a step.
    warnings.filterwarnings("ignore", message="`torch.distributed.*` is deprecated", category=FutureWarning)
    skip_shared_memory_op()
    backend = "nccl" if device == "cuda" else "gloo"
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(local)
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    else:
        os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists
        dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    try:
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        yield World(rank, size, local)
    finally:
        dist.destroy_process_group()


def skip_shared_memory_op() -> None:
    """Keeps DeepSpeed from compiling its shared-memory all-reduce, which only its inference engine calls.

    Compiling it needs g++ and 30 s, every start takes torch's build lock (a killed process leaves it, and
    then all later ones wait forever), and each rank maps 128 MiB of /dev/shm.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}


class Engine:
    """A model in training: forward, backward, one update, and its weights and state for checkpoints."""

    def __init__(self, scorer: Scorer, training: TrainingSpec, settings: Settings, world: World) -> None:
        import deepspeed

        self.world = world
        self.stage = settings.zero_stage
        self.max_grad_norm = training.max_grad_norm
        elements = sum(weight.numel() for weight in scorer.parameters() if weight.requires_grad)
        config = engine_config(settings, training.max_grad_norm, world.device.type, elements)
        if self.stage == 3:
            config["zero_optimization"] |= layerwise.gather_whole(scorer)
            shard(scorer, config, world)
        else:
            scorer.to(world.device)
        self.scorer, self.module = scorer, cast(nn.Module, scorer.model)
        self._trained = {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}
        if settings.bfloat16 and self.stage == 0:
            for parameter in self._trained.values():
                parameter.data = parameter.data.float()
        self._adamw = torch.optim.AdamW(
            self._trained.values(),
            lr=settings.learning_rate,
            betas=(training.adam_beta1, training.adam_beta2),
            weight_decay=training.weight_decay,
            fused=True,
        )
        self._engine: Any = deepspeed.initialize(model=self.scorer, optimizer=self._adamw, config=config)[0]
        if world.size == 1 and self.stage == 0:
            # DeepSpeed would copy all gradients into a buffer and back for a sum over nobody else.
            self._engine.enable_backward_allreduce = False

    def score(self, batch: Batch, chunks: int = 1, ranks_first: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of the batch's targets: Scorer.forward. All ranks call it, with the same `chunks`."""
        scores: tuple[Tensor, Tensor | None] = self._engine(batch.to(self.world.device), chunks, ranks_first)
        return scores

    def train(self) -> None:
        self._engine.train()

    def eval(self) -> None:
        self._engine.eval()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the gradient of `loss`, a share of the global batch's loss: gradients are *summed* over ranks.

        `last`: no other micro-batch of this step follows.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed takes the mean over ranks.
        self._engine.backward(loss.float() * self.world.size, scale_wrt_gas=False)
        if not last:
            self._engine.step()

    def step(self, learning_rate: float) -> float:
        """Clips, updates the weights, clears the gradients; returns the global norm before clipping.

        Where that is NaN or infinite no rank updates anything, neither weights nor moments; in stages 1 to 3 by
        DeepSpeed's own check of the same norm.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.stage == 0:
            # DeepSpeed's own stage-0 clipping keeps the norm to itself.
            norm = float(nn.utils.clip_grad_norm_(self._trained.values(), self.max_grad_norm))
            if not math.isfinite(norm):
                for weight in self._trained.values():
                    weight.grad = None  # AdamW passes over what has none
            self._engine.step()
            return norm
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def weights(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Trained parameters by name, whole, on the CPU in `dtype`; empty on ranks other than 0. All ranks call it."""
        import deepspeed

        gathered = {}
        if self.stage == 3:
            self._engine.empty_partition_cache()  # what was fetched ahead for a backward pass may still be on its way
        for name, parameter in self._trained.items():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                if self.world.rank == 0:
                    gathered[name] = parameter.detach().to("cpu", dtype, copy=True)
        return gathered

    def save_state(self, folder: Path) -> None:
        """Writes this rank's share of master weights and moments for `load_state`. All ranks call it."""
        shards = self._shards()
        if self.stage == 0:  # every rank has all of them
            shards = shards[self.world.rank :: self.world.size]
        optimizer_state.save(folder, self.world.rank, shards, self._adamw)

    def load_state(self, folder: Path, updates: int) -> None:
        """Reads what `save_state` wrote after so many updates, under any number of ranks and any stage. All ranks.

        Raises:
            RunError: kind `user`; it is the state of other parameters.
        """
        sizes = {name: zero.size(parameter) for name, parameter in self._trained.items()}
        with torch.no_grad():
            optimizer_state.load(folder, sizes, self._shards(), self._adamw, updates)
            zero.weights_follow_masters(self._engine.optimizer, self.stage)

    def _shards(self) -> list[Shard]:
        return zero.shards(self._trained, self._engine.optimizer, self._adamw, self.stage, self.world.rank)


def shard(model: nn.Module, config: dict[str, Any], world: World) -> nn.Module:
    """Deals the parameters out over the ranks, one at a time: no device ever holds all of them (ZeRO-3).

    Rank 0's values count, so that the other ranks' model may be on the meta device and no host holds it twice.
    """
    import deepspeed

    dtype = torch.bfloat16 if "bf16" in config else torch.float32
    places = OrderedDict[nn.Parameter, list[tuple[nn.Module, str]]]()  # a tied weight has several
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            places.setdefault(parameter, []).append((module, name))
    while places:  # each whole parameter is forgotten before the next
        parameter, found = places.popitem(last=False)
        values = torch.empty_like(parameter, device="cpu") if parameter.is_meta else parameter.detach()
        dealt = nn.Parameter(values.to(dtype), requires_grad=parameter.requires_grad)
        for module, name in found:
            setattr(module, name, dealt)
        deepspeed.zero.Init(module=nn.ParameterList([dealt]), config_dict_or_path=config)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            values = torch.empty_like(buffer, device=world.device) if buffer.is_meta else buffer.to(world.device)
            dist.broadcast(values, 0)
            setattr(module, name, values)
    return model


def engine_config(settings: Settings, max_grad_norm: float, device: str, trained: int) -> dict[str, Any]:
    """DeepSpeed's configuration for `trained` numbers. Batches are the loop's business, hence the ones."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm if settings.zero_stage else 0.0,
        # A buffer of this size is made whatever is sent in it, and an adapter has few gradients.
        "zero_optimization": {"stage": settings.zero_stage, "reduce_bucket_size": min(trained, BUCKET_ELEMENTS)},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if settings.offload != "none":
        # Pinned memory is what a GPU copies from without waiting; a CPU knows none.
        host = {"device": "cpu", "pin_memory": device == "cuda"}
        config["zero_optimization"]["offload_optimizer"] = host
        if settings.offload == "parameters":
            config["zero_optimization"]["offload_param"] = host
    if settings.bfloat16 and settings.zero_stage == 0:
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif settings.bfloat16:
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config

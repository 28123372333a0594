"""Master weights and AdamW's moments on disk, in a form that knows no ranks and no ZeRO stage.

Every rank writes the shards that it holds, and reads whatever overlaps the shards that it needs, so nothing is
gathered and no rank holds more than its own share and one file of it. The files are safetensors of flat float32
tensors. A key is `FIELD/NAME/START`: elements START and following of the flattened parameter NAME, where FIELD is

    weight        the float32 master weight
    exp_avg       AdamW's first moment m (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1)
    exp_avg_sq    AdamW's second raw moment v

The count of updates is the run's own (`progress.json`): every one advances every parameter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpo_core.errors import user_error

FIELDS = ("weight", "exp_avg", "exp_avg_sq")
FILE_BYTES = 2 * 2**30
"""A file is closed once it has this much: so much of a GPU's state is copied to the host at a time."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Elements `start` to `start + length` of one flattened parameter, where this rank's AdamW holds them."""

    name: str
    start: int
    length: int
    owner: Tensor
    """The float32 tensor that AdamW updates: the parameter itself, or many parameters' shards in a row."""

    offset: int
    """Where in the flattened owner the shard begins."""

    def fields(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Views of [length] into the master weight and the moments, by FIELDS."""
        moments = optimizer.state[self.owner]
        whole = {"weight": self.owner.detach()} | {field: moments[field] for field in FIELDS[1:]}
        return {field: tensor.view(-1).narrow(0, self.offset, self.length) for field, tensor in whole.items()}


@dataclass(frozen=True, slots=True)
class Stored:
    """A shard in a file."""

    values: Any
    """safetensors' slice of [length] values that are still on the disk."""

    start: int
    length: int


def save(folder: Path, rank: int, shards: Iterable[Shard], optimizer: torch.optim.Optimizer) -> None:
    """Writes `shards` as `folder/RANK-PART.safetensors`."""
    folder.mkdir(exist_ok=True)
    shards = list(shards)
    # A run whose every step was skipped so far has none yet.
    begin_moments([shard for shard in shards if not optimizer.state[shard.owner]], optimizer, 0)
    parts = count()
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        for field, tensor in shard.fields(optimizer).items():
            tensors[f"{field}/{shard.name}/{shard.start}"] = tensor.cpu()
        if sum(tensor.nbytes for tensor in tensors.values()) >= FILE_BYTES:
            save_file(tensors, folder / f"{rank}-{next(parts)}.safetensors")
            tensors = {}
    if tensors:
        save_file(tensors, folder / f"{rank}-{next(parts)}.safetensors")


def load(
    folder: Path, sizes: dict[str, int], shards: Sequence[Shard], optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Fills `shards`, and sets AdamW's count of updates to `step`. `sizes`: elements of every trained parameter.

    Raises:
        RunError: kind `user`; the files are of other parameters.
    """
    with ExitStack() as files:
        stored = index(folder, files)
        require_same_parameters(stored, sizes)
        begin_moments(shards, optimizer, step)
        for shard in shards:
            for field, tensor in shard.fields(optimizer).items():
                for begin, values in overlapping(stored[field, shard.name], shard):
                    tensor.narrow(0, begin, len(values)).copy_(values)


def index(folder: Path, files: ExitStack) -> dict[tuple[str, str], list[Stored]]:
    """Every shard in `folder` by field and name; its file stays open as long as `files`."""
    stored: dict[tuple[str, str], list[Stored]] = defaultdict(list)
    for path in sorted(folder.glob("*.safetensors")):
        file = files.enter_context(safe_open(path, framework="pt"))
        for key in file.keys():  # noqa: SIM118 (not a dict)
            field, _, rest = key.partition("/")
            name, _, start = rest.rpartition("/")
            values = file.get_slice(key)
            stored[field, name].append(Stored(values, int(start), *values.get_shape()))
    return stored


def require_same_parameters(stored: dict[tuple[str, str], list[Stored]], sizes: dict[str, int]) -> None:
    """All ranks ask the same, so that none of them waits for one that has given up."""
    needed = {(field, name): size for name, size in sizes.items() for field in FIELDS}
    found = {key: sum(shard.length for shard in shards) for key, shards in stored.items()}
    for field, name in sorted(needed.keys() | found.keys()):
        there, here = found.get((field, name), 0), needed.get((field, name), 0)
        if there != here:
            raise user_error(
                "resume_other_model",
                f"The checkpoint has {there} numbers for {field} of {name}, this run trains {here}. "
                "Resume with the same model and the same `training.lora`.",
                param="resume_from",
            )


def begin_moments(shards: Sequence[Shard], optimizer: torch.optim.Optimizer, step: int) -> None:
    """AdamW makes its moments in its first step; a run that goes on needs them before."""
    for owner in {id(shard.owner): shard.owner for shard in shards}.values():
        optimizer.state[owner] = {
            "step": torch.tensor(float(step), device=owner.device),
            "exp_avg": torch.zeros_like(owner, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(owner, requires_grad=False),
        }


def overlapping(stored: Iterable[Stored], shard: Shard) -> Iterator[tuple[int, Tensor]]:
    """What the files hold of `shard`: where in it each piece begins, and the piece."""
    for piece in stored:
        first = max(piece.start, shard.start)
        last = min(piece.start + piece.length, shard.start + shard.length)
        if first < last:
            yield first - shard.start, piece.values[first - piece.start : last - piece.start]

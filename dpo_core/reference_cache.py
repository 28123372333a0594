"""Reference log-probabilities by content: the key of a pair, the batches they are measured in, shards on disk.

    FOLDER/{group}/{anything}.safetensors   keys [N, 16] uint8, log_probabilities [2, N] float64

Row 0 is of the chosen sequences, row 1 of the rejected ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dpo_core.data.records import TokenPair
from dpo_core.run_directory import sync_folder

KEY_BYTES = 16
BATCH_TOKENS = {"cpu": 8_192, "cuda": 16_384}
"""Tokens of a batch, as if its rows were padded, by device. Not the spec's, unless that asks for very few: a pair's
last bits depend on what it is measured with, and should not depend on the job that happened to measure it."""


def pair_key(pair: TokenPair) -> bytes:
    """BLAKE2b-128 of both sequences and of which of their tokens count."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for tokens, prompt in ((pair.chosen, pair.chosen_prompt), (pair.rejected, pair.rejected_prompt)):
        digest.update(np.array([len(tokens), prompt, *tokens], dtype="<u4").tobytes())
    if pair.chosen_silent or pair.rejected_silent:  # most pairs have none, and keep the key they always had
        places = [place for span in (*pair.chosen_silent, *pair.rejected_silent) for place in span]
        digest.update(np.array([len(pair.chosen_silent), *places], dtype="<u4").tobytes())
    return digest.digest()


def in_canonical_order(lengths: Mapping[bytes, int]) -> list[bytes]:
    """Keys of pairs, the longest first, then by key: wherever the pairs stand in the data."""
    return sorted(lengths, key=lambda key: (-lengths[key], key))


def canonical_batches(ordered: Sequence[TokenPair], budget: int) -> list[slice]:
    """Neighbours in the canonical order, at most `budget` tokens with padding; a longer pair stands alone."""
    batches, start = [], 0
    for end in range(1, len(ordered) + 1):
        if end == len(ordered) or 2 * ordered[start].length * (end + 1 - start) > budget:
            batches.append(slice(start, end))
            start = end
    return batches


def read_known(folder: Path, keys: Sequence[bytes]) -> Tensor:
    """What the shards in `folder` say of `keys`: [2, len(keys)] float64, NaN where they say nothing.

    Raises:
        SafetensorError: a shard is damaged.
    """
    values = torch.full((2, len(keys)), torch.nan, dtype=torch.float64)
    places = {key: place for place, key in enumerate(keys)}
    heads = torch.tensor([int.from_bytes(key[:8], "little", signed=True) for key in keys])
    for path in sorted(folder.glob("*.safetensors")):
        shard = load_file(path)
        # A shard may hold millions of other pairs: the first half of the keys sorts those out at once.
        candidates = (
            torch.isin(shard["keys"][:, :8].contiguous().view(torch.int64).flatten(), heads).nonzero().flatten()
        )
        for row in candidates.tolist():
            place = places.get(shard["keys"][row].numpy().tobytes())
            if place is not None:
                values[:, place] = shard["log_probabilities"][:, row]
    return values


def write_shard(folder: Path, keys: Sequence[bytes], values: Tensor) -> None:
    """Adds a shard with `values` [2, len(keys)] to `folder`: seen whole or not at all, durable on return."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(list(folder.glob('*.safetensors'))):06}.safetensors"
    aside = folder / f".{path.name}.{os.getpid()}"
    stacked = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), KEY_BYTES)
    save_file({"keys": stacked, "log_probabilities": values.contiguous()}, aside)
    with open(aside, "rb") as file:
        os.fsync(file.fileno())
    aside.rename(path)
    sync_folder(folder)

"""Merges an adapter with its base: `python -m dpo_core.merge RUN_DIR`.

Reads `spec.json` (a MergeSpec), writes the model's folder `merged/model/`, its Manifest as `answer.json`, and
`status.json`. Needs no GPU, but memory for the base in float32.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from dpo_core import program
from dpo_core.models import copy_companions, dropouts, merged, rewrite_json
from dpo_core.questions import MergeSpec
from dpo_core.run_directory import Manifest, ManifestFile, RunDirectory, Status, sha256_of, write_whole
from dpo_core.spec import ModelSource

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16}
"""By safetensors' names; what is not among them is merged into float32."""
SHARD_SIZE = "5GB"


def save_merged(source: ModelSource, dtype: torch.dtype, folder: Path) -> None:
    """Writes the adapter `source`, merged with its base, as a folder that `from_pretrained` loads.

    W + s·B·A is computed in float32 (Hu et al. 2021, arXiv:2106.09685, section 4.1) and rounded once, to `dtype`.

    Raises:
        RunError: kind `user`; base or adapter can't be read.
    """
    assert source.base_path is not None  # noqa: S101 (only adapters are merged)
    merged(source, dtype).save_pretrained(folder, max_shard_size=SHARD_SIZE)
    # The model in memory has no dropout.
    name = str(dtype).removeprefix("torch.")
    rewrite_json(folder / "config.json", dtype=name, **dropouts(source.base_path))
    copy_companions(source, folder)


def merge(directory: RunDirectory) -> Status:
    spec = MergeSpec.model_validate_json(directory.spec_file.read_bytes())
    folder = directory.merged / "model"
    save_merged(spec.model, DTYPES.get(spec.dtype, torch.float32), folder)
    files = [_listed(directory.merged, path) for path in sorted(folder.rglob("*")) if path.is_file()]
    write_whole(directory.answer_file, Manifest(step=spec.step, kind="full", files=files).model_dump_json())
    return Status(state="succeeded")


def _listed(root: Path, path: Path) -> ManifestFile:
    return ManifestFile(path=path.relative_to(root).as_posix(), bytes=path.stat().st_size, sha256=sha256_of(path))


if __name__ == "__main__":
    sys.exit(program.main("merge", merge, sys.argv[1:]))

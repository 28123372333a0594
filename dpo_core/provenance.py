"""Where weights come from: everything that decides what a run computes, by content. Imports no torch.

Two runs with the same provenance compute the same on the same kind of machine; where they differ, it says in what. It
holds no time, no path and no id of a job, so that it is the same for both.
"""

from __future__ import annotations

import hashlib
import platform
import re
from datetime import date
from importlib import metadata
from pathlib import Path

import dpo_core
from dpo_core.reference_group import weights_digest
from dpo_core.run_directory import Manifest, ManifestFile, sha256_of
from dpo_core.spec import Device, ModelSource, RunSpec, StrictModel, TrainingSpec

FILE_NAME = "manifest.json"
"""Beside a published model's files."""

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "deepspeed", "peft", "numpy", "jinja2")


class DataFile(StrictModel):
    sha256: str
    bytes: int
    weight: float = 1.0


class Weights(StrictModel):
    id: str
    sha256: str
    """Of the sha256 of config.json and every safetensors file, for an adapter also of those of its base."""


class Code(StrictModel):
    version: str
    source: str
    """sha256 over the training library's files."""


class Machine(StrictModel):
    device: Device
    name: str
    ranks: int


class Provenance(StrictModel):
    training: list[DataFile]
    validation: DataFile | None
    model: Weights
    """That training began from."""

    reference: Weights | None
    """Only where `spec.reference` names a model."""

    spec: TrainingSpec
    """With every choice that was made; the seed is in it."""

    day: date
    """What a chat template writes where it asks for the date."""

    code: Code
    python: str
    libraries: dict[str, str]
    environment: str
    """sha256 over name and version of everything that is installed: the lock as it really is."""

    machine: Machine


class CheckpointManifest(StrictModel):
    """`manifest.json` of a published checkpoint."""

    step: int
    kind: str
    files: list[ManifestFile]
    provenance: Provenance


def provenance_of(run: RunSpec) -> Provenance:
    """Reads every input once. Raises OSError where one is gone."""
    several = [DataFile(**_file(file.path), weight=file.weight) for file in run.training_files]
    return Provenance(
        training=several or [DataFile(**_file(run.training_file))],
        validation=DataFile(**_file(run.validation_file)) if run.validation_file else None,
        model=_weights(run.model),
        reference=_weights(run.reference) if run.reference else None,
        spec=run.training,
        day=run.today,
        code=Code(version=metadata.version("dpo-service"), source=source_digest()),
        python=platform.python_version(),
        libraries={name: metadata.version(name) for name in LIBRARIES},
        environment=_environment(),
        machine=Machine(device=run.device, name=_device_name(run.device), ranks=run.ranks),
    )


def manifest_of(manifest: Manifest, provenance: Provenance) -> CheckpointManifest:
    """What is published with a checkpoint: only the files that users get, and not itself."""
    public = [file for file in manifest.files if file.path.startswith("model/")]
    files = [file for file in public if file.path != f"model/{FILE_NAME}"]
    shown = [file.model_copy(update={"path": file.path.removeprefix("model/")}) for file in files]
    return CheckpointManifest(step=manifest.step, kind=manifest.kind, files=shown, provenance=provenance)


def source_digest() -> str:
    """Of the training library as it is installed."""
    root = Path(dpo_core.__file__).parent
    lines = [f"{path.relative_to(root).as_posix()} {sha256_of(path)}\n" for path in sorted(root.rglob("*.py"))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _file(path: Path) -> dict[str, object]:
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


def _weights(source: ModelSource) -> Weights:
    return Weights(id=source.id, sha256=weights_digest(source))


def _environment() -> str:
    lines = {f"{found.metadata['Name']}=={found.version}\n".lower() for found in metadata.distributions()}
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _device_name(device: Device) -> str:
    """The first GPU's or the CPU's; without torch, which a worker doesn't load."""
    pattern, files = (
        (r"^Model:\s*(.+)$", sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")))
        if device == "cuda"
        else (r"^model name\s*:\s*(.+)$", [Path("/proc/cpuinfo")])
    )
    for path in files:
        if path.exists() and (found := re.search(pattern, path.read_text(), re.MULTILINE)):
            return found[1].strip()
    return platform.machine()

"""Which measured log-probabilities of a reference may stand for each other: one digest of all they depend on.

Imports no torch: `dpo_core.prepare` names the group before a GPU is taken, so that its values can be looked for.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from dpo_core.model_folder import configs
from dpo_core.run_directory import sha256_of
from dpo_core.spec import ModelSource, RunSpec

KERNELS = 4
"""Raised by whoever changes how dpo_core computes a log-probability: older values are not found any more."""
SOFTWARE = ("torch", "transformers", "peft")
HASHING_THREADS = 8


def reference_group(run: RunSpec) -> str | None:
    """The group of the run's reference as 64 hex digits; None where the run has none. `run.training` is resolved.

    Reads every byte of the reference's weights.
    """
    training = run.training
    source = run.model if training.reference == "start" else run.reference
    if training.method != "dpo" or source is None:
        return None
    facts = {
        "weights": weights_digest(source),
        "form": form(run, source),
        "arithmetic": arithmetic(run),
        "device": run.device,
        "kernels": KERNELS,
        **{name: version(name) for name in SOFTWARE},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def weights_digest(source: ModelSource) -> str:
    """One digest of the effective weights: of config.json and weights, for an adapter also of those of its base.

    Raises:
        OSError: a folder is not there.
    """
    folders = {"base": source.base_path, "model": source.path}
    files = [(role, path) for role, folder in folders.items() if folder is not None for path in _weights_in(folder)]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        digests = pool.map(sha256_of, [path for _, path in files])
    lines = [f"{role}/{path.name} {digest}\n" for (role, path), digest in zip(files, digests, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _weights_in(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.safetensors"), *configs(folder)])


def form(run: RunSpec, source: ModelSource) -> str:
    """How an adapter takes part. A fresh one changes nothing, so its start counts as whole."""
    if source.base_path is None:
        return "whole"
    trained_on = source is run.model and run.training.lora is not None
    return "adapter" if trained_on else "merged"


def arithmetic(run: RunSpec) -> str:
    """The types of a forward pass (dpo_core/engine.py): in ZeRO stage 0 the policy's bfloat16 is autocast's."""
    training = run.training
    if training.reference != "start":
        return str(training.precision)
    compiled = ", compiled" if training.compile is True else ""
    if training.precision == "float32":
        return f"float32{compiled}"
    if training.zero_stage != 0:
        return f"bfloat16{compiled}"
    return f"autocast{'' if training.lora is not None else ' of float32 weights'}{compiled}"

"""The README.md of every checkpoint: what it came from, what it was trained on and how, what it measured.

Its front matter is what the Hub's clients read. Values stand in it as JSON, which every YAML reader takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane import leases
from control_plane.leases import Claim
from control_plane.result_names import best_name
from control_plane.tables import File, Job, Model
from dpo_core.run_directory import Manifest

UNKNOWN = "unknown"
SHOWN = 200
"""Characters of a value, such as a whole chat template, that a card shows."""


def for_checkpoint(session: Session, claim: Claim, manifest: Manifest) -> str:
    """The card of the checkpoint that `manifest` describes. StaleFence when the job is no longer this claim's."""
    job = leases.held(session, claim)
    start = session.get_one(Model, job.model_id)
    used = [file["id"] for file in job.training_files or [{"id": job.training_file_id}]]
    ids = [*used, *filter(None, [job.validation_file_id])]
    files = {file.id: file for file in session.scalars(select(File).where(File.id.in_(ids)))}
    return "\n".join(
        [
            front_matter(job, start, manifest),
            *_origin(job, start, manifest),
            *_data(job, [files[file_id] for file_id in ids if file_id in files]),
            *_values(job),
            *_metrics(manifest),
            *_making(job, manifest),
        ]
    )


def front_matter(job: Job, start: Model, manifest: Manifest) -> str:
    """What the Hub calls the card's metadata."""
    adapter = manifest.kind == "adapter"
    fields = {
        "license": start.facts.get("license") or UNKNOWN,
        "base_model": (start.base_id or start.id) if adapter else start.id,
        "base_model_relation": "adapter" if adapter else "finetune",
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": [job.method, *(["lora"] if adapter else []), "dpo-service"],
    }
    return "\n".join(_front_matter(fields))


def for_merged(name: str, adapter: Model, base: Model) -> str:
    """The card of the model `name`: the adapter, merged with its base."""
    fields = {
        "license": base.facts.get("license") or UNKNOWN,
        "base_model": base.id,
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "merged", "dpo-service"],
    }
    rows = [
        ("adapter", f"`{adapter.id}`, commit `{adapter.commit}`"),
        ("base", f"`{base.id}`, commit `{base.commit}`"),
        ("weights", f"`{base.facts.get('dtype', UNKNOWN)}`: each sum was rounded once, from float32"),
        ("licence", base.facts.get("license") or "unknown: the base's own files name none"),
    ]
    return "\n".join(
        [
            *_front_matter(fields),
            f"# {name}",
            "",
            f"All weights: an adapter merged with its base by dpo-service {version('dpo-service')}. Data, values and "
            "metrics stand in the adapter's card; the sum of every file stands in `SHA256SUMS`.",
            "",
            *_table(("", ""), rows),
        ]
    )


def _front_matter(fields: Mapping[str, Any]) -> list[str]:
    return ["---", *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()), "---", ""]


def _origin(job: Job, start: Model, manifest: Manifest) -> list[str]:
    what = "A LoRA adapter" if manifest.kind == "adapter" else "All weights"
    license_note = start.facts.get("license") or "unknown: the start's own files name none"
    rows = [
        ("started from", f"`{start.id}`" + (f", an adapter on `{start.base_id}`" if start.base_id else "")),
        ("method", f"`{job.method}`"),
        ("job", f"`{job.id}`"),
        ("step", f"{manifest.step}" + (", the last one" if manifest.final else "")),
        ("seed", str(job.seed)),
        ("tokens trained on", str(manifest.trained_tokens)),
        ("licence", license_note),
    ]
    return [
        f"# {job.result_name}, step {manifest.step}",
        "",
        f"{what}, trained by dpo-service. The model is known as `{job.result_name}-step-{manifest.step}`"
        + (f" and as `{job.result_name}`" if manifest.final else "")
        + (f"; as `{best_name(job.result_name)}`" if _is_best(manifest) else "")
        + ".",
        "",
        *_table(("", ""), rows),
    ]


def _data(job: Job, files: Sequence[File]) -> list[str]:
    weights = {file["id"]: file["weight"] for file in job.training_files or ()}
    rows = []
    for file in files:
        role = "validation" if file.id == job.validation_file_id else "training"
        weight = f", weight {weights[file.id]:g}" if role == "training" and file.id in weights else ""
        rows.append((role + weight, f"`{file.id}`", _text(file.filename), str(file.bytes), f"`{file.sha256}`"))
    return ["## Data", "", *_table(("use", "file", "name", "bytes", "SHA-256"), rows)]


def _values(job: Job) -> list[str]:
    values = (job.resolved or {}).get("values") or {}
    rows = [
        (f"`{name}`", _code(value["value"]), value["source"], _text(value["reason"]))
        for name, value in sorted(values.items())
    ]
    return ["## Values", "", *_table(("field", "value", "source", "why"), rows)] if rows else []


def _metrics(manifest: Manifest) -> list[str]:
    rows = [(f"`{name}`", f"{value:.6g}") for name, value in sorted(manifest.metrics.items())]
    return ["## Metrics", "", *_table(("metric", "value"), rows)] if rows else []


def _making(job: Job, manifest: Manifest) -> list[str]:
    best = manifest.best
    lines = [
        "## How it was made",
        "",
        f"With dpo-service {version('dpo-service')}, in attempt {job.training_attempts} of its job. The sum of every "
        "file stands in `SHA256SUMS`.",
    ]
    if best is not None:
        lines.append(f"The best checkpoint so far was the one of step {best.step} ({best.metric} {best.value:.6g}).")
    return [*lines, ""]


def _is_best(manifest: Manifest) -> bool:
    return manifest.best is not None and manifest.best.step == manifest.step


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def _text(text: str) -> str:
    """A user's or a reason's words in a cell, with nothing in them that Markdown or HTML would act on."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_{}[]()#+!|~$" else letter for letter in " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _code(value: Any) -> str:
    """A value as JSON, in an HTML element because a code span can't hold every text."""
    shown = json.dumps(value, ensure_ascii=False)
    return f"<code>{_text(shown if len(shown) <= SHOWN else shown[:SHOWN] + '…')}</code>"

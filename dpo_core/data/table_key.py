"""Which token tables may stand for each other: one digest of all that a table's bytes depend on."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from dpo_core.data.parts import Part
from dpo_core.data.tokenizer import tokenizer_folder
from dpo_core.run_directory import sha256_of
from dpo_core.spec import ModelSource, RunSpec

MODEL_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/default.jinja",
    "generation_config.json",  # which tokens end an answer
    "config.json",  # these, too
)
CODE = ("model_folder.py", "plan.py", "prepare_report.py", "spec.py")
"""What chooses an automatic max_length, beside all of `dpo_core.data`."""

SOFTWARE = ("jinja2", "pyarrow", "tokenizers", "zstandard")


def table_keys(run: RunSpec, training: Sequence[str], validation: str | None) -> dict[Part, str]:
    """For each part of a run's data 64 hex digits. `run.training` is as it was asked for; the files' sha256 beside it.

    Validation rows are cut like training rows, so an automatic length makes their table depend on both.
    """
    asked = run.training
    common = {
        "model": _files_of(run.model),
        "template": [asked.chat_template, asked.chat_template_kwargs, _today(run)],
        "reading": [asked.method, asked.columns, asked.scored_answers],
        "max_length": asked.max_length,
        "names": [file.id for file in run.training_files],
        "software": [_code(), sys.version_info[:2], *map(version, SOFTWARE)],
    }
    keys: dict[Part, str] = {"training": _digest(common | {"files": list(training)})}
    if validation is not None:
        length = keys["training"] if asked.max_length == "auto" else None
        keys["validation"] = _digest(common | {"files": [validation], "length": length})
    return keys


def _digest(facts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _files_of(model: ModelSource) -> list[object]:
    """What makes the tokens, and what bounds their number: an adapter's context is that of its base."""
    context = (model.base_path or model.path) / "config.json"
    return [
        [[name, sha256_of(path)] for name, path in _present(model)],
        sha256_of(context) if context.exists() else None,
    ]


def _present(model: ModelSource) -> list[tuple[str, Path]]:
    folder = tokenizer_folder(model)
    return [(name, path) for name in MODEL_FILES if (path := folder / name).exists()]


def _today(run: RunSpec) -> str | None:
    """The run's date, where a chat template may write it."""
    may_hold_one = [path for name, path in _present(run.model) if name.endswith(".jinja") or "config" in name]
    templates = [run.training.chat_template or "", *(path.read_text(encoding="utf-8") for path in may_hold_one)]
    return str(run.today) if any("strftime_now" in template for template in templates) else None


def _code() -> str:
    """Our own source: whatever is changed in it, tables of the code before are not found any more."""
    here = Path(__file__).parent
    sources = [*sorted(here.glob("*.py")), *(here.parent / name for name in CODE)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()

"""The questions that a check may ask, and the order to merge, with ids instead of paths.

`dpo_core.questions` has them with paths.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from control_plane.tables import File, Json, Model
from dpo_core.questions import ANSWERS

Kind = Literal["file", "file_columns", "model_file", "preview", "estimate", "merge"]

Columns = Mapping[str, str]
"""What the file calls fields of its rows, as in `training.columns`."""


@dataclass(frozen=True)
class Question:
    """What is asked, and about what."""

    kind: Kind
    body: Json
    files: tuple[File, ...] = ()
    models: tuple[Model, ...] = ()
    """With the base of each adapter."""
    makes: str | None = None
    """The id of the model that is made."""

    @property
    def about(self) -> list[str]:
        """Ids of the files and models, each once."""
        ids = [*(file.id for file in self.files), *(model.id for model in self.models), *filter(None, [self.makes])]
        return list(dict.fromkeys(ids))

    @property
    def digest(self) -> str:
        """The same for the same question about the same bytes, answered by the same software."""
        facts: dict[str, Any] = {
            "answers": ANSWERS,
            "kind": self.kind,
            "body": self.body,
            "files": [(file.id, file.sha256) for file in self.files],
            "models": [(it.id, it.path, it.storage_prefix, it.facts) for it in self.models],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def about_file(file: File, columns: Columns | None = None) -> Question:
    """What the file holds: asked of every file after its upload, without `columns`."""
    if columns:
        return Question("file_columns", {"file": file.id, "columns": dict(columns)}, (file,))
    return Question("file", {"file": file.id}, (file,))


def about_tokens(file: File, models: Sequence[Model], columns: Columns | None = None) -> Question:
    """What a model makes of the file. `models`: that one, and the one that it stands on."""
    body = {"file": file.id, "model": models[0].id, "columns": dict(columns or {})}
    return Question("model_file", body, (file,), tuple(models))


def about_rows(
    file: File,
    models: Sequence[Model],
    *,
    limit: int,
    lines: Sequence[int],
    max_length: int | None,
    columns: Columns | None = None,
) -> Question:
    """What a model sees of some rows. `models` as above."""
    # A chat template may write the date: what a job sees that is made today.
    today = datetime.now(UTC).date().isoformat()
    shown = {"limit": limit, "lines": sorted(set(lines)), "max_length": max_length, "today": today}
    body = {"file": file.id, "model": models[0].id, "columns": dict(columns or {}), **shown}
    return Question("preview", body, (file,), tuple(models))


def about_merging(models: Sequence[Model], makes: str) -> Question:
    """No question but an order: the weights of an adapter, merged with its base. `models`: these two."""
    adapter, base = models
    facts = {"dtype": base.facts.get("dtype", "F32"), "bytes": base.facts.get("bytes", 0)}
    return Question("merge", {"model": adapter.id, "makes": makes, **facts}, (), (adapter, base), makes)

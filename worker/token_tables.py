"""Token tables between storage and a run directory: fetched before it starts, kept as they appear.

They only save time. One that is damaged or gone is made again; one that storage refuses is not kept.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy.orm import Session

from control_plane import token_cache
from control_plane.database import Database
from control_plane.leases import Claim
from control_plane.results import WorkOrder
from control_plane.storage import Storage
from control_plane.tables import TokenTable
from dpo_core.data.parts import Part, table_path
from dpo_core.data.table_key import table_keys
from dpo_core.run_directory import RunDirectory, sha256_of
from dpo_core.spec import RunSpec, TrainingSpec
from worker import cached_objects

logger = logging.getLogger(__name__)


class TokenTables:
    """Those of one attempt. `limit`: bytes that a project's tables may take in storage; 0 keeps none."""

    def __init__(self, database: Database, storage: Storage, claim: Claim, run: RunDirectory, *, limit: int) -> None:
        self._database = database
        self._storage = storage
        self._claim = claim
        self._run = run
        self._limit = limit
        self._made_of: dict[Path, tuple[str, list[str]]] = {}
        """For each path in the run directory the content that belongs there, and the files it is made of."""

        self._done: set[Path] = set()

    def fetch(self, order: WorkOrder, spec: RunSpec) -> None:
        """Brings what the project knows of this job's data into the run directory, where its program looks for it.

        Raises:
            StaleFence: the job is no longer ours.
        """
        if not self._limit:
            return
        asked = spec.model_copy(update={"training": TrainingSpec.model_validate(order.job.training)})
        training, validation = order.training_files, order.validation_file
        files: dict[Part, list[str]] = {"training": [file.id for file in training]}
        if validation is not None:
            files["validation"] = [*files["training"], validation.id]
        digests = [file.sha256 for file in training]
        for part, content in table_keys(asked, digests, validation.sha256 if validation else None).items():
            path = table_path(self._run.tokens, part)
            self._made_of[path] = content, files[part]
            self._fetch(path, content)

    def waiting(self) -> list[Path]:
        """Tables that a program has made and that are not in storage yet."""
        return [path for path in self._run.token_tables() if path in self._made_of and path not in self._done]

    def publish(self, path: Path) -> None:
        """Puts a table into storage, then makes it known.

        Raises:
            StaleFence: the job is no longer ours; nothing is made known.
        """
        content, file_ids = self._made_of[path]
        table = TokenTable(
            key=token_cache.table_key(self._claim, content, path.name),
            project_id=self._claim.project_id,
            job_id=self._claim.job_id,
            content=content,
            file_ids=file_ids,
            bytes=path.stat().st_size,
            sha256=sha256_of(path),
        )

        def make_known(session: Session) -> None:
            token_cache.store(session, self._claim, table, limit=self._limit)

        cached_objects.keep(self._database, self._storage, table.key, path, make_known)
        self._done.add(path)

    def _fetch(self, path: Path, content: str) -> None:
        with self._database.transaction() as session:
            table = token_cache.take(session, self._claim, content)
        if table is None:
            return
        found = cached_objects.fetch(self._storage, table.key, table.sha256, path)
        if found == "here":
            self._done.add(path)
        elif found == "damaged":
            logger.warning("%s: the cached token table %s is damaged or gone", self._claim.job_id, table.key)
            with self._database.transaction() as session:
                token_cache.drop(session, self._claim, table)

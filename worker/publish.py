"""Publishing checkpoints, the result file, and what other jobs may use: files into storage first, then one
fenced transaction makes them exist."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from control_plane import model_card, publication, removals
from control_plane.database import Database
from control_plane.errors import Conflict, StaleFence, StorageFull
from control_plane.leases import Claim
from control_plane.model_files import CARD
from control_plane.storage import Storage, checkpoint_prefix, state_prefix
from dpo_core.disk import STATES_KEPT
from dpo_core.failures import FULL
from dpo_core.provenance import FILE_NAME as PROVENANCE
from dpo_core.provenance import Provenance, manifest_of, provenance_of
from dpo_core.run_directory import CHECKSUMS, Event, Manifest, ManifestFile, RunDirectory, sha256_of, write_whole
from worker.reference_shards import ReferenceShards
from worker.relay import Relay
from worker.result_file import ResultFile
from worker.run_log import RunLog
from worker.token_tables import TokenTables

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 60.0
"""Seconds between two tries to store something, at most: the pause doubles."""
PATIENCE, WHEN_OVER = 12 * 3600.0, 3600.0
"""Seconds for which a storage that is away is tried: while the program trains on, and when it has ended."""
BRIEFLY = 120.0
"""So for one that is full, and for what is missing, perhaps on our own side."""
TOLD_AFTER = 30.0
"""Seconds after which the job's owner hears of it."""


class Publisher:
    """Publishes what one attempt leaves, oldest first, one thing at a time, on a pool."""

    def __init__(
        self,
        database: Database,
        storage: Storage,
        pool: ThreadPoolExecutor,
        claim: Claim,
        run: RunDirectory,
        *,
        relay: Relay,
        shards: ReferenceShards,
        tables: TokenTables,
        log: RunLog,
    ) -> None:
        self._database = database
        self._storage = storage
        self._pool = pool
        self._claim = claim
        self._run = run
        self._relay = relay
        self._shards = shards
        self._tables = tables
        self._log = log
        self._result = ResultFile(database, storage, claim, run)
        self._task: Future[None] | None = None
        self._provenance: Provenance | None = None
        self._published: set[int] = set()
        self._tries = 0
        self._refused_since = self._not_before = 0.0
        self._told = False

    @property
    def busy(self) -> bool:
        return self._task is not None and not self._task.done()

    def advance(self) -> bool:
        """Starts the next publication if none is under way; False once nothing is left to publish.

        Raises:
            StaleFence: the job is no longer ours. OSError: storage was full, or away, for too long.
        """
        if self.busy:
            return True
        if self._task is not None:
            task, self._task = self._task, None
            self._settle(task.exception())
        waiting = self._waiting()
        if waiting and time.monotonic() >= self._not_before:
            # What was measured on the way there goes first: should we die now, the next attempt begins behind it.
            self._relay.relay()
            self._task = self._pool.submit(waiting[0])
        return bool(waiting)

    def _waiting(self) -> list[Callable[[], None]]:
        """What is still to be published; the reference was measured before the first checkpoint was made, and all of
        the result before the run succeeded."""
        complete = [self._shards.complete] if self._shards.to_complete else []  # asked before shards are looked for
        shards = [partial(self._shards.publish, path) for path in self._shards.waiting()]
        tables = [partial(self._tables.publish, path) for path in self._tables.waiting()]
        complete_ones = self._run.complete_checkpoints()
        checkpoints = [partial(self._publish, *pair) for pair in complete_ones if pair[1].step not in self._published]
        result = [self._result.store] if self._result.to_store else []
        log = [self._log.keep] if self._log.to_keep else []
        return [*tables, *shards, *complete, *checkpoints, *result, *log]

    def _settle(self, error: BaseException | None) -> None:
        """Storage gets some patience; every other error is the caller's."""
        now = time.monotonic()
        if error is None:
            self._tries, self._told = 0, False
            return
        if self._tries == 0:
            self._refused_since = now
        if not isinstance(error, OSError | StorageFull):
            raise error
        away, patience = now - self._refused_since, self._patience(error)
        if away > patience:
            raise error
        self._tries += 1
        self._not_before = now + min(LONGEST_PAUSE, 2.0**self._tries)
        logger.warning("%s: something could not be stored, trying again: %s", self._claim.job_id, error)
        if away > TOLD_AFTER and not self._told:
            self._told = True
            message = f"Nothing could be stored for {away:.0f} s; it is tried for {patience / 60:.0f} minutes: {error}"
            with suppress(OSError):
                self._run.append_event(Event(code="storage_away", message=message, level="warn"))

    def _patience(self, error: OSError | StorageFull) -> float:
        if isinstance(error, StorageFull | FileNotFoundError) or error.errno in FULL:
            return BRIEFLY
        status = self._run.status()
        return PATIENCE if status is None or status.state in ("starting", "running") else WHEN_OVER

    def _publish(self, folder: Path, manifest: Manifest) -> None:
        """A crash before the transaction leaves nothing that anybody sees."""
        job_id, fence = self._claim.job_id, self._claim.fence
        public = checkpoint_prefix(job_id, fence, manifest.step)
        private = state_prefix(job_id, fence, manifest.step)
        manifest = self._with_card(folder, self._with_provenance(folder, manifest))
        with self._database.transaction() as session:
            removals.expect(session, public, private)
        for file in manifest.files:
            prefix = public if file.path.startswith("model/") else private
            self._storage.put_file(f"{prefix}/{file.path}", folder / file.path)
        write_whole(folder / CHECKSUMS, manifest.checksums())
        self._storage.put_file(f"{public}/model/{CHECKSUMS}", folder / CHECKSUMS)
        publish_stored(self._database, self._storage, self._claim, manifest, public=public, private=private)
        self._published.add(manifest.step)
        self._forget_old()
        self._remove_old_copies(manifest.step)

    def _with_card(self, folder: Path, manifest: Manifest) -> Manifest:
        """The checkpoint with its README.md, which says what the trainer doesn't know: ids, files, reasons."""
        with self._database.transaction() as session:
            text = model_card.for_checkpoint(session, self._claim, manifest)
        return with_file(folder, manifest, f"model/{CARD}", text)

    def _with_provenance(self, folder: Path, manifest: Manifest) -> Manifest:
        """The checkpoint with its manifest.json, which tells of the trainer's files alone: the same for the same run.

        The inputs are read once an attempt, here on the pool: training has begun.
        """
        if self._provenance is None:
            self._provenance = provenance_of(self._run.spec())
        text = manifest_of(manifest, self._provenance).model_dump_json(indent=2)
        return with_file(folder, manifest, f"model/{PROVENANCE}", text)

    def _forget_old(self) -> None:
        """First the rows say that they are gone, then they go: nobody resumes from half a state."""
        with self._database.transaction() as session:
            publication.forget_old(session, self._claim, states=STATES_KEPT)
        removals.carry_out(self._database, self._storage)

    def _remove_old_copies(self, newest: int) -> None:
        """The run directory keeps its newest checkpoint; storage has the others."""
        for folder, manifest in self._run.complete_checkpoints():
            if manifest.step in self._published and manifest.step < newest:
                shutil.rmtree(folder)


def publish_stored(
    database: Database, storage: Storage, claim: Claim, manifest: Manifest, *, public: str, private: str
) -> None:
    """Makes a checkpoint known whose files lie in storage. StaleFence: the job is no longer ours. Conflict: that took a
    day.

    Then the files are removed, perhaps with the whole project: nobody else would do so. Not those of a checkpoint that
    is known: its first commit took place, though the answer was lost.
    """
    try:
        with database.transaction() as session:
            removals.keep(session, public, private)
            publication.publish_checkpoint(session, claim, manifest, public)
    except (StaleFence, Conflict):
        removals.undo(database, storage, public, private)
        raise


def with_file(folder: Path, manifest: Manifest, path: str, text: str) -> Manifest:
    """The model of `folder` with one more file, or with that file anew."""
    write_whole(folder / path, text)
    made = ManifestFile(path=path, bytes=(folder / path).stat().st_size, sha256=sha256_of(folder / path))
    return manifest.model_copy(update={"files": [*(it for it in manifest.files if it.path != path), made]})

"""The result file of a run that is done: made of what PostgreSQL knows, stored, then attached to the job."""

from __future__ import annotations

import hashlib

from control_plane import removals, result_files
from control_plane.database import Database
from control_plane.errors import Conflict, StaleFence
from control_plane.ids import new_id
from control_plane.leases import Claim
from control_plane.storage import Storage, file_key
from control_plane.tables import Job
from dpo_core.run_directory import RunDirectory


class ResultFile:
    """That of one attempt."""

    def __init__(self, database: Database, storage: Storage, claim: Claim, run: RunDirectory) -> None:
        self._database = database
        self._storage = storage
        self._claim = claim
        self._run = run
        self._stored = False

    @property
    def to_store(self) -> bool:
        """Whether the run succeeded, so that everything is measured, and its file is not there yet."""
        if self._stored or self._claim.kind == "validate":
            return False
        status = self._run.status()
        return status is not None and status.state == "succeeded"

    def store(self) -> None:
        """Raises StaleFence where the job is no longer ours, Conflict where this took a day, and OSError where storage
        refuses; nothing stays then. What a commit without an answer leaves goes in a day, unless a row stands for it.
        """
        file_id, digest, size = new_id("file"), hashlib.sha256(), 0
        with self._database.transaction() as session:
            removals.expect(session, file_key(file_id))
        with self._storage.writer(file_key(file_id)) as sink, self._database.transaction() as session:
            for line in result_files.lines(session, session.get_one(Job, self._claim.job_id)):
                row = line.encode()
                sink.write(row)
                digest.update(row)
                size += len(row)
        try:
            with self._database.transaction() as session:
                removals.keep(session, file_key(file_id))
                result_files.attach(session, self._claim, file_id=file_id, bytes=size, sha256=digest.hexdigest())
        except (StaleFence, Conflict):
            self._storage.delete(file_key(file_id))
            raise
        self._stored = True

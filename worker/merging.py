"""An order to merge, from its claim to the model: a program on the CPU, then its files into storage."""

from __future__ import annotations

from concurrent.futures import Future

from sqlalchemy.orm import Session

from control_plane import checks, merges, models, removals
from control_plane.checks import Claim
from control_plane.errors import Conflict, StaleFence
from control_plane.model_files import CARD
from control_plane.storage import merged_prefix
from dpo_core.provenance import FILE_NAME as PROVENANCE
from dpo_core.provenance import CheckpointManifest, manifest_of
from dpo_core.questions import MergeSpec
from dpo_core.run_directory import CHECKSUMS, Failure, Manifest, write_whole
from worker.checking import Checking
from worker.inputs import fetch_model
from worker.publish import with_file
from worker.verdict import Ending
from worker.work import Tools


class Merging(Checking):
    def __init__(self, tools: Tools, claim: Claim, claimed_at: float) -> None:
        super().__init__(tools, claim, claimed_at)
        self._input = self._run.path / "input"
        self._storing: Future[None] | None = None
        self._prefix = ""

    def _fetch(self) -> None:
        with self._tools.database.transaction() as session:
            order = checks.work_order(session, self._claim)
        asked = order.check.question
        adapter = order.models[asked["model"]]
        base = order.models[adapter.base_id or ""]
        self._prefix = merged_prefix(adapter.job_id or adapter.id, self._claim.check_id, self._claim.fence)
        source = fetch_model(self._tools.storage, adapter, base, self._input)
        self._run.create(MergeSpec(model=source, dtype=asked["dtype"], step=adapter.step or 0))

    def _publish(self) -> bool:
        """Once the program has succeeded, on the pool."""
        status = self._run.status()
        if status is None or status.state != "succeeded":
            return False
        if self._storing is None:
            self._storing = self._tools.pool.submit(self._store)
        if not self._storing.done():
            return True
        if self._storing.exception() is not None:
            task, self._storing = self._storing, None  # where PostgreSQL is away it is tried again
            task.result()
        return False

    @property
    def _busy(self) -> bool:
        return super()._busy or (self._storing is not None and not self._storing.done())

    def _report(self, session: Session, ending: Ending) -> None:
        """A model that is published is the answer."""
        if isinstance(ending, Failure) or ending == "stopped":
            super()._report(session, ending)

    def _store(self) -> None:
        """A crash before the transaction leaves nothing that anybody sees."""
        folder = self._run.merged
        manifest = self._with_provenance(Manifest.model_validate_json(self._run.answer_file.read_bytes()))
        with self._tools.database.transaction() as session:
            text = merges.card(session, self._claim)
            removals.expect(session, self._prefix)
        manifest = with_file(folder, manifest, f"model/{CARD}", text)
        write_whole(folder / "model" / CHECKSUMS, manifest.checksums())
        for path in [*(file.path for file in manifest.files), f"model/{CHECKSUMS}"]:
            self._tools.storage.put_file(f"{self._prefix}/{path}", folder / path)
        try:
            with self._tools.database.transaction() as session:
                removals.keep(session, self._prefix)
                merges.publish(session, self._claim, manifest, self._prefix)
        except (StaleFence, Conflict):  # perhaps with the model, or its project: nobody else would remove the files
            with self._tools.database.transaction() as session:
                models.note_if_nameless(session, self._prefix)
            removals.carry_out(self._tools.database, self._tools.storage)
            raise

    def _with_provenance(self, manifest: Manifest) -> Manifest:
        """With the adapter's own manifest.json, but for the files: what decided the adapter decided these weights."""
        known = self._input / PROVENANCE
        if not known.exists():  # an earlier version made the adapter
            return manifest
        provenance = CheckpointManifest.model_validate_json(known.read_bytes()).provenance
        text = manifest_of(manifest, provenance).model_dump_json(indent=2)
        return with_file(self._run.merged, manifest, f"model/{PROVENANCE}", text)

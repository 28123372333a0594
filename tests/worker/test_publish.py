"""The transaction that makes a stored checkpoint known, when it is repeated and when it comes too late."""

from __future__ import annotations

from pathlib import Path

import pytest

from control_plane import jobs, removals
from control_plane.database import Database
from control_plane.errors import StaleFence
from control_plane.leases import Claim
from control_plane.settings import Settings
from control_plane.storage import Storage, checkpoint_prefix, open_storage, state_prefix
from dpo_core.run_directory import Manifest
from tests.control_plane.rows import PROJECT, add_all, event_codes, started
from worker.publish import publish_stored


@pytest.fixture
def stocked(database: Database) -> Database:
    with database.transaction() as session:
        add_all(session)
    return database


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return open_storage(settings.storage_url)


def publish(database: Database, storage: Storage, tmp_path: Path, claim: Claim) -> tuple[str, str]:
    """Step 3, its bytes first; returns their keys."""
    public = checkpoint_prefix(claim.job_id, claim.fence, 3)
    private = state_prefix(claim.job_id, claim.fence, 3)
    keys = f"{public}/model/config.json", f"{private}/state/progress.json"
    with database.transaction() as session:
        removals.expect(session, public, private)
    for key in keys:
        (tmp_path / "file").write_text("{}")
        storage.put_file(key, tmp_path / "file")
    publish_stored(database, storage, claim, Manifest(step=3, kind="full", files=[]), public=public, private=private)
    return keys


def test_one_that_comes_too_late_leaves_no_bytes(stocked: Database, storage: Storage, tmp_path: Path) -> None:
    claim = started(stocked)
    with stocked.transaction() as session:
        jobs.cancel(session, PROJECT, claim.job_id)
    with pytest.raises(StaleFence):
        publish(stocked, storage, tmp_path, claim)
    assert list(storage.keys("checkpoints")) == list(storage.keys("private")) == []


def test_one_whose_answer_was_lost_is_repeated_in_vain(stocked: Database, storage: Storage, tmp_path: Path) -> None:
    claim = started(stocked)
    keys = publish(stocked, storage, tmp_path, claim)
    assert publish(stocked, storage, tmp_path, claim) == keys
    assert event_codes(stocked, claim.job_id).count("checkpoint_created") == 1


def test_what_was_published_stays_when_its_repetition_comes_too_late(
    stocked: Database, storage: Storage, tmp_path: Path
) -> None:
    claim = started(stocked)
    public, private = publish(stocked, storage, tmp_path, claim)
    with stocked.transaction() as session:
        jobs.cancel(session, PROJECT, claim.job_id)
    with pytest.raises(StaleFence):
        publish(stocked, storage, tmp_path, claim)
    assert storage.exists(public), "its row still names it"
    assert storage.exists(private), "what goes is noted with the cancel, and carried out later"

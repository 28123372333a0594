"""Orders to merge, and the models that they make: once, under every name, and no longer than the adapter."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from control_plane import checks, hub, merges, models, publication, quotas, results
from control_plane.checks import Claim, State
from control_plane.database import Database
from control_plane.errors import Conflict, InvalidRequest, NotFound, QuotaExceeded, StaleFence
from control_plane.job_states import State as JobState
from control_plane.leases import Claim as JobClaim
from control_plane.quotas import Limits
from control_plane.tables import AuditEntry, Check, Model
from dpo_core.best import Best
from dpo_core.run_directory import Manifest
from tests.control_plane.rows import MODEL, PROJECT, add_project, job_in, noted, read_job, started

BASE_FACTS = {"bytes": 400, "dtype": "BF16", "license": "mit"}


def publish(database: Database, claim: JobClaim, step: int, *, final: bool = False, best: int | None = None) -> str:
    """An adapter; its one file is as long as the step, and says with it what it is."""
    files = [{"path": "model/adapter_model.safetensors", "bytes": step, "sha256": f"{claim.fence}-{step}"}]
    facts = {"step": step, "kind": "adapter", "files": files, "final": final}
    best_step = None if best is None else Best(step=best, metric="loss", value=0.5)
    manifest = Manifest.model_validate({**facts, "best": best_step})
    with database.transaction() as session:
        prefix = f"checkpoints/{claim.job_id}/{claim.fence}/step-{step}"
        return publication.publish_checkpoint(session, claim, manifest, prefix).id


@pytest.fixture
def training(stocked: Database) -> JobClaim:
    with stocked.transaction() as session:
        base = session.get_one(Model, MODEL)
        base.facts, base.commit = BASE_FACTS, "b" * 40
    return started(stocked)


@pytest.fixture
def adapter(stocked: Database, training: JobClaim) -> str:
    """A finished job's result, which is also its step 2 and its best."""
    publish(stocked, training, 2, final=True, best=2)
    with stocked.transaction() as session:
        results.succeed(session, training)
    return read_job(stocked, training.job_id).result_name


def order(database: Database, model_id: str, limits: Limits = quotas.NONE) -> Check:
    with database.transaction() as session:
        return merges.order(session, PROJECT, model_id, limits=limits)


def claim(database: Database) -> Claim:
    with database.transaction() as session:
        claimed = checks.claim(session, worker_id="w", lease_seconds=30, kinds=["merge"])
    assert claimed is not None
    return claimed


def publish_merged(database: Database, held: Claim) -> str:
    """As a worker does; returns the prefix of its files."""
    prefix = f"checkpoints/job/merged/{held.check_id}-{held.fence}"
    files = [{"path": "model/model.safetensors", "bytes": 398, "sha256": "m"}]
    with database.transaction() as session:
        manifest = Manifest.model_validate({"step": 2, "kind": "full", "files": files})
        merges.publish(session, held, manifest, prefix)
    return prefix


def merge(database: Database, model_id: str) -> str:
    """The id of the merged model."""
    assert order(database, model_id).state == State.waiting
    publish_merged(database, claim(database))
    assert order(database, model_id).state == State.done
    return f"{model_id}-merged"


def get(database: Database, model_id: str) -> Model:
    with database.transaction() as session:
        return models.get(session, PROJECT, model_id)


def test_a_model_of_its_own(stocked: Database, adapter: str) -> None:
    found = get(stocked, merge(stocked, adapter))
    assert (found.kind, found.form, found.base_id, found.step, found.bytes) == ("checkpoint", "full", None, 2, 398)
    assert found.job_id == get(stocked, adapter).job_id
    assert found.facts == {
        **BASE_FACTS,
        "merged": {"adapter": get(stocked, adapter).commit, "base": MODEL, "base_commit": "b" * 40},
    }
    assert [file["path"] for file in found.files or ()] == ["SHA256SUMS", "model.safetensors"]
    with stocked.transaction() as session:
        entries = session.scalars(select(AuditEntry.target).where(AuditEntry.action == "model.merge_ordered")).all()
    assert entries == [adapter], "asked again, it is no new order"


def test_other_names_of_the_same_weights_need_no_work(stocked: Database, adapter: str) -> None:
    first = merge(stocked, adapter)
    for name in (f"{adapter}-step-2", f"{adapter}-best"):
        assert order(stocked, name, Limits(bytes=0)).state == State.done, "no byte is added"
        assert get(stocked, f"{name}-merged").storage_prefix == get(stocked, first).storage_prefix
    with stocked.transaction() as session:
        named = hub.revisions(session, PROJECT, adapter)
        assert list(named) == ["main", "best", "best-merged", "merged", "step-2", "step-2-merged"]
        for revision in ("merged", "best-merged", "step-2-merged", named["merged"].commit or ""):
            assert hub.resolve(session, PROJECT, adapter, revision).form == "full"
        assert hub.resolve(session, PROJECT, f"{adapter}-step-2", "merged").id == f"{adapter}-step-2-merged"
        assert hub.resolve(session, PROJECT, first, "main").id == first


def test_what_is_not_merged_says_how(stocked: Database, adapter: str) -> None:
    way = f"dpo models merge {adapter}"
    with stocked.transaction() as session:
        with pytest.raises(NotFound, match=way):
            models.get(session, PROJECT, f"{adapter}-merged")
        with pytest.raises(NotFound, match=way):
            hub.resolve(session, PROJECT, f"{adapter}-merged", "main")
        with pytest.raises(NotFound, match=way) as missing:
            hub.resolve(session, PROJECT, adapter, "merged")
        assert missing.value.code == hub.REVISION_NOT_FOUND
        with pytest.raises(NotFound, match=f"{way}-step-2"):
            hub.resolve(session, PROJECT, adapter, "step-2-merged")
        for model, revision in ((adapter, "step-3-merged"), (MODEL, "merged")):
            with pytest.raises(NotFound) as missing:
                hub.resolve(session, PROJECT, model, revision)
            assert "dpo models merge" not in missing.value.message


def test_what_can_not_be_merged(stocked: Database, adapter: str) -> None:
    with pytest.raises(InvalidRequest, match="has all its weights already"):
        order(stocked, MODEL)
    with pytest.raises(NotFound):
        order(stocked, f"{adapter}-step-7")
    with stocked.transaction() as session:
        add_project(session, "proj-2", "other")
        with pytest.raises(NotFound):
            merges.order(session, "proj-2", adapter)
        long = Model(id=f"default/{'m' * 82}", project_id=PROJECT, kind="checkpoint", form="adapter", base_id=MODEL)
        session.add(long)
        session.flush()
        with pytest.raises(InvalidRequest, match="longer than the 96 characters"):
            merges.order(session, PROJECT, long.id)


def test_the_quota_counts_it_from_the_order_on(stocked: Database, adapter: str) -> None:
    def used() -> int:
        with stocked.transaction() as session:
            return quotas.usage(session, PROJECT).bytes

    before = used()
    with pytest.raises(QuotaExceeded, match="this would add 400"):
        order(stocked, adapter, Limits(bytes=before + 399))
    order(stocked, adapter, Limits(bytes=before + 400))
    assert used() == before + 400
    publish_merged(stocked, claim(stocked))
    assert used() == before + 398


def test_it_goes_with_the_adapter(stocked: Database, adapter: str) -> None:
    merged = merge(stocked, adapter)
    prefix = get(stocked, merged).storage_prefix
    with stocked.transaction() as session:
        job = job_in(session, JobState.queued, model=merged)
        with pytest.raises(Conflict, match=job.id):
            models.delete(session, PROJECT, adapter)
        job.state = "cancelled"
        session.flush()
        models.delete(session, PROJECT, adapter)
        with pytest.raises(NotFound):
            models.get(session, PROJECT, merged)
        assert prefix in noted(session)


def test_alone_it_goes_and_can_be_ordered_again(stocked: Database, adapter: str) -> None:
    merged = merge(stocked, adapter)
    with stocked.transaction() as session:
        models.delete(session, PROJECT, merged)
    assert get(stocked, adapter).form == "adapter"
    assert merge(stocked, adapter) == merged


def test_what_was_trained_from_merged_weights_is_not_taken_for_them(stocked: Database, adapter: str) -> None:
    merged = merge(stocked, adapter)
    claim = started(stocked, model=merged)
    files = [{"path": "model/model.safetensors", "bytes": 7, "sha256": "t"}]
    manifest = Manifest.model_validate({"step": 1, "kind": "full", "files": files, "final": True})
    with stocked.transaction() as session:
        trained = publication.publish_checkpoint(session, claim, manifest, "checkpoints/trained").id
        results.succeed(session, claim)
        assert session.get_one(Model, trained).facts == BASE_FACTS
        models.delete(session, PROJECT, merged)
    assert order(stocked, f"{adapter}-step-2").state == State.waiting, "its weights are nobody's any more"


def test_an_adapter_that_is_deleted_meanwhile(stocked: Database, adapter: str) -> None:
    order(stocked, adapter)
    held = claim(stocked)
    with stocked.transaction() as session:
        models.delete(session, PROJECT, adapter)
    with pytest.raises(StaleFence):
        publish_merged(stocked, held)
    with pytest.raises(NotFound):
        get(stocked, f"{adapter}-merged")


def test_a_name_that_moves_on_loses_its_merged_weights(stocked: Database, training: JobClaim) -> None:
    """Those of the best checkpoint so far, when another one is better; unless a job starts from them."""
    publish(stocked, training, 1, best=1)
    best = f"{read_job(stocked, training.job_id).result_name}-best"
    merged = merge(stocked, best)
    publish(stocked, training, 2, best=1)
    assert get(stocked, merged).step == 1, "it is still the best"
    publish(stocked, training, 3, best=3)
    with pytest.raises(NotFound, match="dpo models merge"):
        get(stocked, merged)
    merge(stocked, best)
    former = get(stocked, merged)
    with stocked.transaction() as session:
        job_in(session, JobState.queued, model=merged)
    publish(stocked, training, 4, best=4)
    assert get(stocked, merged).commit == former.commit
    merge(stocked, best)
    with stocked.transaction() as session:
        assert models.get(session, PROJECT, merged).storage_prefix != former.storage_prefix
        assert former.storage_prefix in noted(session)


def test_who_asks_for_questions_gets_no_order(stocked: Database, adapter: str) -> None:
    order(stocked, adapter)
    with stocked.transaction() as session:
        assert checks.claim(session, worker_id="w", lease_seconds=30) is None

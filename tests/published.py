"""Checkpoints of a job in storage and in the database, published by the functions that a worker calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from control_plane import leases, model_card, publication, results
from control_plane.database import Database
from control_plane.leases import Claim
from control_plane.model_files import CARD
from control_plane.settings import Settings
from control_plane.storage import checkpoint_prefix, open_storage
from dpo_core.best import Best
from dpo_core.run_directory import CHECKSUMS, Manifest, ManifestFile, sha256_of
from dpo_core.spec import TrainingSpec

VALUES = {"beta": {"value": 0.1, "source": "given", "reason": "given in the spec"}}


def claim(database: Database) -> Claim:
    """The next job, claimed to be trained; its data is read first where nobody did."""
    while True:
        with database.transaction() as session:
            claimed = leases.claim(session, worker_id="w", free=8, total=8, lease_seconds=60)
            assert claimed is not None
            if claimed.kind == "train":
                return claimed
            resolved = TrainingSpec(batch_size=16, epochs=2, beta=0.1, learning_rate=1e-6).model_dump(mode="json")
            results.finish_validation(session, claimed, {"training": resolved, "values": VALUES, "total_steps": 4})


def publish(
    database: Database,
    settings: Settings,
    held: Claim,
    step: int,
    files: Mapping[str, Path],
    *,
    kind: str = "full",
    final: bool = False,
    best: Best | None = None,
) -> None:
    """`files`: where the model's files lie, by their paths in it. The card and the sums are added, as a worker does."""
    prefix = checkpoint_prefix(held.job_id, held.fence, step)
    storage = open_storage(settings.storage_url)
    listed = [_listed(name, path) for name, path in sorted(files.items())]
    facts = {"step": step, "kind": kind, "final": final, "metrics": {"loss": 0.5}, "best": best}
    manifest = Manifest.model_validate({**facts, "files": listed})
    with database.transaction() as session:
        card = model_card.for_checkpoint(session, held, manifest).encode()
    for name, path in files.items():
        storage.put_file(f"{prefix}/model/{name}", path)
    put(settings, f"{prefix}/model/{CARD}", card)
    stored = Path(settings.storage_url.removeprefix("file://")) / prefix / "model" / CARD
    manifest = manifest.model_copy(update={"files": [*listed, _listed(CARD, stored)]})
    put(settings, f"{prefix}/model/{CHECKSUMS}", manifest.checksums().encode())
    with database.transaction() as session:
        publication.publish_checkpoint(session, held, manifest, prefix)


def succeed(database: Database, held: Claim) -> None:
    with database.transaction() as session:
        results.succeed(session, held)


def put(settings: Settings, key: str, content: bytes) -> None:
    with open_storage(settings.storage_url).writer(key) as sink:
        sink.write(content)


def files_of(folder: Path, names: Sequence[str] = ()) -> dict[str, Path]:
    """Every file below `folder` by its path in it, or those named."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: found[name] for name in names} if names else found


def _listed(name: str, path: Path) -> ManifestFile:
    return ManifestFile(path=f"model/{name}", bytes=path.stat().st_size, sha256=sha256_of(path))

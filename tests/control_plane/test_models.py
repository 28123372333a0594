from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from control_plane import checks, jobs, leases, models, publication, results
from control_plane.database import Database
from control_plane.errors import Conflict, InvalidRequest, NotFound
from control_plane.job_states import State
from control_plane.leases import Claim
from control_plane.model_folder import ModelFacts, inspect_folder
from control_plane.questions import Question
from control_plane.tables import Model
from dpo_core.run_directory import Manifest
from tests.control_plane.model_folders import make_folder
from tests.control_plane.rows import MODEL, PROJECT, add_project, job_in, noted, started
from tests.makers import make_tiny_model


@pytest.mark.parametrize("shards", [False, True])
def test_facts(tmp_path: Path, shards: bool) -> None:
    folder = make_folder(tmp_path / "m", shards=shards)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert inspect_folder(folder) == ModelFacts(
        model_type="llama",
        architectures=["LlamaForCausalLM"],
        parameters=264 * 8 + 8,
        bytes=size,
        dtype="F32",
        context_length=512,
        vocabulary=259,
        chat_template=True,
        license=None,
    )


def test_a_model_that_transformers_saved(tmp_path: Path) -> None:
    facts = inspect_folder(make_tiny_model(tmp_path / "m", chat_template=None))
    assert (facts.model_type, facts.context_length, facts.dtype, facts.chat_template) == ("llama", 4096, "F32", False)
    assert facts.parameters == 264 * 32 * 2 + 2 * (32 * 32 * 2 + 16 * 32 * 2 + 3 * 32 * 64 + 2 * 32) + 32


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def put(name: str, content: object) -> Callable[[Path], None]:
    return lambda folder: (
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content)) and None
    )


@pytest.mark.parametrize(
    ("damage", "shards", "words"),
    [
        (remove("config.json"), False, "config.json is missing"),
        (put("config.json", "{"), False, "not valid JSON"),
        (put("config.json", []), False, "not a JSON object"),
        (put("config.json", {}), False, "no model_type"),
        (put("config.json", {"model_type": "x", "auto_map": {"AutoModel": "m.M"}}), False, "never run here"),
        (put("tokenizer_config.json", {"auto_map": {"AutoTokenizer": "t.T"}}), False, "never run here"),
        (put("config.json", {"model_type": "t5", "is_encoder_decoder": True}), False, "encoder-decoder"),
        (put("config.json", {"model_type": "x", "quantization_config": {"bits": 4}}), False, "quantised"),
        (put("adapter_config.json", {}), False, "merge_and_unload"),
        (remove("tokenizer.json"), False, "AutoTokenizer.from_pretrained"),
        (put("tokenizer.json", "{}"), False, "tokenizer.json"),
        (remove("model.safetensors"), False, "no weights"),
        (put("model.safetensors", "version https://git-lfs.github.com/spec/v1"), False, "can't be read as safetensors"),
        (remove("model-00002-of-00002.safetensors"), True, "which is missing"),
        (put("model.safetensors.index.json", {"weight_map": {"a": "../x.safetensors"}}), True, "not a file of this"),
        (put("model.safetensors.index.json", {}), True, "no weight_map"),
        (
            put(
                "model.safetensors.index.json",
                {"weight_map": {"embed": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}},
            ),
            True,
            "disagree about",
        ),
    ],
)
def test_refused_folders(tmp_path: Path, damage: Callable[[Path], None], shards: bool, words: str) -> None:
    folder = make_folder(tmp_path / "m", shards=shards)
    damage(folder)
    with pytest.raises(InvalidRequest) as refused:
        inspect_folder(folder)
    assert words in refused.value.message
    assert str(folder) in refused.value.message
    assert refused.value.param == "path"


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InvalidRequest) as refused:
        inspect_folder(folder)
    assert refused.value.code == "pickle_refused"
    lines = [line.strip() for line in refused.value.message.splitlines()[1:]]
    compile("\n".join(lines), "advice", "exec")
    assert any("AutoModelForCausalLM" in line and str(folder) in line for line in lines)


def test_registering(database: Database, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "tiny")
    with database.transaction() as session:
        add_project(session)
    with database.transaction() as session:
        model = models.register_base(session, folder)
        assert (model.id, model.kind, model.form, model.path) == ("base/tiny", "base", "full", str(folder))
        assert model.facts["context_length"] == 512
        make_folder(folder, max_position_embeddings=1024)
        check_id = checks.ask(session, PROJECT, Question("preview", {}, (), (model,))).id
        assert models.register_base(session, folder, "tiny").facts["context_length"] == 1024
        assert checks.read(session, check_id) is None, "what was known of the folder goes"
        other = make_folder(tmp_path / "other")
        with pytest.raises(Conflict, match="choose another name"):
            models.register_base(session, other, "tiny")
        models.unregister_base(session, "base/tiny")
        with pytest.raises(NotFound):
            models.get(session, PROJECT, "base/tiny")
        assert models.register_base(session, other, "tiny").path == str(other)
        for name in ("a b", "a/b", "-a", "", "x" * 97):
            with pytest.raises(InvalidRequest, match="model name"):
                models.register_base(session, other, name)


def publish(database: Database, claim: Claim, step: int, *, final: bool = False, kind: str = "full") -> str:
    prefix = f"checkpoints/{claim.job_id}/{claim.fence}/step-{step}"
    manifest = Manifest.model_validate({"step": step, "kind": kind, "files": [], "final": final})
    with database.transaction() as session:
        return publication.publish_checkpoint(session, claim, manifest, prefix).id


def finished(database: Database, claim: Claim) -> str:
    """Publishes step 1 and the final step 2, ends the job; returns the result's id."""
    publish(database, claim, 1)
    publish(database, claim, 2, final=True)
    with database.transaction() as session:
        results.succeed(session, claim)
        return jobs.get(session, PROJECT, claim.job_id).result_name


def test_two_names_of_the_same_bytes(stocked: Database) -> None:
    claim = started(stocked)
    result = finished(stocked, claim)
    prefix = f"checkpoints/{claim.job_id}/{claim.fence}"
    with stocked.transaction() as session:
        models.delete(session, PROJECT, f"{result}-step-1")
        models.delete(session, PROJECT, result)
        assert noted_models(session) == [f"{prefix}/step-1"]
        models.delete(session, PROJECT, f"{result}-step-2")
        assert noted_models(session) == [f"{prefix}/step-1", f"{prefix}/step-2"]
        assert [model.id for model in models.list_models(session, PROJECT)] == [MODEL]
        assert jobs.list_checkpoints(session, PROJECT, claim.job_id).items == []
        with pytest.raises(NotFound):
            models.delete(session, PROJECT, result)


def noted_models(session: Session) -> list[str]:
    return [prefix for prefix in noted(session) if prefix.startswith("checkpoints/")]


def test_two_names_deleted_at_once(stocked: Database) -> None:
    """Each deleter would take the other's name for a reason to keep the bytes; so the second waits for the first."""
    result = finished(stocked, started(stocked))
    with stocked.transaction() as second:
        second.connection().exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
        with stocked.transaction() as first:
            models.delete(first, PROJECT, result)
            with pytest.raises(OperationalError, match="lock timeout"):
                models.delete(second, PROJECT, f"{result}-step-2")
        second.rollback()


def test_models_in_use_stay(stocked: Database) -> None:
    claim = started(stocked)
    checkpoint = publish(stocked, claim, 1)
    with stocked.transaction() as session, pytest.raises(Conflict, match=claim.job_id):
        models.delete(session, PROJECT, checkpoint)  # its own job may still resume from it
    result = finished(stocked, claim)
    uses: list[dict[str, Any]] = [{"model": result}, {"training": {"method": "dpo", "reference": result}}]
    for use in uses:
        with stocked.transaction() as session:
            job = job_in(session, State.queued, **use)
            with pytest.raises(Conflict, match=job.id):
                models.delete(session, PROJECT, result)
            jobs.cancel(session, PROJECT, job.id)
    with stocked.transaction() as session:
        models.delete(session, PROJECT, result)


def test_what_an_adapter_stands_on_stays(stocked: Database) -> None:
    result = finished(stocked, started(stocked))
    with stocked.transaction() as session:
        job_in(session, State.queued, model=result)
        claim = leases.claim(session, worker_id="w", free=8, total=8, lease_seconds=30)
    assert claim is not None
    adapter = publish(stocked, claim, 1, kind="adapter")
    with stocked.transaction() as session:
        jobs.cancel(session, PROJECT, claim.job_id)
        with pytest.raises(Conflict, match=adapter):
            models.delete(session, PROJECT, result)
        models.delete(session, PROJECT, adapter)
        models.delete(session, PROJECT, result)


def test_an_unknown_id_is_compared_with_the_newest_alone(stocked: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ten thousands of checkpoints, each 404 would take seconds."""
    monkeypatch.setattr(models, "COMPARED", 2)
    with stocked.transaction() as session:
        made = datetime(2030, 1, 1, tzinfo=UTC)
        for number, name in enumerate(("older-one", "newer-two", "newest-three")):
            model_id, moment = f"default/{name}", made + timedelta(days=number)
            session.add(Model(id=model_id, project_id=PROJECT, kind="checkpoint", form="full", created_at=moment))
        session.flush()
        for asked in ("default/newer-tw", "default/older-on"):
            with pytest.raises(NotFound) as unknown:
                models.get(session, PROJECT, asked)
            assert ('"default/newer-two"' in unknown.value.message, "older-one" in unknown.value.message) == (
                True,
                False,
            )


def test_base_models_belong_to_the_operator(stocked: Database) -> None:
    with stocked.transaction() as session:
        with pytest.raises(InvalidRequest, match=f"dpo models remove {MODEL}"):
            models.delete(session, PROJECT, MODEL)
        job = job_in(session, State.queued)
        with pytest.raises(Conflict, match=job.id):
            models.unregister_base(session, MODEL)


def test_another_projects_models(stocked: Database) -> None:
    result = finished(stocked, started(stocked))
    with stocked.transaction() as session:
        add_project(session, "proj-2", "other")
        assert [model.id for model in models.list_models(session, "proj-2")] == [MODEL]
        for call in (models.get, models.hold, models.delete):
            with pytest.raises(NotFound):
                call(session, "proj-2", result)

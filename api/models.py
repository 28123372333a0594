"""/v1/models: base models that the operator registered, and the checkpoints of jobs.

The openai client sends the `/` of an id as `%2F`, other clients as it is: routes take both.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from api.answers import LONGEST_WAIT, PENDING, Answer, Wait, answered, failure_of
from api.archive import Archive
from api.auth import JobsWriter, ModelsReader
from api.lists import Item, ListOf, list_of
from api.sending import STORED_FILE, StoredFile, again_if_gone
from api.services import ServicesOf
from control_plane import merges, models, projects, removals
from control_plane.checks import State
from control_plane.errors import InvalidRequest, NotFound
from control_plane.model_files import file_of, files_of, open_file
from control_plane.result_names import merged_name
from control_plane.tables import Check, Model
from dpo_core.provenance import FILE_NAME, CheckpointManifest

router = APIRouter(prefix="/v1/models", tags=["models"])


class ModelDetails(BaseModel):
    """Ours: what the openai client's Model has no field for."""

    kind: Literal["base", "checkpoint"]
    form: Literal["full", "adapter"]
    base: str | None
    """An adapter's full model."""
    job: str | None
    step: int | None
    facts: dict[str, Any]


class ModelObject(Item):
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    details: ModelDetails


class FileFacts(BaseModel):
    path: str
    bytes: int
    sha256: str


class ModelFiles(BaseModel):
    object: Literal["list"] = "list"
    commit: str
    """40 hexadecimal digits that stand for all of them; the Hub's clients take it as a revision."""
    data: list[FileFacts]
    has_more: bool = False


class MergeObject(Answer):
    """The model `merged` is there once `state` is done."""

    object: Literal["model.merge"] = "model.merge"
    model: str
    merged: str


class ModelDeleted(BaseModel):
    id: str
    object: Literal["model"] = "model"
    deleted: bool = True


@router.get("", summary="List base models and your own")
def list_models(services: ServicesOf, caller: ModelsReader) -> ListOf[ModelObject]:
    with services.database.transaction() as session:
        found = models.list_models(session, caller.project_id)
        return list_of([model_object(model) for model in found], has_more=False)


@router.get(
    "/{project}/{name}/archive",
    summary="Download a checkpoint as a tar stream",
    response_class=Response,
    responses={200: {"content": {"application/x-tar": {}}}},
)
@again_if_gone
def download_archive(project: str, name: str, services: ServicesOf, caller: ModelsReader) -> Response:
    """The folder of the model, with the SHA-256 of every file in SHA256SUMS."""
    with services.database.transaction() as session:
        model = models.get(session, caller.project_id, f"{project}/{name}")
    if model.storage_prefix is None:
        raise InvalidRequest(
            f"{model.id} is a base model, which stays where the operator keeps it; only checkpoints have an archive.",
            param="model",
        )
    return Archive(services.storage, f"{model.storage_prefix}/model", name, model.created_at)


@router.get("/{project}/{name}/files", summary="List a model's files")
def list_model_files(project: str, name: str, services: ServicesOf, caller: ModelsReader) -> ModelFiles:
    with services.database.transaction() as session:
        model = models.get(session, caller.project_id, f"{project}/{name}")
    return ModelFiles(
        commit=model.commit or "",
        data=[FileFacts(path=file.path, bytes=file.size, sha256=file.sha256) for file in files_of(model)],
    )


@router.get(
    "/{project}/{name}/files/{path:path}",
    summary="Download one of a model's files",
    response_class=Response,
    responses=STORED_FILE,
)
@again_if_gone
def download_file(project: str, name: str, path: str, services: ServicesOf, caller: ModelsReader) -> Response:
    """The bytes; in part with `Range`, and not again with `If-None-Match`. The ETag is their SHA-256."""
    with services.database.transaction() as session:
        model = models.get(session, caller.project_id, f"{project}/{name}")
    file = file_of(model, path)
    return StoredFile(open_file(services.storage, model, file), size=file.size, etag=file.sha256)


@router.get("/{project}/{name}/manifest", summary="What a checkpoint was made of")
def read_manifest(project: str, name: str, services: ServicesOf, caller: ModelsReader) -> CheckpointManifest:
    """Hashes of its files, data, base, code and environment; the spec with its seed; versions and device."""
    with services.database.transaction() as session:
        model = models.get(session, caller.project_id, f"{project}/{name}")
    try:
        with services.storage.open(f"{model.storage_prefix}/model/{FILE_NAME}") as file:
            return CheckpointManifest.model_validate_json(file.read())
    except FileNotFoundError:
        raise NotFound(
            f"{model.id} has no manifest: it is a base model, or a version that wrote none made it.",
            param="model",
            code="no_manifest",
        ) from None


@router.post("/{project}/{name}/merge", summary="Merge an adapter with its base", responses=PENDING)
async def merge_model(
    project: str,
    name: str,
    services: ServicesOf,
    caller: JobsWriter,
    response: Response,
    *,
    wait: Wait = LONGEST_WAIT,
) -> MergeObject:
    """Makes the model `{id}-merged`, with all weights. Sent again, it says how far that is; what is made stays made."""
    model_id = f"{project}/{name}"

    def order(session: Session) -> Check:
        return merges.order(session, caller.project_id, model_id, limits=services.limits)

    check = await answered(services, order, wait, response, caller.actor)
    return MergeObject(model=model_id, merged=merged_name(model_id), state=State(check.state), error=failure_of(check))


@router.get("/{model_id:path}", summary="Read a model's facts")
def retrieve_model(model_id: str, services: ServicesOf, caller: ModelsReader) -> ModelObject:
    with services.database.transaction() as session:
        return model_object(models.get(session, caller.project_id, model_id))


@router.delete("/{model_id:path}", summary="Delete a checkpoint")
def delete_model(model_id: str, services: ServicesOf, caller: JobsWriter) -> ModelDeleted:
    with services.database.transaction(actor=caller.actor) as session:
        models.delete(session, caller.project_id, model_id)
    removals.carry_out(services.database, services.storage)
    return ModelDeleted(id=model_id)


def model_object(model: Model) -> ModelObject:
    return ModelObject(
        id=model.id,
        created=int(model.created_at.timestamp()),
        owned_by=model.project_id or projects.BASE,
        details=ModelDetails.model_validate(
            {
                "kind": model.kind,
                "form": model.form,
                "base": model.base_id,
                "job": model.job_id,
                "step": model.step,
                "facts": model.facts,
            }
        ),
    )

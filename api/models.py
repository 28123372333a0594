"""/v1/models: base models that the operator registered, and the checkpoints of jobs.

The openai client sends the `/` of an id as `%2F`, other clients as it is: routes take both.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from api.archive import Archive
from api.auth import JobsWriter, ModelsReader
from api.lists import Item, ListOf, list_of
from api.services import ServicesOf
from control_plane import models, projects, removals
from control_plane.errors import InvalidRequest
from control_plane.tables import Model

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
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-tar": {}}}},
)
def download_archive(project: str, name: str, services: ServicesOf, caller: ModelsReader) -> StreamingResponse:
    with services.database.transaction() as session:
        model = models.get(session, caller.project_id, f"{project}/{name}")
    if model.storage_prefix is None:
        raise InvalidRequest(
            f"{model.id} is a base model, which stays where the operator keeps it; only checkpoints have an archive.",
            param="model",
        )
    archive = Archive(services.storage, f"{model.storage_prefix}/model", name, model.created_at)
    headers = {
        "Content-Length": str(archive.length),
        "Content-Disposition": f'attachment; filename="{name}.tar"',
    }
    return StreamingResponse(archive.chunks(), media_type="application/x-tar", headers=headers)


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

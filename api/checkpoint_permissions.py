"""/v1/fine_tuning/checkpoints/{checkpoint}/permissions: OpenAI's way to share a checkpoint with other projects.

Projects here see nothing of one another, so a checkpoint has no permissions, and none can be given.
"""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter

from api.auth import Caller, CallerOf, JobsWriter
from api.lists import Item, ListOf, list_of
from api.services import Services, ServicesOf
from control_plane import models
from control_plane.errors import InvalidRequest, NotFound

router = APIRouter(prefix="/v1/fine_tuning/checkpoints", tags=["fine-tuning"])


class Permission(Item):
    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    created_at: int
    project_id: str


@router.get("/{model_id:path}/permissions", summary="List who else may use a checkpoint: nobody")
def list_permissions(model_id: str, services: ServicesOf, caller: CallerOf) -> ListOf[Permission]:
    _require(services, caller, model_id)
    return list_of(list[Permission](), has_more=False)


@router.post("/{model_id:path}/permissions", summary="Refused: a checkpoint is its project's alone")
def create_permission(model_id: str, services: ServicesOf, caller: JobsWriter) -> Permission:
    _require(services, caller, model_id)
    raise InvalidRequest(
        f"{model_id} can't be shared: projects see nothing of one another here. Download it (`dpo download {model_id} "
        "DIR`); the operator can register the folder as a base model, which is everybody's (`dpo models add DIR`).",
        param="project_ids",
        code="unsupported",
    )


@router.delete("/{model_id:path}/permissions/{permission_id}", summary="Refused: there is no permission to delete")
def delete_permission(model_id: str, permission_id: str, services: ServicesOf, caller: JobsWriter) -> Permission:
    _require(services, caller, model_id)
    raise NotFound(f"There is no permission {permission_id!r}: checkpoints have none here.", param="permission_id")


def _require(services: Services, caller: Caller, model_id: str) -> None:
    with services.database.transaction() as session:
        models.get(session, caller.project_id, model_id)

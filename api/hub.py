"""/hf: the Hub's read protocol, so that its clients take models from here: HF_ENDPOINT=http://host:port/hf.

A path is looked up in the list of the model's files, and a revision is checked on every route: transformers would
take whatever a route gave it.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from api.auth import CallerOf, ModelsReader
from api.hub_route import HubRoute, refusal
from api.hub_shapes import HubModel, HubRefs, HubUser, TreeEntry, entries, model_shape, refs_shape, user_shape
from api.json_body import BodyOf
from api.sending import STORED_FILE, StoredFile, again_if_gone
from api.services import ServicesOf
from control_plane import hub, keys, models
from control_plane.errors import InvalidRequest, NotFound
from control_plane.model_files import file_of, files_of, open_file
from control_plane.tables import Model

router = APIRouter(prefix="/hf", tags=["hub"], route_class=HubRoute)
MOST_PATHS = 1000
WITHOUT_NULLS: dict[str, Any] = {"response_model_exclude_none": True}
"""The clients look for a field, not for its value."""


def revision_of(project: str, name: str, revision: str, services: ServicesOf, caller: ModelsReader) -> Model:
    """The model that the path names. Raises NotFound."""
    with services.database.transaction() as session:
        return hub.resolve(session, caller.project_id, f"{project}/{name}", revision)


def main_of(project: str, name: str, services: ServicesOf, caller: ModelsReader) -> Model:
    """As `revision_of`, for a path without a revision."""
    return revision_of(project, name, hub.MAIN, services, caller)


RevisionOf = Annotated[Model, Depends(revision_of)]
MainOf = Annotated[Model, Depends(main_of)]


@router.get("/api/whoami-v2", summary="Whose key this is")
def whoami(services: ServicesOf, caller: CallerOf) -> HubUser:
    with services.database.transaction() as session:
        return user_shape(*keys.owner(session, caller.key_id))


@router.get("/api/models", summary="List models as the Hub does", **WITHOUT_NULLS)
def list_models(
    services: ServicesOf,
    caller: ModelsReader,
    *,
    author: str | None = None,
    search: str | None = None,
    limit: Annotated[int | None, Query(ge=1)] = None,
) -> list[HubModel]:
    """Newest first. `author` is a project, or `base`; `search` is a part of the id."""
    with services.database.transaction() as session:
        found = models.list_models(session, caller.project_id)
    wanted = [
        model
        for model in found
        if (author is None or model.id.startswith(f"{author}/")) and (search or "").lower() in model.id.lower()
    ]
    return [model_shape(model.id, model, with_files=False) for model in wanted[:limit]]


@router.get("/api/models/{project}/{name}", summary="Read a model", **WITHOUT_NULLS)
def read_model(project: str, name: str, model: MainOf, *, blobs: bool = False) -> HubModel:
    """What revision main has. `blobs` adds sizes and hashes."""
    return model_shape(f"{project}/{name}", model, with_files=True, with_hashes=blobs)


@router.get(
    "/api/models/{project}/{name}/revision/{revision:path}", summary="Read a revision of a model", **WITHOUT_NULLS
)
def read_revision(project: str, name: str, model: RevisionOf, *, blobs: bool = False) -> HubModel:
    """`revision`: main, step-N, best, or a commit. `blobs` adds sizes and hashes."""
    return model_shape(f"{project}/{name}", model, with_files=True, with_hashes=blobs)


@router.get("/api/models/{project}/{name}/refs", summary="List a model's revisions")
def list_refs(project: str, name: str, services: ServicesOf, caller: ModelsReader) -> HubRefs:
    """`main` is a branch; checkpoints are tags."""
    with services.database.transaction() as session:
        return refs_shape(hub.revisions(session, caller.project_id, f"{project}/{name}"))


@router.get("/api/models/{project}/{name}/tree/{revision}", summary="List a model's files", **WITHOUT_NULLS)
def tree(model: RevisionOf, *, recursive: bool = False) -> list[TreeEntry]:
    """Files and folders; with `recursive` those of its folders, too."""
    return entries(files_of(model), "", recursive=recursive)


@router.get(
    "/api/models/{project}/{name}/tree/{revision}/{folder:path}",
    summary="List the files of a model's folder",
    **WITHOUT_NULLS,
)
def tree_of_folder(folder: str, model: RevisionOf, *, recursive: bool = False) -> list[TreeEntry]:
    found = entries(files_of(model), folder, recursive=recursive)
    if not found:
        raise NotFound(f"{model.id} has no folder {folder!r}.", param="path", code="model_file_not_found")
    return found


@router.post(
    "/api/models/{project}/{name}/paths-info/{revision:path}", summary="Read facts of some files", **WITHOUT_NULLS
)
def paths_info(model: RevisionOf, body: BodyOf) -> list[TreeEntry]:
    """The body is a form with one `paths` a file or folder. What is not there is left out, as the Hub does."""
    try:
        asked = set(parse_qs(body.decode(), max_num_fields=MOST_PATHS).get("paths", []))
    except ValueError as error:
        raise InvalidRequest(f"The body is no form of at most {MOST_PATHS} fields: {error}.", param="paths") from None
    return [entry for entry in entries(files_of(model), "", recursive=True) if entry.path in asked]


@router.head("/{project}/{name}/resolve/{revision}/{path:path}", include_in_schema=False)
@router.get(
    "/{project}/{name}/resolve/{revision}/{path:path}",
    summary="Download a file of a model",
    response_class=Response,
    responses=STORED_FILE,
)
@again_if_gone
def resolve(
    project: str, name: str, revision: str, path: str, *, services: ServicesOf, caller: ModelsReader
) -> Response:
    """The bytes; in part with `Range`, and not again with `If-None-Match`. The ETag is their SHA-256."""
    model = revision_of(project, name, revision, services, caller)
    headers = {"X-Repo-Commit": model.commit or ""}
    try:
        file = file_of(model, path)
    except NotFound as error:
        return refusal(error, headers)  # with the commit, so that the client remembers what isn't there
    headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
    return StoredFile(open_file(services.storage, model, file), size=file.size, etag=file.sha256, headers=headers)


@router.get("/{anything:path}", include_in_schema=False)
@router.head("/{anything:path}", include_in_schema=False)
def nothing_else(anything: str, _: ModelsReader) -> None:
    raise NotFound(
        f"There is nothing at {anything!r}. Models are called project/name, as GET /v1/models lists them; of the Hub's "
        "protocol this server speaks what reads models.",
        code="model_not_found",
    )

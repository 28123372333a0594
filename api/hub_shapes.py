"""Models, files and users as the Hub's clients read them. The field names are the Hub's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from control_plane.model_files import ModelFile, files_of
from control_plane.tables import ApiKey, Model, Project


class Lfs(BaseModel):
    oid: str
    """SHA-256 of the content."""
    sha256: str
    size: int
    pointerSize: int


class Sibling(BaseModel):
    rfilename: str
    size: int | None = None
    blobId: str | None = None
    lfs: Lfs | None = None


class HubModel(BaseModel):
    id: str
    modelId: str
    author: str
    sha: str | None
    private: bool = True
    gated: bool = False
    disabled: bool = False
    downloads: int = 0
    likes: int = 0
    tags: list[str]
    library_name: str
    pipeline_tag: str = "text-generation"
    createdAt: datetime
    lastModified: datetime
    cardData: dict[str, str]
    siblings: list[Sibling] | None = None


class TreeEntry(BaseModel):
    type: Literal["file", "directory"]
    oid: str
    size: int
    path: str
    lfs: Lfs | None = None


class Ref(BaseModel):
    name: str
    ref: str
    targetCommit: str


class HubRefs(BaseModel):
    branches: list[Ref]
    tags: list[Ref]
    converts: list[Ref] = Field(default_factory=list)


class AccessToken(BaseModel):
    displayName: str
    role: Literal["read"] = "read"
    createdAt: datetime


class Auth(BaseModel):
    type: Literal["access_token"] = "access_token"
    accessToken: AccessToken


class HubUser(BaseModel):
    type: Literal["user"] = "user"
    id: str
    name: str
    """The key's project."""
    fullname: str
    isPro: bool = False
    orgs: list[dict[str, str]] = Field(default_factory=list)
    auth: Auth


def model_shape(model_id: str, model: Model, *, with_files: bool, with_hashes: bool = False) -> HubModel:
    """`model_id`: what the client asked for; `model` is what it stands for at the revision asked for."""
    adapter = model.form == "adapter"
    card = {"license": model.facts.get("license") or "unknown"}
    if model.base_id is not None:
        card["base_model"] = model.base_id
    files = files_of(model) if with_files else []
    return HubModel(
        id=model_id,
        modelId=model_id,
        author=model_id.partition("/")[0],
        sha=model.commit,
        tags=[
            "safetensors",
            "text-generation",
            *([f"base_model:{model.base_id}", f"base_model:adapter:{model.base_id}"] if adapter else []),
            f"license:{card['license']}",
        ],
        library_name="peft" if adapter else "transformers",
        createdAt=model.created_at,
        lastModified=model.created_at,
        cardData=card,
        siblings=[_sibling(file, with_hashes) for file in files] if with_files else None,
    )


def entries(files: Sequence[ModelFile], folder: str, *, recursive: bool) -> list[TreeEntry]:
    """What is in a folder, folders first; `""` is the model's own."""
    inside = f"{folder}/" if folder else ""
    below = [file for file in files if file.path.startswith(inside)]
    folders = {
        f"{inside}{'/'.join(parts[:depth])}"
        for parts in (file.path.removeprefix(inside).split("/") for file in below)
        for depth in range(1, len(parts))
        if recursive or depth == 1
    }
    shown = [file for file in below if recursive or "/" not in file.path.removeprefix(inside)]
    return [_folder(path, files) for path in sorted(folders)] + [_file(file) for file in shown]


def refs_shape(revisions: Mapping[str, Model]) -> HubRefs:
    shapes = {
        name: Ref(
            name=name, ref=f"refs/{'heads' if name == 'main' else 'tags'}/{name}", targetCommit=model.commit or ""
        )
        for name, model in revisions.items()
    }
    return HubRefs(
        branches=[ref for name, ref in shapes.items() if name == "main"],
        tags=[ref for name, ref in shapes.items() if name != "main"],
    )


def user_shape(key: ApiKey, project: Project) -> HubUser:
    token = AccessToken(displayName=key.name, createdAt=key.created_at)
    return HubUser(id=project.id, name=project.name, fullname=project.name, auth=Auth(accessToken=token))


def _lfs(file: ModelFile) -> Lfs:
    return Lfs(oid=file.sha256, sha256=file.sha256, size=file.size, pointerSize=len(file.pointer))


def _sibling(file: ModelFile, with_hashes: bool) -> Sibling:
    if not with_hashes:
        return Sibling(rfilename=file.path)
    return Sibling(rfilename=file.path, size=file.size, blobId=file.blob_id, lfs=_lfs(file))


def _file(file: ModelFile) -> TreeEntry:
    return TreeEntry(type="file", oid=file.blob_id, size=file.size, path=file.path, lfs=_lfs(file))


def _folder(path: str, files: Sequence[ModelFile]) -> TreeEntry:
    content = "".join(f"{file.sha256} {file.path}\n" for file in files if file.path.startswith(f"{path}/"))
    oid = hashlib.sha256(content.encode()).hexdigest()[:40]
    return TreeEntry(type="directory", oid=oid, size=0, path=path)

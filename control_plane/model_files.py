"""A model's files as everybody may read them: which there are, what they hold, and the commit that names it all.

They are listed once: a checkpoint's when it is published, a base model's when the operator registers its folder. A
request's path is looked up in that list and never joined to a folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel

from control_plane.errors import Conflict, NotFound
from control_plane.storage import Storage
from control_plane.tables import Json, Model
from dpo_core.run_directory import CHECKSUMS, Manifest, sha256_of

CARD = "README.md"
SERVED_SUFFIXES = frozenset({".json", ".safetensors", ".jinja", ".txt", ".model", ".md"})
"""Of a base model's folder. No pickles and no Python: only what can be read without running it."""
SERVED_NAMES = ("LICENSE", "LICENCE", "NOTICE")
TEMPLATES = "additional_chat_templates"
"""The one folder below a model's own that the clients look for."""


class ModelFile(BaseModel):
    path: str
    """Relative to the model's folder, with `/`."""
    size: int
    sha256: str
    modified: int | None = None
    """A base model's: nanoseconds since the epoch when it was read, to notice that somebody changed it since."""

    @property
    def pointer(self) -> bytes:
        """What git would hold of it under Git LFS: the Hub's clients are told of its size and hash."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def blob_id(self) -> str:
        pointer = self.pointer
        return hashlib.sha1(b"blob %d\0" % len(pointer) + pointer, usedforsecurity=False).hexdigest()


def list_folder(folder: Path) -> list[ModelFile]:
    """A base model's files, each read whole, several at a time. Links are followed: the Hub's cache is made of them."""
    found = [path for path in [*folder.iterdir(), *folder.glob(f"{TEMPLATES}/*.jinja")] if _served(path)]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return sorted(pool.map(lambda path: _measured(folder, path), found), key=lambda file: file.path)


def list_checkpoint(manifest: Manifest) -> list[ModelFile]:
    """A checkpoint's files, with the sums that its worker puts beside them."""
    sums = manifest.checksums().encode()
    listed = [
        ModelFile(path=file.path.removeprefix("model/"), size=file.bytes, sha256=file.sha256)
        for file in manifest.files
        if file.path.startswith("model/")
    ]
    listed.append(ModelFile(path=CHECKSUMS, size=len(sums), sha256=hashlib.sha256(sums).hexdigest()))
    return sorted(listed, key=lambda file: file.path)


def set_files(model: Model, listed: Sequence[ModelFile]) -> None:
    """Notes a model's files, and the commit: the same 40 hexadecimal digits for the same files, others for others."""
    content = "".join(f"{file.sha256} {file.size} {file.path}\n" for file in listed)
    model.files = [file.model_dump(exclude_none=True) for file in listed]
    model.commit = hashlib.sha256(content.encode()).hexdigest()[:40]


def files_of(model: Model) -> list[ModelFile]:
    """Raises Conflict for a base model that an earlier version registered, or a checkpoint that it published."""
    return [ModelFile.model_validate(file) for file in _listed(model)]


def _listed(model: Model) -> list[Json]:
    if model.files is not None:
        return model.files
    way_out = f"`dpo models add {model.path}` lists them" if model.path else "only its archive can be downloaded"
    raise Conflict(f"The files of {model.id} were never listed: an earlier version made it; {way_out}.", param="model")


def file_of(model: Model, path: str) -> ModelFile:
    """Raises NotFound where the model has no file of exactly that name."""
    for file in _listed(model):
        if file["path"] == path:
            return ModelFile.model_validate(file)
    raise NotFound(f"{model.id} has no file {path!r}.", param="path", code="model_file_not_found")


def open_file(storage: Storage, model: Model, file: ModelFile) -> BinaryIO:
    """The bytes of one of the model's own files.

    Raises Conflict where somebody changed a base model's folder after it was registered.
    """
    if model.path is None:
        return storage.open(f"{model.storage_prefix}/model/{file.path}")
    try:
        stream = open(Path(model.path) / file.path, "rb")  # noqa: SIM115 - the caller closes it
    except FileNotFoundError:
        raise _changed(model, file) from None
    now = os.fstat(stream.fileno())
    if (now.st_size, now.st_mtime_ns) != (file.size, file.modified):
        stream.close()
        raise _changed(model, file)
    return stream


def _changed(model: Model, file: ModelFile) -> Conflict:
    return Conflict(
        f"{file.path} of {model.id} was changed or removed after the model was registered. The operator can register "
        "the folder again (`dpo models add`), which takes it as it is now.",
        param="model",
        code="model_changed",
    )


def _served(path: Path) -> bool:
    named = path.suffix in SERVED_SUFFIXES or path.name.startswith(SERVED_NAMES)
    return named and not path.name.startswith(".") and path.is_file()


def _measured(folder: Path, path: Path) -> ModelFile:
    before = path.stat()
    name = path.relative_to(folder).as_posix()
    return ModelFile(path=name, size=before.st_size, sha256=sha256_of(path), modified=before.st_mtime_ns)

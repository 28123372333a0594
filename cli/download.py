"""`dpo download`: a checkpoint's model into a folder, checked, and there whole or not at all."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote

from openai import APIResponse, OpenAI, RequestOptions
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cli.client import connected
from cli.errors import CommandFailed
from dpo_core.run_directory import CHECKSUMS, sha256_of

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on

CHUNK_BYTES = 1024**2


def download(model_id: str, folder: Path, console: Console) -> list[str]:
    """Puts the model's files into `folder`, which must be empty or absent; returns how to load them.

    Raises CommandFailed, and leaves `folder` as it was, where that goes wrong or a file is not what was trained.
    """
    folder = folder.expanduser().absolute()
    _require_empty(folder)
    with connected() as client:
        details = (client.models.retrieve(model_id).model_extra or {})["details"]
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Beside the folder, so that the last step is a rename on one file system.
            with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
                unpacked = _fetch(client, model_id, Path(aside), console)
                verify(unpacked)
                os.replace(unpacked, folder)
        except OSError as error:
            raise CommandFailed(f"can't write {folder}: {error.strerror or error}") from None
        except tarfile.TarError as error:
            raise CommandFailed(f"the archive of {model_id} is damaged ({error}); download it again") from None
    return how_to_load(folder, details["base"])


def _fetch(client: OpenAI, model_id: str, aside: Path, console: Console) -> Path:
    """Unpacks the archive's one folder below `aside` while it arrives, and returns it."""
    # With this header the client hands over the answer without reading it.
    options: RequestOptions = {"headers": {"X-Stainless-Raw-Response": "stream"}}
    path = f"/models/{quote(model_id, safe='/')}/archive"
    answer = client.get(path, cast_to=APIResponse[bytes], options=options)
    columns = (TextColumn("{task.description}"), BarColumn(24), DownloadColumn())
    try:
        with Progress(
            *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_interactive
        ) as bar:
            task = bar.add_task(f"downloading {model_id}", total=int(answer.headers["content-length"]))
            with (
                bar.wrap_file(io.BufferedReader(Chunks(answer.iter_bytes(CHUNK_BYTES))), task_id=task) as stream,
                tarfile.open(fileobj=stream, mode="r|") as archive,
            ):
                archive.extractall(aside, filter="data")
    finally:
        answer.close()
    folders = list(aside.iterdir())
    if len(folders) != 1 or not folders[0].is_dir():
        raise tarfile.ReadError("it holds no model folder")
    return folders[0]


class Chunks(io.RawIOBase):
    """Pieces of bytes as a file that can be read once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        if not self._left:
            self._left = memoryview(next(self._chunks, b""))
        target = memoryview(buffer).cast("B")
        count = min(len(target), len(self._left))
        target[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def verify(folder: Path) -> None:
    """Compares every file with the sums that its worker wrote down. Raises CommandFailed for the first difference."""
    try:
        lines = (folder / CHECKSUMS).read_text().splitlines()
    except FileNotFoundError:
        raise CommandFailed(
            f"the archive holds no {CHECKSUMS}; without it nobody can tell whether it is whole"
        ) from None
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {CHECKSUMS}
    for name in sorted(found ^ set(expected)):
        raise CommandFailed(f"the archive {'lacks' if name in expected else 'has an unknown file'} {name}")
    for name, digest in expected.items():
        if sha256_of(folder / name) != digest:
            raise CommandFailed(f"{name} is not what was trained: its SHA-256 differs; download it again")


def _require_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise CommandFailed(f"{folder} exists and is not an empty folder; name another one")


def how_to_load(folder: Path, base: str | None) -> list[str]:
    """What to paste into Python. `base`: an adapter's full model."""
    if base is None:
        return [
            f"the model is in {folder}. In Python:",
            "  from transformers import AutoModelForCausalLM, AutoTokenizer",
            f"  model = AutoModelForCausalLM.from_pretrained({str(folder)!r})",
            f"  tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})",
        ]
    return [
        f"the LoRA adapter is in {folder}; it works on top of {base}, whose folder the first line names. In Python:",
        f"  base = '/path/to/{base.partition('/')[2]}'",
        "  from peft import PeftModel",
        "  from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"  model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), {str(folder)!r})",
        f"  tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})",
    ]

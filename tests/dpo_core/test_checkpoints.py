from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dpo_core.best import Standing
from dpo_core.checkpoints import Progress, read_progress, sealed
from dpo_core.errors import RunError
from dpo_core.run_directory import MANIFEST, Manifest


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "step-4"
    (folder / "state" / "optimizer").mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "state" / "optimizer" / "0-0.safetensors").write_bytes(b"moments")
    progress = Progress(step=4, trained_tokens=100, ranks=2, device="cpu", standing=Standing())
    (folder / "state" / "progress.json").write_text(progress.model_dump_json())
    manifest = Manifest(step=4, kind="full", files=sealed(folder))
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return folder


def test_a_whole_checkpoint_is_accepted(checkpoint: Path) -> None:
    assert read_progress(checkpoint).step == 4


def test_the_manifest_lists_every_file_with_its_digest(checkpoint: Path) -> None:
    manifest = Manifest.model_validate_json((checkpoint / MANIFEST).read_bytes())
    files = {file.path: file for file in manifest.files}
    assert sorted(files) == ["model/config.json", "state/optimizer/0-0.safetensors", "state/progress.json"]
    # printf moments | sha256sum
    digest = "690a8d18f75dfaa79dd8134ac62cdad42fffe0f34cb78dd14e2d3aae3ae83ad3"
    moments = files["state/optimizer/0-0.safetensors"]
    assert (moments.bytes, moments.sha256) == (7, digest)


def flip(folder: Path) -> None:
    (folder / "state" / "optimizer" / "0-0.safetensors").write_bytes(b"Moments")


def remove(folder: Path) -> None:
    (folder / "state" / "optimizer" / "0-0.safetensors").unlink()


def smuggle(folder: Path) -> None:
    (folder / "state" / "optimizer" / "more.safetensors").write_bytes(b"nobody listed it")


def no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def cut(folder: Path) -> None:
    (folder / "state" / "optimizer" / "0-0.safetensors").write_bytes(b"moment")


def hide(folder: Path) -> None:
    """As an error of the disk does."""
    path = folder / "state" / "progress.json"
    path.unlink()
    path.symlink_to(path.parent / "optimizer")


def unreadable(path: Path) -> None:
    """The system says EIO to whoever reads it: nothing is at address 0."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


@pytest.mark.parametrize("name", [MANIFEST, "model/config.json", "state/progress.json"])
def test_one_that_the_system_can_not_read_now_is_no_damage(checkpoint: Path, name: str) -> None:
    manifest = Manifest.model_validate_json((checkpoint / MANIFEST).read_bytes())
    files = [file.model_copy(update={"bytes": 0} if file.path == name else {}) for file in manifest.files]
    (checkpoint / MANIFEST).write_text(manifest.model_copy(update={"files": files}).model_dump_json())
    unreadable(checkpoint / name)
    with pytest.raises(RunError, match=r"step-4 can't be read, to resume from it:.*Input/output error") as caught:
        read_progress(checkpoint)
    assert caught.value.failure.code == "checkpoint_unreadable"


@pytest.mark.parametrize("damage", [flip, remove, smuggle, no_manifest, cut, hide])
def test_a_damaged_state_is_refused(checkpoint: Path, damage: Callable[[Path], None]) -> None:
    damage(checkpoint)
    with pytest.raises(RunError, match="Can't resume from step-4") as caught:
        read_progress(checkpoint)
    assert caught.value.failure.code == "checkpoint_corrupt"


@pytest.mark.parametrize("name", ["model/config.json", "state/optimizer/0-0.safetensors", "state/progress.json"])
def test_any_byte_of_any_file_counts(checkpoint: Path, name: str) -> None:
    path = checkpoint / name
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(RunError, match=f"{name} does not match"):
            read_progress(checkpoint)
    path.write_bytes(content)
    assert read_progress(checkpoint).step == 4


def test_what_was_published_beside_the_model_is_nobodys_business(checkpoint: Path) -> None:
    """Such as SHA256SUMS, which lists the manifest's own files."""
    (checkpoint / "model" / "SHA256SUMS").write_text("…")
    assert read_progress(checkpoint).step == 4


def test_a_state_of_another_version_is_refused(checkpoint: Path) -> None:
    (checkpoint / "state" / "progress.json").write_text('{"step": 4, "trained_tokens": 100, "zero_stage": 3}')
    (checkpoint / MANIFEST).unlink()
    manifest = Manifest(step=4, kind="full", files=sealed(checkpoint))
    (checkpoint / MANIFEST).write_text(manifest.model_dump_json())
    with pytest.raises(RunError, match="another version may have written it") as caught:
        read_progress(checkpoint)
    assert caught.value.failure.code == "checkpoint_corrupt"

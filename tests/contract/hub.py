"""What a Hub client is asked to do, as a program: any version of huggingface_hub runs it, and nothing else is needed.

Arguments: the model's id, its commit at step 2, where to put files. HF_ENDPOINT and HF_TOKEN name the server. Prints
what it found, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from huggingface_hub import HfApi, HfFileSystem, ModelCard, __version__, hf_hub_download, snapshot_download
from huggingface_hub.utils import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError


def refusal(*arguments: object, **keywords: object) -> str:
    try:
        hf_hub_download(*arguments, **keywords)  # type: ignore[arg-type]
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def main(model: str, commit: str, folder: Path) -> dict[str, object]:
    api = HfApi()
    info = api.model_info(model, revision="step-2", files_metadata=True)
    snapshot = Path(snapshot_download(model, revision="step-2"))
    plain = Path(snapshot_download(f"{model}-step-2", local_dir=folder))
    weights = Path(hf_hub_download(model, "model.safetensors", revision="step-2"))
    by_commit = Path(hf_hub_download(model, "model.safetensors", revision=commit))
    card = ModelCard.load(snapshot / "README.md")
    return {
        "version": __version__,
        "whoami": api.whoami()["name"],
        "sha": info.sha,
        "sizes": {file.rfilename: file.size for file in info.siblings or ()},
        "snapshot": {path.name: path.stat().st_size for path in snapshot.iterdir()},
        "plain": sorted(path.name for path in plain.iterdir() if not path.name.startswith(".")),
        "same": weights.read_bytes() == by_commit.read_bytes() == (plain / "model.safetensors").read_bytes(),
        "etag": weights.resolve().name,
        "listed": sorted(api.list_repo_files(model, revision="step-2")),
        "exists": [api.file_exists(model, name, revision="step-2") for name in ("config.json", "none.json")],
        "repos": [api.repo_exists(f"{model}-step-2"), api.repo_exists("default/none")],
        "paths": [entry.path for entry in api.get_paths_info(model, ["config.json", "none"], revision="step-2")],
        "tags": sorted(tag.name for tag in api.list_repo_refs(model).tags),
        "filesystem": sorted(path.rpartition("/")[2] for path in HfFileSystem().ls(f"{model}@step-2", detail=False)),
        "found": [found.id for found in api.list_models(author="default")],
        "license": card.data.license,
        "base_model": card.data.base_model,
        "library_name": card.data.library_name,
        "main": refusal(model, "config.json"),
        "wrong revision": refusal(model, "config.json", revision="step-7"),
        "wrong file": refusal(model, "none.json", revision="step-2"),
        "wrong model": refusal("default/none", "config.json"),
        "wrong token": refusal(model, "config.json", revision="best", token="hf_wrong"),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))))

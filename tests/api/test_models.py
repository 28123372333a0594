from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import httpx2
import openai
import pytest
from openai import OpenAI

from control_plane import audit, models, projects
from control_plane.database import Database
from control_plane.settings import Settings
from control_plane.storage import open_storage
from control_plane.tables import Model
from tests.control_plane.model_folders import make_folder

RESULT = "default/tiny-abc"
PREFIX = "checkpoints/ftjob-1/1/step-2"
CONTENT = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 5000, "x" * 150 + ".json": b"x" * 512}


@pytest.fixture
def base(database: Database, tmp_path: Path) -> str:
    with database.transaction() as session:
        return models.register_base(session, make_folder(tmp_path / "tiny")).id


@pytest.fixture
def checkpoint(database: Database, settings: Settings) -> str:
    """A finished job's model, with files in storage."""
    storage = open_storage(settings.storage_url)
    for name, content in CONTENT.items():
        with storage.writer(f"{PREFIX}/model/{name}") as sink:
            sink.write(content)
    with database.transaction() as session:
        owner = projects.ensure(session, "default")
        facts = {"kind": "checkpoint", "form": "full", "job_id": "ftjob-1", "step": 2}
        session.add(Model(id=RESULT, project_id=owner.id, storage_prefix=PREFIX, **facts))
    return RESULT


def test_an_order_to_merge_is_on_its_way_until_a_worker_did_it(
    http: httpx2.Client, base: str, checkpoint: str, database: Database
) -> None:
    with database.transaction() as session:
        model = models.get(session, projects.named(session, "default").id, checkpoint)
        model.form, model.base_id = "adapter", base
    for _ in range(2):
        answer = http.post(f"/v1/models/{checkpoint}/merge", params={"wait": 0})
        assert (answer.status_code, answer.headers["retry-after"]) == (202, "1")
        assert answer.json() == {
            "object": "model.merge",
            "model": checkpoint,
            "merged": f"{checkpoint}-merged",
            "state": "waiting",
            "error": None,
        }
    with database.transaction() as session:
        entries = audit.entries(session, projects.named(session, "default").id).items
    told = [(it.target, it.actor.partition("-")[0]) for it in entries if it.action == "model.merge_ordered"]
    assert told == [(checkpoint, "key")]
    refused = http.post(f"/v1/models/{base}/merge")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "not_an_adapter")
    head = http.head(f"/hf/{checkpoint}-merged/resolve/main/config.json")
    assert (head.status_code, head.headers["x-error-code"]) == (404, "RepoNotFound")
    assert f"POST /v1/models/{checkpoint}/merge" in head.headers["x-error-message"]


@pytest.mark.parametrize("slash", ["/", "%2F"])
def test_an_id_with_its_slash(http: httpx2.Client, base: str, slash: str, tmp_path: Path) -> None:
    model = http.get(f"/v1/models/{base.replace('/', slash)}").json()
    assert (model["id"], model["object"], model["owned_by"]) == (base, "model", "base")
    details = model["details"]
    assert (details["kind"], details["form"], details["job"], details["step"]) == ("base", "full", None, None)
    assert details["facts"]["parameters"] == 264 * 8 + 8
    assert str(tmp_path) not in str(details), "the operator's paths are nobody's business"


def test_unknown_models(client: OpenAI) -> None:
    for model_id in ("gpt-4o", "base/none", "a/b/c"):
        with pytest.raises(openai.NotFoundError, match="dpo models add") as refused:
            client.models.retrieve(model_id)
        assert refused.value.code == "model_not_found"


def test_the_archive_is_the_model_folder(http: httpx2.Client, checkpoint: str) -> None:
    answer = http.get(f"/v1/models/{checkpoint}/archive")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-tar"
    assert int(answer.headers["content-length"]) == len(answer.content)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        found = {member.name: member for member in archive}
        assert set(found) == {f"tiny-abc/{name}" for name in CONTENT}
        for name, content in CONTENT.items():
            file = archive.extractfile(found[f"tiny-abc/{name}"])
            assert file is not None and file.read() == content
    assert http.get(f"/v1/models/{checkpoint}/archive").content == answer.content


def test_no_archive_of_a_base_model(http: httpx2.Client, base: str) -> None:
    answer = http.get(f"/v1/models/{base}/archive")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


def test_deleting(client: OpenAI, base: str, checkpoint: str, settings: Settings) -> None:
    assert {model.id for model in client.models.list()} == {base, checkpoint}
    assert client.models.delete(checkpoint).deleted
    assert list(open_storage(settings.storage_url).keys(PREFIX)) == []
    with pytest.raises(openai.NotFoundError):
        client.models.delete(checkpoint)
    with pytest.raises(openai.BadRequestError, match="dpo models remove"):
        client.models.delete(base)
    assert [model.id for model in client.models.list()] == [base]


def test_another_projects_model_is_not_there(api_for: Callable[[str], httpx2.Client], checkpoint: str) -> None:
    other = api_for("other")
    for answer in (
        other.get(f"/v1/models/{checkpoint}"),
        other.get(f"/v1/models/{checkpoint}/archive"),
        other.delete(f"/v1/models/{checkpoint}"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert other.get("/v1/models").json()["data"] == []


@pytest.fixture
def api_for(http: httpx2.Client, make_key: Callable[[str], str]) -> Callable[[str], httpx2.Client]:
    """The HTTP client with another project's key."""

    def with_key(project: str) -> httpx2.Client:
        http.headers["Authorization"] = f"Bearer {make_key(project)}"
        return http

    return with_key

"""The Hub's read protocol, request by request; tests/contract has the clients that speak it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import select

from control_plane import models, removals
from control_plane.database import Database
from control_plane.errors import Conflict
from control_plane.settings import Settings
from control_plane.storage import DirectoryStorage, open_storage
from control_plane.tables import Model
from dpo_core.best import Best
from tests import published
from tests.api.conftest import Api
from tests.control_plane.model_folders import make_folder
from tests.makers import write_preference_file

WEIGHTS = bytes(range(256)) * 5000


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    folder = make_folder(tmp_path / "tiny")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_tiny.py").write_text("print()")
    (folder / ".hidden.json").write_text("{}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    return folder


@pytest.fixture
def base(database: Database, base_folder: Path) -> str:
    with database.transaction() as session:
        return models.register_base(session, base_folder).id


@pytest.fixture
def job(client: OpenAI, base: str, tmp_path: Path) -> str:
    """The name that the job will publish."""
    with open(write_preference_file(tmp_path / "pairs.jsonl", 20), "rb") as stream:
        file = client.files.create(file=stream, purpose="fine-tune")
    made = client.fine_tuning.jobs.create(model=base, training_file=file.id, method={"type": "dpo"}, suffix="sums")
    return f"default/tiny-sums-{made.id[-8:]}"


@pytest.fixture
def training(job: str, database: Database, settings: Settings, tmp_path: Path) -> str:
    """The job, with one checkpoint so far."""
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "config.json").write_text("{}")
    files = published.files_of(tmp_path, ["model.safetensors", "config.json"])
    best = Best(step=2, metric="loss", value=0.5)
    published.publish(database, settings, published.claim(database), 2, files, best=best)
    return job


def commit_of(http: httpx2.Client, model: str, revision: str) -> str:
    answer = http.get(f"/hf/api/models/{model}/revision/{revision}")
    assert answer.status_code == 200, answer.text
    return str(answer.json()["sha"])


def test_a_base_model_without_its_pickles_and_programs(http: httpx2.Client, base: str) -> None:
    found = http.get(f"/hf/api/models/{base}", params={"blobs": True}).json()
    names = [sibling["rfilename"] for sibling in found["siblings"]]
    assert names == sorted(
        [
            "README.md",
            "additional_chat_templates/tool_use.jinja",
            "chat_template.jinja",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    )
    assert (found["id"], found["private"], found["gated"], found["cardData"]) == (
        base,
        True,
        False,
        {"license": "apache-2.0"},
    )
    assert len(found["sha"]) == 40
    assert all(sibling["lfs"]["size"] == sibling["size"] for sibling in found["siblings"])


def test_folders(http: httpx2.Client, base: str) -> None:
    at = f"/hf/api/models/{base}/tree/main"
    shown = {entry["path"]: entry["type"] for entry in http.get(at).json()}
    assert shown["additional_chat_templates"] == "directory" and len(shown) == 7
    assert [entry["path"] for entry in http.get(f"{at}/additional_chat_templates").json()] == [
        "additional_chat_templates/tool_use.jinja"
    ]
    everything = http.get(at, params={"recursive": "True", "expand": "False"}).json()
    assert {entry["path"] for entry in everything} == {*shown, "additional_chat_templates/tool_use.jinja"}
    missing = http.get(f"{at}/none")
    assert (missing.status_code, missing.headers["x-error-code"]) == (404, "EntryNotFound")
    asked = {"paths": ["config.json", "none", "additional_chat_templates"], "expand": "False"}
    facts = http.post(f"/hf/api/models/{base}/paths-info/main", data=asked).json()
    assert {entry["path"]: entry["type"] for entry in facts} == {
        "config.json": "file",
        "additional_chat_templates": "directory",
    }


def test_what_the_client_reads_of_a_file_before_it_takes_it(http: httpx2.Client, training: str) -> None:
    at = f"/hf/{training}/resolve/step-2/model.safetensors"
    head = http.head(at)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    assert head.status_code == 200 and head.content == b""
    assert head.headers["etag"] == head.headers["x-linked-etag"] == f'"{digest}"'
    assert head.headers["content-length"] == head.headers["x-linked-size"] == str(len(WEIGHTS))
    assert head.headers["x-repo-commit"] == commit_of(http, training, "step-2")
    assert not {"x-xet-hash", "content-encoding", "location"} & set(head.headers)
    whole = http.get(at, headers={"Accept-Encoding": "gzip, br"})
    assert whole.content == WEIGHTS and "content-encoding" not in whole.headers


@pytest.mark.parametrize(
    ("asked", "status", "first", "end"),
    [
        ({"Range": "bytes=10-19"}, 206, 10, 20),
        ({"Range": "bytes=1279990-"}, 206, 1279990, 1280000),
        ({"Range": "bytes=-7"}, 206, 1279993, 1280000),
        ({"Range": "bytes=0-99999999"}, 206, 0, 1280000),
        ({"Range": "bytes=1280000-"}, 416, 0, 0),
        ({"Range": "bytes=-0"}, 416, 0, 0),
        ({"Range": "bytes=5-4"}, 416, 0, 0),
        ({"Range": "bytes=0-1,5-6"}, 200, 0, 1280000),
        ({"Range": "lines=0-1"}, 200, 0, 1280000),
        ({"Range": "bytes=0-9", "If-Range": "{etag}"}, 206, 0, 10),
        ({"Range": "bytes=0-9", "If-Range": '"other"'}, 200, 0, 1280000),
        ({"If-None-Match": '"other", {etag}'}, 304, 0, 0),
        ({"If-None-Match": "W/{etag}"}, 304, 0, 0),
        ({"If-None-Match": "*"}, 304, 0, 0),
        ({"If-None-Match": '"other"'}, 200, 0, 1280000),
        ({"If-Match": '"other"'}, 412, 0, 0),
        ({"If-Match": "{etag}", "Range": "bytes=3-3"}, 206, 3, 4),
    ],
)
def test_parts_and_conditions(  # noqa: PLR0917 - a table's columns
    http: httpx2.Client, training: str, asked: dict[str, str], status: int, first: int, end: int
) -> None:
    etag = f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    headers = {name: value.replace("{etag}", etag) for name, value in asked.items()}
    for at in (
        f"/hf/{training}/resolve/step-2/model.safetensors",
        f"/v1/models/{training}-step-2/files/model.safetensors",
    ):
        answer = http.get(at, headers=headers)
        assert (answer.status_code, answer.content) == (status, WEIGHTS[first:end])
        assert answer.headers["etag"] == etag
        if status == 206:
            assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{len(WEIGHTS)}"
        if status == 416:
            assert answer.headers["content-range"] == f"bytes */{len(WEIGHTS)}"


@pytest.mark.parametrize(
    ("opens", "route"),
    [
        ("open", "/hf/{}/resolve/step-2/config.json"),
        ("open", "/v1/models/{}-step-2/files/config.json"),
        ("keys", "/v1/models/{}-step-2/archive"),
    ],
)
def test_what_is_deleted_between_its_look_up_and_the_opening_of_its_bytes(  # noqa: PLR0917 - a table and fixtures
    http: httpx2.Client, training: str, database: Database, monkeypatch: pytest.MonkeyPatch, opens: str, route: str
) -> None:
    original = getattr(DirectoryStorage, opens)

    def delete_first(storage: DirectoryStorage, key: str) -> object:
        with database.transaction() as session:
            for model in session.scalars(select(Model).where(Model.storage_prefix.is_not(None))):
                model.deleted_at = model.created_at
                removals.note(session, str(model.storage_prefix))
        removals.carry_out(database, storage)
        return original(storage, key)

    assert http.get(route.format(training)).status_code == 200
    monkeypatch.setattr(DirectoryStorage, opens, delete_first)
    answer = http.get(route.format(training))
    assert answer.status_code == 404, answer.text
    if route.startswith("/hf"):
        assert answer.headers["x-error-code"] == "RevisionNotFound"
    else:
        assert answer.json()["error"]["code"] == "model_not_found"


def test_bytes_that_are_lost_are_no_404(http: httpx2.Client, training: str, settings: Settings) -> None:
    assert http.get(f"/hf/{training}/resolve/step-2/config.json").status_code == 200
    open_storage(settings.storage_url).delete_prefix("checkpoints")
    for route in ("/hf/{}/resolve/step-2/config.json", "/v1/models/{}-step-2/archive"):
        assert http.get(route.format(training)).status_code == 500


def test_an_uploaded_file_in_part_and_not_again(http: httpx2.Client, client: OpenAI) -> None:
    file = client.files.create(file=("a.jsonl", b"0123456789"), purpose="fine-tune")
    at = f"/v1/files/{file.id}/content"
    whole = http.get(at)
    assert whole.content == b"0123456789" and "a.jsonl" in whole.headers["content-disposition"]
    assert http.get(at, headers={"Range": "bytes=2-4"}).content == b"234"
    assert http.get(at, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304


ROUTES = (
    "/hf/api/models/{model}/revision/{revision}",
    "/hf/api/models/{model}/tree/{revision}",
    "/hf/api/models/{model}/tree/{revision}/folder",
    "/hf/{model}/resolve/{revision}/config.json",
)


def test_a_revision_that_is_none_fails_on_every_route(http: httpx2.Client, training: str, base: str) -> None:
    for model in (training, base, f"{training}-step-2"):
        known = "step-2" if model == training else "main"
        for revision in ("step-3", "nonsense", "refs%2Fpr%2F1", commit_of(http, model, known)[::-1], "step-02"):
            for route in ROUTES:
                answer = http.get(route.format(model=model, revision=revision))
                assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RevisionNotFound"), answer.url
            asked = http.post(f"/hf/api/models/{model}/paths-info/{revision}", data={"paths": "config.json"})
            assert (asked.status_code, asked.headers["x-error-code"]) == (404, "RevisionNotFound")


def test_one_checkpoint_under_all_its_names(http: httpx2.Client, training: str) -> None:
    commit = commit_of(http, training, "step-2")
    for model, revision in (
        (training, "best"),
        (training, commit),
        (f"{training}-step-2", "main"),
        (f"{training}-best", commit),
    ):
        answer = http.get(f"/hf/{model}/resolve/{revision}/model.safetensors")
        assert (answer.content, answer.headers["x-repo-commit"]) == (WEIGHTS, commit)
    refs = http.get(f"/hf/api/models/{training}/refs").json()
    assert [ref["name"] for ref in refs["branches"]] == []
    assert {ref["name"]: ref["targetCommit"] for ref in refs["tags"]} == {"best": commit, "step-2": commit}


def test_main_of_an_unfinished_job_says_what_to_use(http: httpx2.Client, job: str, database: Database) -> None:
    for at in (f"/hf/api/models/{job}", f"/hf/{job}/resolve/main/config.json"):
        answer = http.get(at)
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RevisionNotFound")
        assert "wait for its first checkpoint" in answer.json()["error"] == answer.headers["x-error-message"]


def test_main_of_a_running_job(http: httpx2.Client, training: str) -> None:
    answer = http.head(f"/hf/{training}/resolve/main/config.json")
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RevisionNotFound")
    assert "running; use step-2" in answer.headers["x-error-message"]


def test_a_name_that_begins_like_a_job_is_no_revision_of_it(
    http: httpx2.Client, database: Database, tmp_path: Path
) -> None:
    with database.transaction() as session:
        for name in ("one", "one-step-2", "one-best"):
            models.register_base(session, make_folder(tmp_path / name))
    for revision in ("step-2", "best"):
        assert http.get(f"/hf/api/models/base/one/revision/{revision}").headers["x-error-code"] == "RevisionNotFound"


@pytest.mark.parametrize(
    "path",
    [
        "../config.json",
        "..%2Fconfig.json",
        "%2e%2e%2f%2e%2e%2fconfig.json",
        "%252e%252e%252fconfig.json",
        "..%255c..%255cconfig.json",
        "%2Fetc%2Fpasswd",
        "//etc/passwd",
        "config.json%2F..%2F..%2Fstate%2Flink",
        "config.json%00",
        "%2500config.json",
        "./config.json",
        "CONFIG.JSON",
        "",
        "a%0d%0aX-Injected:%201",
    ],
)
def test_no_path_leads_out_of_the_model(api: Api, secret: str, training: str, path: str) -> None:
    """Sent as it stands: httpx2 would tidy it up."""
    connection = HTTPConnection(api.host, api.port, timeout=30)
    for at in (f"/hf/{training}/resolve/step-2/{path}", f"/hf/api/models/{training}/tree/step-2/x/{path}"):
        connection.request("GET", at, headers={"Authorization": f"Bearer {secret}"})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 404, (at, body)
        assert answer.headers["x-injected"] is None
    connection.close()


def test_paths_that_take_the_place_of_an_id(http: httpx2.Client, training: str) -> None:
    for at in (
        "/hf/..%2F..%2Fetc/passwd/resolve/main/config.json",
        "/hf/default%2F..%2Fother/resolve/main/config.json",
        "/hf/gpt2/resolve/main/config.json",
        "/hf/api/models/gpt2",
        "/hf/api/datasets/a/b",
        "/hf/api/models/default/none",
        "/hf/default/none/resolve/main/config.json",
    ):
        answer = http.get(at)
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RepoNotFound"), at


def test_private(http: httpx2.Client, training: str, make_key: Callable[[str], str]) -> None:
    routes = [route.format(model=training, revision="step-2") for route in ROUTES]
    for header, status in (
        ("", 401),
        ("Bearer hf_wrong", 401),
        (f"Bearer {make_key('other')}", 404),
    ):
        http.headers["Authorization"] = header
        for at in [*routes, f"/hf/api/models/{training}", f"/hf/api/models/{training}/refs"]:
            answer = http.get(at)
            assert (answer.status_code, answer.headers["x-error-code"]) == (status, "RepoNotFound"), at
    assert http.get("/hf/api/models").json() == http.get("/hf/api/models", params={"author": "base"}).json()


def test_lists_and_who_am_i(http: httpx2.Client, training: str, base: str) -> None:
    ids = [model["id"] for model in http.get("/hf/api/models").json()]
    assert set(ids) == {base, f"{training}-step-2", f"{training}-best"}
    assert [model["id"] for model in http.get("/hf/api/models", params={"search": "BEST"}).json()] == [
        f"{training}-best"
    ]
    assert len(http.get("/hf/api/models", params={"limit": 1, "author": "default"}).json()) == 1
    assert len(http.get("/hf/api/models", params={"limit": 5000}).json()) == 3
    refused = http.get("/hf/api/models", params={"limit": 0})
    assert (refused.status_code, "limit" in refused.headers["x-error-message"]) == (400, True)
    me = http.get("/hf/api/whoami-v2").json()
    assert (me["name"], me["auth"]["accessToken"]["displayName"]) == ("default", "test")


def test_a_base_model_whose_folder_was_changed(
    http: httpx2.Client, base: str, base_folder: Path, database: Database
) -> None:
    before = commit_of(http, base, "main")
    (base_folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 264, "a": 1}')
    answer = http.get(f"/hf/{base}/resolve/main/config.json")
    assert answer.status_code == 400 and "dpo models add" in answer.json()["error"]
    with database.transaction() as session:
        models.register_base(session, base_folder)
    assert http.get(f"/hf/{base}/resolve/main/config.json").status_code == 200
    assert commit_of(http, base, "main") != before
    (base_folder / "tokenizer_config.json").unlink()
    assert http.head(f"/hf/{base}/resolve/main/tokenizer_config.json").status_code == 400


def test_files_of_a_model_of_an_earlier_version(http: httpx2.Client, base: str, database: Database) -> None:
    with database.transaction() as session:
        model = models.get(session, "none", base)
        model.files = model.commit = None
    answer = http.get(f"/hf/{base}/resolve/main/config.json")
    assert answer.status_code == 400 and "dpo models add" in answer.json()["error"]
    assert http.get(f"/hf/api/models/{base}/tree/main").status_code == 400
    assert Conflict.code == answer.json().get("code", Conflict.code)

"""What a model makes of a file, over HTTP: in numbers, and token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from sqlalchemy import func, select

from control_plane import checks, models
from control_plane.database import Database
from control_plane.settings import Settings
from control_plane.tables import Check
from dpo_core.data.formats import read_rows
from dpo_core.data.options import ReadOptions
from dpo_core.data.records import Pair
from dpo_core.data.render import Renderer
from tests.api.conftest import answered
from tests.control_plane.model_folders import make_folder
from tests.makers import write_preference_file
from tests.worker.stubs import supervisor
from worker.launch import Programs


@pytest.fixture
def working(settings: Settings) -> Iterator[None]:
    with supervisor(settings.model_copy(update={"heartbeat_seconds": 0.2, "poll_seconds": 0.2}), Programs()):
        yield


@pytest.fixture
def model(database: Database, tmp_path: Path) -> str:
    with database.transaction() as session:
        return models.register_base(session, make_folder(tmp_path / "tiny")).id


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_preference_file(tmp_path / "pairs.jsonl", 20)


@pytest.fixture
def url(client: OpenAI, pairs: Path) -> str:
    return f"/v1/files/{client.files.create(file=pairs, purpose='fine-tune').id}"


def get(http: httpx2.Client, url: str, **params: Any) -> httpx2.Response:
    return answered(lambda: http.get(url, params={"wait": 5, **params}))


def test_a_report_with_a_model_adds_its_tokens(http: httpx2.Client, working: None, url: str, model: str) -> None:
    said = get(http, f"{url}/report", model=model).json()
    assert (said["state"], said["model"], said["report"]["pairs"]) == ("done", model, 20)
    tokens = said["tokens"]
    assert (tokens["rows"], tokens["method"], tokens["longer"]) == (20, "dpo", 0)
    assert tokens["max_length"] == 512, "the model's context"
    assert get(http, f"{url}/report").json()["tokens"] is None


def test_a_preview_shows_the_ids_that_are_trained_on(
    http: httpx2.Client, working: None, url: str, model: str, tmp_path: Path
) -> None:
    said = get(http, f"{url}/preview", model=model, limit=2).json()
    assert (said["object"], said["state"]) == ("file.preview", "done")
    rows = said["preview"]["rows"]
    assert [row["line"] for row in rows] == [1, 2]
    renderer = Renderer(tmp_path / "tiny")
    for row, record in zip(rows, read_rows(tmp_path / "pairs.jsonl", ReadOptions("dpo")), strict=False):
        assert isinstance(record, Pair)
        item = renderer.pair(record)
        for sequence, tokens, prompt in zip(
            row["sequences"], item.sequences, (item.chosen_prompt, item.rejected_prompt), strict=True
        ):
            assert [token["id"] for token in sequence["tokens"]] == tokens
            assert sequence["learned"] == len(tokens) - prompt


def test_lines_and_a_length_may_be_asked_for(http: httpx2.Client, working: None, url: str, model: str) -> None:
    rows = get(http, f"{url}/preview", model=model, lines=[7, 3, 99], max_length=400).json()["preview"]
    assert [row["line"] for row in rows["rows"]] == [3, 7]
    assert rows["missing_lines"] == [99]


def test_what_can_not_be_is_refused(http: httpx2.Client, url: str, model: str, make_key: Callable[[str], str]) -> None:
    for params, status, param in (
        ({}, 400, "model"),
        ({"model": "base/none"}, 404, "model"),
        ({"model": model, "limit": 21}, 400, "limit"),
        ({"model": model, "lines": 0}, 400, "lines.0"),
    ):
        answer = http.get(f"{url}/preview", params=params)
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    theirs = {"Authorization": f"Bearer {make_key('other')}"}
    for route in ("preview", "report"):
        assert http.get(f"{url}/{route}", params={"model": model}, headers=theirs).status_code == 404


def test_a_model_without_a_template_is_the_answer(
    http: httpx2.Client, working: None, url: str, database: Database, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    with database.transaction() as session:
        bare = models.register_base(session, folder).id
    for route in ("preview", "report"):
        said = get(http, f"{url}/{route}", model=bare).json()
        assert (said["state"], said["error"]["code"]) == ("failed", "no_chat_template")


def test_without_a_worker_they_say_to_come_again(
    http: httpx2.Client, url: str, model: str, client: OpenAI, database: Database
) -> None:
    for route in ("preview", "report"):
        answer = http.get(f"{url}/{route}", params={"model": model, "wait": 0})
        assert (answer.status_code, answer.json()["state"]) == (202, "waiting")
    with database.transaction() as session:
        assert session.scalar(select(func.count()).where(Check.state == checks.State.waiting)) == 3
    client.files.delete(url.removeprefix("/v1/files/"))
    with database.transaction() as session:
        assert not checks.waiting(session)

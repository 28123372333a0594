"""Reports over HTTP: on their way, waited for, another project's, and gone with the file."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from openai import OpenAI

from control_plane import checks, models
from control_plane.database import Database
from control_plane.settings import Settings
from tests.api.conftest import answered
from tests.control_plane.model_folders import make_folder
from tests.makers import real_data
from tests.worker.stubs import supervisor
from worker.launch import Programs


@pytest.fixture
def working(settings: Settings) -> Iterator[None]:
    """A worker with the real program."""
    with supervisor(settings.model_copy(update={"heartbeat_seconds": 0.2, "poll_seconds": 0.2}), Programs()):
        yield


@pytest.fixture
def model(database: Database, tmp_path: Path) -> str:
    with database.transaction() as session:
        return models.register_base(session, make_folder(tmp_path / "tiny")).id


ROWS = b"""{"prompt": "What is 1+1?", "chosen": "It is two.", "rejected": "3"}
{"prompt": "What is 1+1?", "chosen": "2", "rejected": "I believe it is 3."}
{"prompt": "What is 2+2?", "chosen": "", "rejected": "3"}
{"prompt": "What is 2+2?", "chosen": "4", "rejected": "5"}
"""


def upload(client: OpenAI, content: bytes = ROWS) -> str:
    return client.files.create(file=("pairs.jsonl", content), purpose="fine-tune").id


def report_on(http: httpx2.Client, file_id: str) -> httpx2.Response:
    return answered(lambda: http.get(f"/v1/files/{file_id}/report?wait=5"))


def test_a_report_that_waits_for_a_worker_says_so(client: OpenAI, http: httpx2.Client) -> None:
    url = f"/v1/files/{upload(client)}/report"
    for query in ("", "?wait=0.3"):
        answer = http.get(url + query)
        assert (answer.status_code, answer.headers["retry-after"]) == (202, "1")
        assert (answer.json()["state"], answer.json()["report"]) == ("waiting", None)
    refused = http.get(f"{url}?wait=31")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "wait")


def test_a_report_names_lines_counts_and_the_way_out(client: OpenAI, http: httpx2.Client, working: None) -> None:
    answer = report_on(http, upload(client))
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["object"], said["state"], said["error"]) == ("file.report", "done", None)
    report = said["report"]
    assert (report["rows"], report["pairs"], report["examples"], report["damage"]) == (4, 3, 0, None)
    assert (report["format"], report["shapes"][0]["title"]) == ("JSONL", "a prompt with two answers")
    (problem,) = report["problems"]
    assert (problem["code"], problem["lines"], problem["title"]) == ("empty_answer", [3], "empty answer")
    assert "or remove the row" in problem["message"]
    assert report["statistics"]["prompts"] == 2
    bias = report["statistics"]["length_bias"]
    assert (bias["share"], bias["pairs"], bias["equal"]) == (0.5, 2, 1)
    assert 0.0 < bias["low"] < 0.5 < bias["high"] < 1.0


def test_a_damaged_file_has_the_status_error_and_trains_nothing(
    client: OpenAI, http: httpx2.Client, working: None, model: str
) -> None:
    file_id = upload(client, gzip.compress(ROWS * 100)[:-20])
    damage = report_on(http, file_id).json()["report"]["damage"]
    assert damage["code"] == "truncated_gzip"
    file = client.files.retrieve(file_id)
    assert (file.status, file.status_details) == ("error", damage["message"])
    assert client.files.wait_for_processing(file_id).status == "error"
    with pytest.raises(openai.BadRequestError, match="cut off: its end is missing"):
        client.fine_tuning.jobs.create(model=model, training_file=file_id, method={"type": "dpo"})


def test_a_file_with_names_of_its_own_is_read_by_them(
    client: OpenAI, http: httpx2.Client, working: None, model: str
) -> None:
    file_id = upload(client, ROWS.replace(b'"prompt"', b'"frage"'))
    report = report_on(http, file_id).json()["report"]
    assert (report["pairs"], report["shapes"]) == (0, [])
    assert "the row has `frage`, `chosen`, `rejected`. Add it, say in `columns`" in report["problems"][0]["message"]

    def named(what: str, columns: str, **query: str) -> httpx2.Response:
        params = {"columns": columns, "wait": "5", **query}
        return answered(lambda: http.get(f"/v1/files/{file_id}/{what}", params=params))

    said = named("report", '{"prompt": "frage"}', model=model).json()
    assert (said["report"]["pairs"], said["tokens"]["rows"]) == (3, 3)
    assert [(it["shape"], it["count"]) for it in said["report"]["shapes"]] == [("prompt_answers", 3)]
    shown = named("preview", '{"prompt": "frage"}', model=model, limit="1").json()["preview"]
    assert "What is 1+1?" in "".join(token["text"] for token in shown["rows"][0]["sequences"][0]["tokens"])
    assert client.files.retrieve(file_id).status == "processed"
    assert report_on(http, file_id).json()["report"] == report, "the file's own report stays as it was"

    wrong = {"prompt=frage": "JSON object", '{"prompt": 1}': "JSON object", '{"promt": "x"}': "Did you mean `prompt`"}
    for columns, word in wrong.items():
        refused = named("report", columns)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "columns")
        assert word in refused.json()["error"]["message"]


def test_another_projects_report_is_not_there(
    client: OpenAI, http: httpx2.Client, make_key: Callable[[str], str]
) -> None:
    file_id = upload(client)
    answer = http.get(f"/v1/files/{file_id}/report", headers={"Authorization": f"Bearer {make_key('other')}"})
    assert answer.status_code == 404
    assert http.get("/v1/files/file-none/report").status_code == 404


def test_a_report_goes_with_its_file(client: OpenAI, http: httpx2.Client, database: Database) -> None:
    file_id = upload(client)
    client.files.delete(file_id)
    assert http.get(f"/v1/files/{file_id}/report").status_code == 404
    with database.transaction() as session:
        assert not checks.waiting(session)


def test_a_job_on_a_file_with_no_usable_row_is_refused_with_the_reports_words(
    client: OpenAI, http: httpx2.Client, working: None, model: str
) -> None:
    file_id = upload(client, real_data("llama-factory/kto_en_demo.json").read_bytes())
    report = report_on(http, file_id).json()["report"]
    assert (report["pairs"], report["examples"], report["rows"]) == (0, 0, 300)
    (problem,) = report["problems"]
    assert (problem["code"], problem["count"]) == ("unpaired", 300)
    with pytest.raises(openai.BadRequestError, match="unpaired") as refused:
        client.fine_tuning.jobs.create(model=model, training_file=file_id, method={"type": "dpo"})
    assert isinstance(refused.value.body, dict)
    assert refused.value.body["param"] == "training_file"
    assert problem["message"] in refused.value.body["message"]
    assert client.fine_tuning.jobs.list().data == []


def test_rows_of_another_method_are_refused_with_the_method_that_they_are_for(
    client: OpenAI, http: httpx2.Client, working: None, model: str
) -> None:
    file_id = upload(client)
    assert report_on(http, file_id).json()["state"] == "done"
    with pytest.raises(openai.BadRequestError, match="method `dpo`: ask for that"):
        client.fine_tuning.jobs.create(model=model, training_file=file_id, method={"type": "supervised"})
    own = {"training": {"columns": {"prompt": "chosen", "completion": "prompt"}}}
    renamed = client.fine_tuning.jobs.create(
        model=model, training_file=file_id, method={"type": "supervised"}, extra_body=own
    )
    job = client.fine_tuning.jobs.create(model=model, training_file=file_id, method={"type": "dpo"})
    assert {renamed.status, job.status} == {"validating_files"}

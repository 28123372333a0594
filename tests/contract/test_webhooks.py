"""Webhooks by the unmodified openai client: what it registers, and what it accepts as signed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import FileObject

from control_plane import audit, models
from control_plane.database import Database
from control_plane.settings import Settings
from tests.api.conftest import Api
from tests.control_plane.model_folders import make_folder
from tests.receiver import Receiver, receiving
from tests.service import poll_until
from worker.webhooks import Postman

ROWS = b'{"prompt": "What is 1+1?", "chosen": "2", "rejected": "3"}\n'
ENDPOINTS = "/webhook_endpoints"
TYPES = ["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def client(serve: Callable[[Settings], Api], settings: Settings, secret: str) -> Iterator[OpenAI]:
    """Of a service whose operator lets webhooks go to this machine, with a worker's postman."""
    quick = {"webhook_allow_http": True, "webhook_allow_private": True, "poll_seconds": 0.1}
    allowed = settings.model_copy(update=quick)
    postman = Postman(allowed)
    postman.start()
    with OpenAI(base_url=f"{serve(allowed).url}/v1", api_key=secret, max_retries=0, timeout=30) as client:
        yield client
    postman.stop()


@pytest.fixture
def cancelled(client: OpenAI, database: Database, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Makes a job and cancels it."""
    with database.transaction() as session:
        base = models.register_base(session, make_folder(tmp_path_factory.mktemp("model") / "tiny")).id
    file: FileObject = client.files.create(file=("pairs.jsonl", ROWS), purpose="fine-tune")

    def cancel() -> str:
        job = client.fine_tuning.jobs.create(model=base, training_file=file.id, method={"type": "dpo"})
        return client.fine_tuning.jobs.cancel(job.id).id

    return cancel


def register(client: OpenAI, **body: object) -> dict[str, Any]:
    answer = client.post(ENDPOINTS, body=body, cast_to=object)
    assert isinstance(answer, dict)
    return answer


def log(client: OpenAI, endpoint_id: str) -> list[dict[str, Any]]:
    answer = client.get(f"{ENDPOINTS}/{endpoint_id}/deliveries", cast_to=object)
    assert isinstance(answer, dict)
    return list(answer["data"])


def test_the_client_unwraps_what_comes(client: OpenAI, receiver: Receiver, cancelled: Callable[[], str]) -> None:
    endpoint = register(client, url=receiver.url)
    job_id = cancelled()
    poll_until(lambda: len(receiver.got) == 1, "the webhook came")
    (got,) = receiver.got
    event = client.webhooks.unwrap(got.body, got.headers, secret=endpoint["signing_secret"])
    type(event).model_validate(event.model_dump(), strict=True)
    assert (event.type, event.data.id, event.object) == ("fine_tuning.job.cancelled", job_id, "event")
    assert event.id == got.headers["webhook-id"]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(got.body + b" ", got.headers, secret=endpoint["signing_secret"])
    other = register(client, url=receiver.url)["signing_secret"]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(got.body, got.headers, secret=other)


def test_the_log_and_a_redelivery(client: OpenAI, receiver: Receiver, cancelled: Callable[[], str]) -> None:
    endpoint = register(client, url=receiver.url, event_types=TYPES[2:])
    receiver.answers = [503]
    job_id = cancelled()
    poll_until(lambda: [it["last_status_code"] for it in log(client, endpoint["id"])] == [503], "the try is in the log")
    (entry,) = log(client, endpoint["id"])
    assert (entry["status"], entry["attempts"], entry["fine_tuning_job_id"]) == ("waiting", 1, job_id)
    assert entry["next_attempt_at"] >= entry["last_attempt_at"]
    path = f"{ENDPOINTS}/{endpoint['id']}/deliveries/{entry['id']}/redeliver"
    for tries in (2, 3):  # at once instead of at the next try; and once more when it has arrived
        client.post(path, cast_to=object)
        poll_until(
            lambda: [(it["status"], it["attempts"]) for it in log(client, endpoint["id"])] == [("delivered", tries)],  # noqa: B023
            "it arrived",
        )
    assert len({got.headers["webhook-id"] for got in receiver.got}) == 1
    assert client.delete(f"{ENDPOINTS}/{endpoint['id']}", cast_to=object) == {
        "id": endpoint["id"],
        "object": "webhook_endpoint.deleted",
        "deleted": True,
    }
    with pytest.raises(openai.NotFoundError):
        log(client, endpoint["id"])


def test_the_secret_is_shown_once(client: OpenAI) -> None:
    made = register(client, url="https://hooks.example/x", name="ours")
    assert made["signing_secret"].startswith("whsec_")
    for shown in (
        client.get(f"{ENDPOINTS}/{made['id']}", cast_to=object),
        client.get(ENDPOINTS, cast_to=object),
        client.post(f"{ENDPOINTS}/{made['id']}", body={"name": "theirs"}, cast_to=object),
    ):
        assert made["signing_secret"] not in str(shown)
    assert made["signing_secret_hint"][-4:] in made["signing_secret"]


def test_a_registration_that_is_sent_again_makes_no_second_endpoint(client: OpenAI) -> None:
    """And its answer shows the secret that the lost answer showed."""

    def create(name: str = "ours", **headers: str) -> tuple[str, str]:
        body = {"url": "https://hooks.example/x", "name": name}
        made: Any = client.post(ENDPOINTS, body=body, cast_to=object, options={"headers": headers})
        return made["id"], made["signing_secret"]

    first = create(**{"Idempotency-Key": "one"})
    assert create(**{"Idempotency-Key": "one"}) == first
    with pytest.raises(openai.BadRequestError, match="with another body"):
        create("theirs", **{"Idempotency-Key": "one"})
    second = create()
    assert create(**{"x-stainless-retry-count": "1"}) == second != first
    third = create()
    assert third not in (first, second), "sent on purpose, it is another endpoint"
    client.delete(f"{ENDPOINTS}/{first[0]}", cast_to=object)
    assert create(**{"Idempotency-Key": "one"}) not in (first, second, third), "what is deleted is made anew"


def test_a_sample(client: OpenAI, receiver: Receiver, database: Database) -> None:
    endpoint = register(client, url=receiver.url)
    receiver.answers = [418]
    path, body = f"{ENDPOINTS}/{endpoint['id']}/test", {"event_type": TYPES[0]}
    answer = client.post(path, body=body, cast_to=object)
    assert isinstance(answer, dict)
    assert (answer["status_code"], answer["event_type"]) == (418, TYPES[0])
    assert (
        client.webhooks.unwrap(receiver.got[0].body, receiver.got[0].headers, secret=endpoint["signing_secret"]).type
        == TYPES[0]
    )
    with database.transaction() as session:
        told = [it for it in audit.entries(session, None).items if it.action == "webhook.tested"]
    assert [(it.target, it.actor.partition("-")[0]) for it in told] == [(endpoint["id"], "key")]
    nowhere = register(client, url="http://127.0.0.1:1/x")
    with pytest.raises(openai.BadRequestError, match=r"gave no answer.*refused") as refused:
        client.post(f"{ENDPOINTS}/{nowhere['id']}/test", body=body, cast_to=object)
    assert refused.value.code == "webhook_unreachable"


def test_refusals(client: OpenAI) -> None:
    for body, param in [
        ({"url": "ftp://hooks.example/"}, "url"),
        ({"name": "x"}, "url"),
        ({"url": "https://hooks.example/", "event_types": []}, "event_types"),
        ({"url": "https://hooks.example/", "event_types": ["batch.completed"]}, "event_types.0"),
        ({"url": "https://hooks.example/", "event_types": [TYPES[0], TYPES[0]]}, "event_types"),
        ({"url": "https://hooks.example/", "secret": "mine"}, "secret"),
    ]:
        with pytest.raises(openai.BadRequestError) as refused:
            register(client, **body)
        assert refused.value.param == param


def test_a_service_without_the_switches_takes_neither_http_nor_private_addresses(api: Api, secret: str) -> None:
    with OpenAI(base_url=f"{api.url}/v1", api_key=secret, max_retries=0) as client:
        for url in ("http://hooks.example/", "https://127.0.0.1/", "https://169.254.169.254/latest"):
            with pytest.raises(openai.BadRequestError, match="DPO_WEBHOOK_ALLOW_") as refused:
                register(client, url=url)
            assert (refused.value.param, refused.value.code) == ("url", "invalid_url")


def test_the_newest_clients_own_calls(client: OpenAI, receiver: Receiver) -> None:
    calls: Any = client.webhooks
    if not hasattr(calls, "create"):
        pytest.skip("this version of the client can only unwrap webhooks")
    made = calls.create(url=receiver.url, name="ours", event_types=TYPES[:2])
    type(made).model_validate(made.model_dump(), strict=True)
    known = calls.retrieve(made.id)
    type(known).model_validate(known.model_dump(), strict=True)
    assert (known.name, known.event_types, known.url) == ("ours", TYPES[:2], receiver.url)
    assert calls.update(made.id, event_types=TYPES).event_types == TYPES
    another = calls.create(url=receiver.url, name="another", event_types=TYPES)
    assert [it.id for it in calls.list(limit=1)] == [another.id, made.id]
    rotated = calls.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != made.signing_secret
    tested = calls.test(made.id, event_type=TYPES[1])
    type(tested).model_validate(tested.model_dump(), strict=True)
    for valid in (made.signing_secret, rotated.signing_secret):
        assert calls.unwrap(receiver.got[0].body, receiver.got[0].headers, secret=valid).type == TYPES[1]
    assert calls.rotate_secret(made.id).signing_secret not in (made.signing_secret, rotated.signing_secret)
    assert calls.event_types.list().data == TYPES
    assert calls.delete(another.id).deleted
    with pytest.raises(openai.NotFoundError):
        calls.retrieve(another.id)


def test_the_guides_receiver(client: OpenAI, cancelled: Callable[[], str], tmp_path: Path) -> None:
    """docs/webhooks.md's program as it stands, but for its port and address."""
    guide = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text(encoding="utf-8")
    program = guide.split("```python\n")[1].split("```")[0]
    assert '("", 8001)' in program
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    secret = register(client, url=f"http://127.0.0.1:{port}/")["signing_secret"]
    (tmp_path / "hook.py").write_text(program.replace('("", 8001)', f'("127.0.0.1", {port})'), encoding="utf-8")
    environment = os.environ | {"OPENAI_API_KEY": "unused", "OPENAI_WEBHOOK_SECRET": secret, "PYTHONUNBUFFERED": "1"}
    said = tmp_path / "said.txt"
    with open(said, "wb") as output:
        hook = subprocess.Popen([sys.executable, tmp_path / "hook.py"], env=environment, stdout=output)
    try:
        poll_until(lambda: _answers(port), "the receiver listens")
        job_id = cancelled()
        poll_until(lambda: said.read_text().endswith(f" fine_tuning.job.cancelled {job_id}\n"), "it printed the event")
    finally:
        hook.terminate()
        hook.wait(20)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

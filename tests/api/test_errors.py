"""One envelope for every refusal, and an id on every answer."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable

import httpx2
import pytest

from api import errors
from api.errors import STATUS
from control_plane.database import Database
from control_plane.errors import ServiceError, StaleFence
from control_plane.settings import Settings
from tests.api.conftest import Api


def error_of(answer: httpx2.Response, status: int) -> dict[str, str | None]:
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"].startswith("req-")
    assert set(answer.json()) == {"error"}
    error: dict[str, str | None] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_routes_and_methods(http: httpx2.Client) -> None:
    assert error_of(http.get("/v1/nothing"), 404)["code"] == "unknown_url"
    unknown = error_of(http.get("/"), 404)
    assert (unknown["code"], unknown["message"]) == (
        "unknown_url",
        "There is no route GET /; GET /openapi.json lists those that there are.",
    )
    assert "vLLM" in (error_of(http.post("/v1/chat/completions", json={}), 404)["message"] or "")
    answer = http.put("/v1/files")
    assert "POST" in (error_of(answer, 405)["message"] or "")
    assert "POST" in answer.headers["allow"]


def test_validation_is_400_with_the_parameter(http: httpx2.Client) -> None:
    error = error_of(http.get("/v1/files?limit=many"), 400)
    assert (error["param"], error["type"]) == ("limit", "invalid_request_error")
    assert "many" in (error["message"] or "")
    assert error_of(http.get("/v1/fine_tuning/jobs?limit=101"), 400)["param"] == "limit"


def test_every_route_of_the_api_wants_a_key(http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()
    del http.headers["Authorization"]
    routes = [(method, path) for path, operations in document["paths"].items() for method in operations]
    assert len(routes) > 12
    for method, path in routes:
        answer = http.request(method, path)
        if path in ("/healthz", "/readyz"):
            assert answer.status_code == 200
        elif path.startswith("/hf/"):  # the Hub's own form, which its clients read
            assert (answer.status_code, answer.headers["x-error-code"]) == (401, "RepoNotFound")
        else:
            assert error_of(answer, 401)["code"] == "invalid_api_key"


def test_wrong_keys(api: Api, secret: str) -> None:
    for authorization in ("", "Basic abc", "Bearer", "Bearer x", f"Bearer {secret}x"):
        answer = httpx2.get(f"{api.url}/v1/files", headers={"Authorization": authorization})
        error = error_of(answer, 401)
        assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
        assert "dpo keys create" in (error["message"] or "")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_refusal_is_read_though_the_upload_is_still_coming(http: httpx2.Client) -> None:
    file = {"file": ("a", b"x" * 12_000_000)}
    answer = http.post("/v1/files", files=file, headers={"Authorization": "Bearer x"})
    assert error_of(answer, 401)["code"] == "invalid_api_key"
    answer = http.post("/v1/files", data={"purpose": "vision"}, files=file)
    assert error_of(answer, 400)["param"] == "purpose"


def test_bodies_that_are_no_json(http: httpx2.Client) -> None:
    for body in (b"", b"{", b"\xff", b'{"model": NaN}', b"[" * 100_000, b'{"a": "\\ud800"}', b'{"a\\u0000": 1}'):
        error = error_of(http.post("/v1/fine_tuning/jobs", content=body), 400)
        assert error["code"] == "invalid_json", error
    assert "JSON object" in (error_of(http.post("/v1/fine_tuning/jobs", json=[]), 400)["message"] or "")


def test_a_body_has_a_limit(serve: Callable[[Settings], Api], settings: Settings, secret: str) -> None:
    api = serve(settings.model_copy(update={"max_json_bytes": 1000}))
    headers = {"Authorization": f"Bearer {secret}"}
    answer = httpx2.post(f"{api.url}/v1/fine_tuning/jobs", headers=headers, content=b" " * 1001)
    assert "1,000 bytes" in (error_of(answer, 413)["message"] or "")


def test_characters_that_postgresql_can_not_hold(http: httpx2.Client) -> None:
    for path in ("/v1/files/file%00", "/v1/files?after=%00", "/v1/models/a%00%2Fb"):
        assert "NUL" in (error_of(http.get(path), 400)["message"] or "")


def test_a_failure_hides_its_details_and_logs_them(
    http: httpx2.Client, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE files RENAME COLUMN filename TO secret_column")
    try:
        with caplog.at_level(logging.ERROR, logger="api.edge"):
            answer = http.get("/v1/files")
    finally:
        with database.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE files RENAME COLUMN secret_column TO filename")
    error = error_of(answer, 500)
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "filename" not in answer.text
    assert answer.headers["x-request-id"] in (error["message"] or "")
    (record,) = caplog.records
    assert answer.headers["x-request-id"] in record.getMessage()
    assert "UndefinedColumn" in (record.exc_text or "")


def test_a_request_that_gives_way_in_a_deadlock_is_told_so(http: httpx2.Client, database: Database) -> None:
    body = {"url": "https://hooks.example/x"}
    with database.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION give_way() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = 'deadlock_detected'; END $$; "
            "CREATE TRIGGER gives_way BEFORE INSERT ON webhook_endpoints EXECUTE FUNCTION give_way()"
        )
    try:
        answer = http.post("/v1/webhook_endpoints", json=body)
    finally:
        with database.engine.begin() as connection:
            connection.exec_driver_sql("DROP FUNCTION give_way CASCADE")
    error = error_of(answer, 503)
    assert (error["code"], answer.headers["retry-after"]) == ("gave_way", "1")
    assert "Send it again" in (error["message"] or "")
    assert http.get("/v1/webhook_endpoints").json()["data"] == []
    assert http.post("/v1/webhook_endpoints", json=body).status_code == 200


def test_a_path_begins_no_line_of_the_log(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("control_plane.keys.authenticate", fail)
    with caplog.at_level(logging.ERROR, logger="api.edge"):
        answer = httpx2.get(f"{api.url}/v1/files/a%0Aforged", headers={"Authorization": "Bearer x"})
    error_of(answer, 500)
    (record,) = caplog.records
    assert "GET /v1/files/a%0Aforged" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_http_that_is_no_http(api: Api) -> None:
    with socket.create_connection((api.host, api.port)) as connection:
        connection.sendall(b"GARBAGE\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


def test_the_openapi_document(http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()
    text = json.dumps(document)
    assert "JobRequest" in document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
    missing = {
        name
        for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
        if name not in document["components"]["schemas"]
    }
    assert not missing


def test_every_refusal_has_its_status() -> None:
    refusals = set(ServiceError.__subclasses__()) - {StaleFence}  # a worker's, never a client's
    assert set(STATUS) == refusals


def test_a_full_storage_is_not_asked_again() -> None:
    """The openai client repeats every 5xx, a whole upload too, unless it is told not to."""
    refusal = errors.envelope(507, "full", code="storage_full")
    assert refusal.headers["x-should-retry"] == "false"
    assert b'"server_error"' in refusal.body

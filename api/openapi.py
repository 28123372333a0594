"""The OpenAPI document: what FastAPI finds out by itself, and what it can't know: examples, and how refusals look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI

from api.auth import PUBLIC
from api.errors import ErrorEnvelope

ERRORS = {
    400: "The request asks for something impossible; `param` names the field.",
    401: "No key, or a wrong one.",
    403: "The key lacks the route's scope, or the project has as much as it may have.",
    404: "There is no such thing in this project.",
    413: "More bytes than allowed.",
    429: "The key asks too often; `Retry-After` says for how long to wait.",
    500: "A failure of the service; its log has it under the answer's `x-request-id`.",
    503: "PostgreSQL can't be reached, or its schema is another version's, or another request went first (`gave_way`).",
    507: "The server's storage is full.",
}

JOB = {"model": "base/my-model", "training_file": "file-01m8bt3fxd7p3e2pn3j8p9kh82", "method": {"type": "dpo"}}
BODIES: dict[str, Any] = {
    "JobRequest": JOB,
    "SweepRequest": {**JOB, "training": {"beta": [0.1, 0.3], "learning_rate": [1e-6, 3e-6]}},
    "Promotion": {"job": "ftjob-01m8brhxjyatfgpm8v4yk7amb4"},
    "UploadRequest": {"bytes": 1048576, "filename": "pairs.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"},
    "EndpointRequest": {"name": "ci", "url": "https://example.org/hook", "event_types": ["fine_tuning.job.succeeded"]},
    "EndpointChange": {"name": "ci, too"},
    "RotationRequest": {},
    "TestRequest": {"event_type": "fine_tuning.job.succeeded"},
    "CompletionRequest": {"part_ids": ["part-01m8bt3fxd7p3e2pn3j8p9kh82"]},
}
"""An example of each JSON body, by its schema."""

PARAMETERS: dict[str, Any] = {
    "file_id": "file-01m8bt3fxd7p3e2pn3j8p9kh82",
    "upload_id": "upload-01m8bt3fxd7p3e2pn3j8p9kh82",
    "job_id": "ftjob-01m8brhxjyatfgpm8v4yk7amb4",
    "sweep_id": "ftsweep-01m8brhxjyatfgpm8v4yk7amb4",
    "endpoint_id": "wep-01m8brhxjyatfgpm8v4yk7amb4",
    "delivery_id": "whd-01m8brhxjyatfgpm8v4yk7amb4",
    "permission_id": "cp-1",
    "model_id": "default/my-model-7amb4",
    "project": "default",
    "namespace": "default",
    "name": "my-model-7amb4",
    "revision": "main",
    "path": "config.json",
    "folder": "additional_chat_templates",
    "anything": "default/my-model-7amb4",
}
"""An example of each parameter in a path."""


def complete(app: FastAPI, schemas: Mapping[str, Any]) -> None:
    """Adds `schemas` of bodies that are read by hand, examples, and refusals in their envelope.

    FastAPI keeps the document that it made, and with it these changes.
    """
    document = app.openapi()
    components = document["components"]["schemas"]
    components.update(schemas)
    components.update(_error_schemas())
    for name in ("HTTPValidationError", "ValidationError"):  # ours is 400, in the envelope
        components.pop(name, None)
    for path, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path" and parameter["name"] in PARAMETERS:
                parameter["example"] = PARAMETERS[parameter["name"]]
        for content in operation.get("requestBody", {}).get("content", {}).values():
            name = _schema_of(content)
            if name in BODIES:
                content["example"] = BODIES[name]
        responses = operation["responses"]
        responses.pop("422", None)
        for status, meaning in ERRORS.items():
            if path in PUBLIC and status not in (500, 503):
                responses.pop(str(status), None)
            else:
                known = responses.get(str(status), {})
                otherwise = _HUBS if path.startswith("/hf/") else _ENVELOPE
                responses[str(status)] = {"description": meaning, "content": known.get("content", otherwise)}


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every operation with its path."""
    for path, found in document["paths"].items():
        for operation in found.values():
            yield path, operation


_ENVELOPE = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorEnvelope"}}}

_HUBS = {"application/json": {"schema": {"type": "object", "properties": {"error": {}}}}}
"""What the Hub's clients read is in the headers."""


def _error_schemas() -> dict[str, Any]:
    schema = ErrorEnvelope.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs", {}), "ErrorEnvelope": schema}


def _schema_of(content: Mapping[str, Any]) -> str:
    return str(content.get("schema", {}).get("$ref", "")).rpartition("/")[2]

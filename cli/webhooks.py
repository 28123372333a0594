"""`dpo webhooks`: where a project is told how its jobs end."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.tables import show
from cli.words import moment

ENDPOINTS = "/webhook_endpoints"

app = typer.Typer(help="Webhooks: be told over HTTP how jobs end.", no_args_is_help=True)

EndpointArgument = Annotated[str, typer.Argument(metavar="ID", help="The id that `dpo webhooks list` shows.")]


@app.command()
def create(
    url: Annotated[str, typer.Argument(help="Where to send a POST.")],
    name: Annotated[str | None, typer.Option(help="What to recognise it by; default: the URL's host.")] = None,
    event: Annotated[
        list[str] | None,
        typer.Option("--event", help="What to be told, such as fine_tuning.job.failed; default: everything."),
    ] = None,
) -> None:
    """Register an endpoint, and print its id and the secret that signs what it gets: the only time it can be read."""
    body: dict[str, Any] = {"url": url}
    if name is not None:
        body["name"] = name
    if event:
        body["event_types"] = event
    made = _post(ENDPOINTS, body)
    typer.echo(f"{made['id']}\n{made['signing_secret']}")


@app.command("list")
def list_() -> None:
    """List the endpoints, newest first, and say which were disabled and why."""
    found = _get(ENDPOINTS, limit=100)["data"]
    rows = [
        (it["id"], it["name"], it["url"], ",".join(it["event_types"]), it["disabled_reason"] or it["status"])
        for it in found
    ]
    show(("id", "name", "url", "events", "state"), rows)


@app.command()
def delete(endpoint: EndpointArgument) -> None:
    """Delete an endpoint with its log; what waits for it is not sent any more."""
    from cli.client import connected

    with connected() as client:
        client.delete(f"{ENDPOINTS}/{endpoint}", cast_to=object)
    typer.echo(f"deleted {endpoint}")


@app.command()
def log(
    endpoint: EndpointArgument,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=100)] = 20,
) -> None:
    """Show what was sent to an endpoint, newest first, and when what failed is tried again."""
    found = _get(f"{ENDPOINTS}/{endpoint}/deliveries", limit=limit)["data"]
    rows = [
        (
            it["id"],
            moment(it["created_at"]),
            it["event_type"],
            it["fine_tuning_job_id"] or "test",
            it["status"],
            str(it["attempts"]),
            str(it["last_status_code"] or "-"),
            moment(it["next_attempt_at"]),
            it["last_error"] or "",
        )
        for it in found
    ]
    show(("delivery", "made", "event", "job", "state", "tries", "answer", "next try", "error"), rows)


@app.command()
def redeliver(
    endpoint: EndpointArgument,
    delivery: Annotated[str, typer.Argument(metavar="DELIVERY", help="The id that `dpo webhooks log` shows.")],
) -> None:
    """Send a delivery again, now."""
    _post(f"{ENDPOINTS}/{endpoint}/deliveries/{delivery}/redeliver", {})
    typer.echo(f"{delivery} is sent again")


@app.command()
def enable(endpoint: EndpointArgument) -> None:
    """Send to an endpoint again that was disabled after its failures."""
    _post(f"{ENDPOINTS}/{endpoint}", {"status": "enabled"})
    typer.echo(f"enabled {endpoint}")


@app.command()
def test(endpoint: EndpointArgument) -> None:
    """Send a sample to an endpoint, and say what it answers."""
    answer = _post(f"{ENDPOINTS}/{endpoint}/test", {"event_type": "fine_tuning.job.succeeded"})
    typer.echo(f"it answered HTTP {answer['status_code']}")


def _post(path: str, body: dict[str, Any]) -> dict[str, Any]:
    from cli.client import connected

    with connected() as client:
        answer: dict[str, Any] = client.post(path, body=body, cast_to=dict[str, Any])
    return answer


def _get(path: str, *, limit: int) -> dict[str, Any]:
    from cli.client import connected

    with connected() as client:
        answer: dict[str, Any] = client.get(path, cast_to=dict[str, Any], options={"params": {"limit": limit}})
    return answer

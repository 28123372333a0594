"""Tokenized data between jobs: kept as it is made, found by the next job, never trusted, gone with its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from control_plane import files, removals, token_cache
from control_plane.tables import TokenTable
from tests.stub_trainer import TOKENS
from tests.worker.stubs import World, stub_programs, supervisor


def tables(world: World) -> list[str]:
    with world.database.transaction() as session:
        return list(session.scalars(select(TokenTable.key).order_by(TokenTable.key)))


def finish(world: World, file_id: str, **request: object) -> list[str]:
    """The event codes of a job on the file that runs to its end, those about tokens."""
    with supervisor(world.settings, stub_programs(["--steps=2"])):
        job_id = world.job_on(file_id, **request)
        world.reaches(job_id, "succeeded", "failed")
        world.nothing_left()
    return [code for code in world.codes(job_id) if "token" in code]


def test_the_second_job_finds_what_the_first_one_made(world: World) -> None:
    file_id = world.file("{}\n")
    assert finish(world, file_id) == ["tokens_made"]
    (key,) = tables(world)
    assert key.startswith(f"private/tokens/{world.project_id}/")
    assert finish(world, file_id) == ["tokens_found"]
    assert finish(world, world.file("{}\n")) == ["tokens_found"], "the same bytes under another id"
    assert tables(world) == [key]


def test_other_bytes_templates_or_lengths_are_other_tables(world: World) -> None:
    file_id = world.file("{}\n")
    assert finish(world, file_id) == ["tokens_made"]
    assert finish(world, world.file("{ }\n")) == ["tokens_made"]
    assert finish(world, file_id, training={"chat_template": "{{ messages }}"}) == ["tokens_made"]
    assert finish(world, file_id, training={"max_length": 64}) == ["tokens_made"]
    assert finish(world, file_id, training={"beta": 0.5, "seed": 3}) == ["tokens_found"], "they change no token"


def test_damaged_bytes_are_dropped_and_made_again(world: World) -> None:
    file_id = world.file("{}\n")
    finish(world, file_id)
    (key,) = tables(world)
    world.storage.delete(key)
    with world.storage.writer(key) as sink:
        sink.write(b"TOKENS")
    assert finish(world, file_id) == ["token_cache_damaged", "tokens_made"]
    (again,) = tables(world)
    assert again != key
    assert not world.storage.exists(key)
    with world.storage.open(again) as file:
        assert file.read().decode() == TOKENS


def test_a_table_goes_with_its_file(world: World) -> None:
    file_id = world.file("{}\n")
    finish(world, file_id)
    (key,) = tables(world)
    with world.database.transaction() as session:
        files.delete(session, world.project_id, file_id)
    removals.carry_out(world.database, world.storage)
    assert tables(world) == []
    assert not world.storage.exists(key)


def test_without_room_nothing_is_kept(world: World) -> None:
    world.settings = world.settings.model_copy(update={"token_cache_bytes": 0})
    file_id = world.file("{}\n")
    assert finish(world, file_id) == finish(world, file_id) == ["tokens_made"]
    assert tables(world) == []


def test_what_was_used_least_recently_goes_first(world: World) -> None:
    world.settings = world.settings.model_copy(update={"token_cache_bytes": len(TOKENS)})
    first, second = world.file("{}\n"), world.file("{ }\n")
    assert finish(world, first) == finish(world, second) == finish(world, first) == ["tokens_made"]
    assert len(tables(world)) == 1


def test_several_files_reach_the_program_with_their_weights(world: World) -> None:
    texts = {world.file(text): text for text in ("{}\n", "{ }\n")}
    first, second = sorted(texts, reverse=True)
    weights = {first: 1.0, second: 0.5}
    with supervisor(
        world.settings, stub_programs(["--steps=2", "--checkpoint-every=1", "--hold-at=1", f"--until={world.go}"])
    ):
        job_id = world.job_on(first, training_files=weights)
        world.held(job_id, 1)
        (spec,) = world.runs.glob(f"{job_id}/*/spec.json")
        given = json.loads(spec.read_text())["training_files"]
        assert [(file["id"], file["weight"]) for file in given] == list(weights.items()), "in the user's order"
        assert [Path(file["path"]).read_text() for file in given] == [texts[first], texts[second]]
        world.go.touch()
        world.reaches(job_id, "succeeded")
        world.nothing_left()


def test_a_table_is_kept_though_postgresql_was_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the very moment at which it would have been made known."""
    store, moments = token_cache.store, list[None]()

    def once_away(session: Session, *args: Any, **options: Any) -> None:
        moments.append(None)
        if len(moments) == 1:
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        store(session, *args, **options)

    monkeypatch.setattr(token_cache, "store", once_away)
    file_id = world.file("{}\n")
    assert finish(world, file_id) == ["tokens_made"]
    assert len(moments) == 2
    assert finish(world, file_id) == ["tokens_found"]

"""The schema: migrations, versions and upgrades."""

from __future__ import annotations

import subprocess
import sys

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from bros_batch.db.connections import open_database, reading, writing
from bros_batch.db.schema import (
    DatabaseTooNew,
    DatabaseTooOld,
    alembic_config,
    check_schema,
    revisions,
    upgrade,
)
from bros_batch.db.tables import metadata
from tests.services import ROOT


def test_the_migrations_create_the_tables_of_the_code(database: Engine) -> None:
    with reading(database) as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    check_schema(database)


def test_the_files_of_the_migrations_are_named_in_their_order() -> None:
    scripts = ScriptDirectory.from_config(alembic_config())
    assert revisions() == [script.revision for script in scripts.walk_revisions()][::-1]


def test_an_empty_database_is_too_old(empty_database_url: str) -> None:
    database = open_database(empty_database_url)
    with pytest.raises(DatabaseTooOld, match="bros-batch db upgrade"):
        check_schema(database)
    upgrade(empty_database_url)
    check_schema(database)
    database.dispose()


def test_a_database_of_a_newer_program_is_rejected(database: Engine) -> None:
    with writing(database) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseTooNew, match=r"9999.*newer"):
        check_schema(database)


def test_upgrading_twice_is_no_error(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    upgrade(empty_database_url)


def test_each_migration_can_be_undone_and_done_again(database: Engine, database_url: str) -> None:
    config = alembic_config()
    with writing(database) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    upgrade(database_url)
    with reading(database) as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_many_processes_may_upgrade_at_once(empty_database_url: str) -> None:
    program = "import sys; from bros_batch.db.schema import upgrade; upgrade(sys.argv[1])"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, empty_database_url], cwd=ROOT, stderr=subprocess.PIPE
        )
        for _ in range(4)
    ]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors.decode()
    database = open_database(empty_database_url)
    check_schema(database)
    database.dispose()


def test_items_survive_the_upgrade_after_which_ids_may_repeat(database_url: str) -> None:
    config = alembic_config()
    database = open_database(database_url)
    insert = text(
        "INSERT INTO items (job_id, line_no, custom_id, status, body) VALUES ('j', :line, :id, 'pending', 'x') "
        "RETURNING id"
    )
    with writing(database) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0007")
        given = [connection.scalar(insert, {"line": line, "id": f"id-{line}"}) for line in (1, 2, 3)]
        connection.execute(text("DELETE FROM items WHERE line_no = 3"))
        command.upgrade(config, "head")
        last = connection.scalar(insert, {"line": 4, "id": "id-1"})
        assert last > given[2], "no id is used again"
        assert connection.execute(text("SELECT id, custom_id FROM items ORDER BY id")).all() == [
            (given[0], "id-1"),
            (given[1], "id-2"),
            (last, "id-1"),
        ]
        command.downgrade(config, "0007")
        ids = connection.scalars(text("SELECT custom_id FROM items ORDER BY line_no")).all()
    assert ids == ["id-1", "id-2", "id-1:line-4"]
    database.dispose()


def test_responses_that_a_webhook_was_to_be_told_of_become_calls(database_url: str) -> None:
    """Those that have ended are told at once, and the others when they end."""
    config = alembic_config()
    database = open_database(database_url)
    new_job = text(
        "INSERT INTO jobs (id, status, endpoint, model, priority, input_file_id, defaults, errors, completion_window, "
        "created_at, expires_at) VALUES (:id, :status, '/v1/responses', 'm', 0, '', '{}', '[]', '24h', 1, 2)"
    )
    new_response = text(
        "INSERT INTO responses (id, key_id, job_id, num_ancestors, ancestor_bytes, input, body, created_at, notify_at, "
        "num_notified) VALUES (:id, '', :job, 0, 0, '[]', '{}', 1, :notify_at, 2)"
    )
    with writing(database) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0009")
        for name, status, notify_at in (
            ("a", "completed", 7.0),
            ("b", "in_progress", 1.0),
            ("c", "completed", None),
        ):
            connection.execute(new_job, {"id": f"job-{name}", "status": status})
            connection.execute(
                new_response, {"id": f"resp-{name}", "job": f"job-{name}", "notify_at": notify_at}
            )
        command.upgrade(config, "head")
        calls = connection.execute(
            text("SELECT job_id, url, event, due_at, num_failed FROM webhook_calls")
        ).all()
        assert calls == [("job-a", "", "completed", 7.0, 2)]
        urls = connection.execute(text("SELECT id, notify_url FROM jobs ORDER BY id")).all()
        assert urls == [("job-a", ""), ("job-b", ""), ("job-c", None)]
    database.dispose()

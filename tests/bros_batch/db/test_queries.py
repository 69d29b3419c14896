"""Lists and pages of files, jobs and items; API keys; engines."""

from __future__ import annotations

from bros_batch.db import api_keys, ended_items, engines, files, job_control, jobs
from bros_batch.db.connections import reading, writing
from bros_batch.db.states import ItemStatus
from tests.bros_batch.world import World, batch_line, batch_lines


def test_lists_are_newest_first_and_continue_after_a_row(world: World) -> None:
    ids = [world.submit([batch_line("a")], name=f"job {n % 2} 100%", now_s=1000.0 + n // 2) for n in range(7)]
    with writing(world.database) as connection:
        job_control.cancel_job(connection, ids[0])
    with reading(world.database) as connection:
        listed = jobs.list_jobs(connection, limit=100)
        assert [job.created_at for job in listed] == sorted((j.created_at for j in listed), reverse=True)
        pages = []
        after = None
        while page := jobs.list_jobs(connection, after=after, limit=2):
            pages += page
            after = page[-1].id
        assert pages == listed
        assert len(jobs.list_jobs(connection, search="JOB 1 100%")) == 3
        assert jobs.list_jobs(connection, search="100_") == []
        assert [job.id for job in jobs.list_jobs(connection, search=ids[3][8:20])] == [ids[3]]
        assert [job.id for job in jobs.list_jobs(connection, status="cancelling")] == [ids[0]]
        assert len(jobs.list_jobs(connection, status="validating")) == 6
        uploaded = files.list_files(connection, limit=100)
        assert len(uploaded) == 7
        assert files.list_files(connection, after=uploaded[4].id) == uploaded[5:]
        assert files.list_files(connection, purpose="batch_output") == []


def test_ended_items_are_read_in_pages(world: World) -> None:
    job_id = world.running(batch_lines(10))
    world.cancel(job_id)
    lines: list[int] = []
    with reading(world.database) as connection:
        while page := ended_items.ended_page(connection, job_id, lines[-1] if lines else 3, 4):
            assert len(page) <= 4
            lines += [item.line_no for item in page]
        assert lines == list(range(4, 11))
        some = ended_items.ended_page(connection, job_id, 3, 5, ItemStatus.CANCELLED)
        assert [item.line_no for item in some] == lines[:5]


def test_an_api_key_is_listed_by_its_digest_and_revoked_once(world: World) -> None:
    with writing(world.database) as connection:
        key, secret = api_keys.create_api_key(connection, "ci")
        assert api_keys.list_api_keys(connection) == [key]
        assert key.sha256 == api_keys.digest_of(secret) != api_keys.digest_of(secret + "x")
        assert api_keys.revoke_api_key(connection, key.id)
        assert not api_keys.revoke_api_key(connection, key.id)
        (revoked,) = api_keys.list_api_keys(connection)
        assert (revoked.name, revoked.revoked_at is None) == ("ci", False)
        dump = str(connection.exec_driver_sql("SELECT * FROM api_keys").all())
    assert secret not in dump


def test_engines_keep_their_latest_heartbeat(world: World) -> None:
    beat = {"engine_id": "e", "host": "h", "device": "cpu", "model": "sim", "stats": {"tau": 0.5}}
    with writing(world.database) as connection:
        engines.upsert_engines(connection, [beat], 100.0)
        engines.upsert_engines(connection, [{**beat, "host": "h2"}], 200.0)
        (engine,) = engines.list_engines(connection, seen_after=200.0)
        assert (engine.id, engine.host, engine.heartbeat_at) == ("e", "h2", 200.0)
        assert engine.stats["stats"] == {"tau": 0.5}
        assert engines.list_engines(connection, seen_after=201.0) == []

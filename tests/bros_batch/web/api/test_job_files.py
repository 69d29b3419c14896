"""Jobs that move to another server: from one database, over HTTP and a zip file, to another database."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from bros_batch.client.http_client import Client, ServiceError
from bros_batch.client.job_archive import DamagedArchive, archive_lines, check_archive, write_archive
from bros_batch.db import imported_jobs, job_control, job_events
from bros_batch.db.connections import open_database, reading, writing
from bros_batch.db.schema import upgrade
from bros_batch.db.table_rows import Job
from bros_batch.db.tables import jobs
from bros_batch.documents.readers.table_lines import LineStream
from bros_batch.jobs.task_run import Progress
from bros_batch.web.app import create_app
from tests.bros_batch.web.serving import serving_app
from tests.bros_batch.world import World, batch_line

DOCUMENTS = [
    {"id": "a", "city": 'Zürich "1"'},
    {"id": "a", "city": "Łódź\u2028"},
    {"id": "c"},
    {"_error": "Row 4: bad"},
]
JOB: dict[str, Any] = {
    "defaults": {"prompt": "Where is {city}?", "max_tokens": 5},
    "name": "cities",
    "priority": 7,
    "metadata": {"team": "maps"},
    "source": {"name": "t.csv", "format": "csv", "columns": ["id", "city"]},
}
# What differs between a job and its copy: what only one server knows.
OWN = {
    "id", "input_file_id", "output_file_id", "error_file_id", "ingest_offset", "ingest_line", "written_line",
    "written_output_bytes", "written_error_bytes", "lease_until",
}  # fmt: skip
OWN_OF_ITEM = {"id", "job_id", "source_id"}


@pytest.fixture
def here(world: World) -> Iterator[Client]:
    yield from serving(world)


@pytest.fixture
def other(world: World, tmp_path: Path) -> Iterator[World]:
    """A world with another database: SQLite, also where that of `world` is PostgreSQL."""
    url = f"sqlite:///{tmp_path / 'other.db'}"
    upgrade(url)
    settings = world.settings.model_copy(update={"data_dir": tmp_path / "other", "database_url": url})
    database = open_database(url)
    yield World(database, world.redis, settings)
    database.dispose()


@pytest.fixture
def there(other: World) -> Iterator[Client]:
    yield from serving(other)


def serving(world: World) -> Iterator[Client]:
    settings = world.settings.model_copy(update={"port": 0})
    with serving_app(create_app(settings), settings) as web, Client(web.url) as client:
        yield client


def exported(client: Client, job_id: str, path: Path) -> Path:
    with path.open("wb") as file:
        write_archive(client.export_lines(job_id), file)
    return path


def imported(client: Client, path: Path) -> str:
    """The id of the job that a zip file becomes; its rows have not been read yet."""
    check_archive(str(path))
    uploaded = client.upload("job.jsonl", LineStream(archive_lines(str(path))))
    return str(client.post("/v1/batches/import", {"input_file_id": uploaded["id"]})["id"])


def about(job: Job, *also_own: str) -> dict[str, Any]:
    return {name: value for name, value in asdict(job).items() if name not in OWN | set(also_own)}


def rows(world: World, job_id: str) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in asdict(item).items() if name not in OWN_OF_ITEM}
        for item in world.items(job_id)
    ]


def log(world: World, job_id: str) -> list[tuple[float, str, dict[str, Any]]]:
    with reading(world.database) as connection:
        return [(event.at, event.kind, event.detail) for event in job_events.list_events(connection, job_id)]


def half_done(world: World) -> str:
    """A job with a row that succeeded, one that is queued, one that cannot be filled in and one that is unreadable."""
    job_id = world.running(DOCUMENTS, **JOB)
    world.prepare()
    world.engine.answer(world.engine.take(1), "A town.")
    world.record()
    assert world.statuses(job_id) == ["succeeded", "queued", "failed", "failed"]
    return job_id


@pytest.mark.parametrize("ending", ["completed", "cancelled"])
def test_a_job_that_has_ended_is_the_same_on_another_server(
    world: World, here: Client, other: World, there: Client, tmp_path: Path, ending: str
) -> None:
    job_id = half_done(world)
    if ending == "cancelled":
        world.cancel(job_id)
        world.finalize(job_id)
    else:
        world.run_through(job_id)
    with writing(world.database) as connection:  # as if it had ended long ago
        old = {"created_at": 1000.5, f"{ending}_at": 2000.25}
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(old))
    before = world.job(job_id)
    assert before.status == ending

    copy = imported(there, exported(here, job_id, tmp_path / "job.zip"))
    assert other.ingest(copy).finalize == [copy]
    other.finalize(copy)
    after = other.check_counts(copy)
    assert about(after) == about(before)
    assert rows(other, copy) == rows(world, job_id)
    assert [kind for _, kind, _ in log(other, copy)] == [kind for _, kind, _ in log(world, job_id)]
    for kind in ("output_file_id", "error_file_id"):
        there_lines, here_lines = (
            [{**line, "id": ""} for line in each.file_lines(file_id)]
            for each, file_id in ((other, getattr(after, kind)), (world, getattr(before, kind)))
        )
        assert there_lines == here_lines
    other.sweep()
    assert len(other.items(copy)) == 4, (
        "rows of a job that has just come are kept, although it ended long ago"
    )


@pytest.mark.parametrize("paused", [False, True])
def test_an_unfinished_job_continues_on_another_server(
    world: World, here: Client, other: World, there: Client, tmp_path: Path, paused: bool
) -> None:
    job_id = half_done(world)
    if paused:
        with writing(world.database) as connection:
            job_control.pause_job(connection, job_id)
    path = exported(here, job_id, tmp_path / "job.zip")
    world.cancel(job_id)
    world.redis.flushdb()

    copy = imported(there, path)
    assert other.ingest(copy).progress is Progress.DONE
    assert other.statuses(copy) == ["succeeded", "pending", "failed", "failed"]
    assert other.job(copy).status == ("paused" if paused else "in_progress")
    assert "imported" in [kind for _, kind, _ in log(other, copy)]
    if paused:
        there.post(f"/v1/batches/{copy}/resume")
    job = other.run_through(copy)
    assert (job.status, job.name, job.succeeded, job.failed) == ("completed", "cities", 2, 2)
    other.check_counts(copy)
    assert rows(other, copy)[0] == rows(world, job_id)[0], "a row that was done is not computed again"


def test_an_import_that_dies_between_two_groups_continues(
    world: World, here: Client, other: World, there: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = world.running([batch_line(f"line-{number}", temperature=0.0) for number in range(50)])
    copy = imported(there, exported(here, job_id, tmp_path / "job.zip"))
    other.settings.__dict__["ingest_group_lines"] = 7

    def die(*_arguments: object) -> None:
        raise SystemExit

    assert other.ingest(copy, until_s=0).progress is Progress.MORE
    with monkeypatch.context() as patch:
        patch.setattr(imported_jobs, "insert_rows", die)
        with pytest.raises(SystemExit):
            other.ingest(copy)
    assert (other.job(copy).status, len(other.items(copy))) == ("validating", 7)
    assert other.ingest(copy).progress is Progress.NOT_OURS, "the lease of the dead run is still valid"
    with writing(other.database) as connection:
        connection.execute(update(jobs).where(jobs.c.id == copy).values(lease_until=1.0))
    assert other.sweep().ingest == [copy]
    while other.ingest(copy, until_s=0).progress is Progress.MORE:
        assert len(other.items(copy)) % 7 == 0
    assert other.job(copy).status == "in_progress"
    assert rows(other, copy) == rows(world, job_id)


def test_an_import_that_is_cancelled_cannot_be_rerun(
    world: World, here: Client, other: World, there: Client, tmp_path: Path
) -> None:
    job_id = world.running([{"id": str(number), "text": "x"} for number in range(5)])
    copy = imported(there, exported(here, job_id, tmp_path / "job.zip"))
    other.settings.__dict__["ingest_group_lines"] = 2
    other.ingest(copy, until_s=0)
    other.cancel(copy)
    other.finalize(copy)
    assert (other.job(copy).status, other.statuses(copy)) == ("cancelled", ["cancelled"] * 2)
    with pytest.raises(ServiceError, match="Import it again"):
        there.post(f"/v1/batches/{copy}/rerun", {"only": "failed"})


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of a zip file whose members are changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    changed = path.with_name("changed.zip")
    with zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return changed


def set_member(name: str, old: bytes, new: bytes) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        assert old in members[name]
        members[name] = members[name].replace(old, new, 1)

    return change


DAMAGES: list[tuple[Callable[[dict[str, bytes]], None], str]] = [
    (set_member("job.json", b'"version": 1', b'"version": 2'), "version 2"),
    (
        set_member("job.json", b'"succeeded": 1,\n    "failed": 2', b'"succeeded": 2,\n    "failed": 2'),
        "its rows are",
    ),
    (set_member("job.json", b"{", b"["), "job.json is not a JSON object"),
    (set_member("job.json", b'"priority": 7', b'"priority": "7"'), "priority"),
    (set_member("rows.jsonl", b'"status":"succeeded"', b'"status":"great"'), "line 1 of rows.jsonl"),
    (set_member("rows.jsonl", b'"row":2', b'"row":1'), "row 1 follows row 1"),
    (set_member("rows.jsonl", b"A town.", b"A town\\u0000."), "line 1 of rows.jsonl"),
    (set_member("rows.jsonl", b'"body":"{', b'"body":"['), "'body'"),
    (lambda members: members.update({"rows.jsonl": members["rows.jsonl"][:-20]}), "cut short"),
    (lambda members: members.update({"rows.jsonl": b"\n"}), "line 1 of rows.jsonl"),
    (lambda members: members.update({"rows.jsonl": bytes(300 * 1024**2)}), "too long"),
    (lambda members: members.pop("rows.jsonl") and None, "not an exported job"),
]


def test_damaged_files_are_refused_and_leave_nothing(
    world: World, here: Client, other: World, there: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported(here, half_done(world), tmp_path / "job.zip")
    for change, reason in DAMAGES:
        changed = rewritten(path, change)
        with pytest.raises(DamagedArchive, match=reason):
            check_archive(str(changed))
    data = path.read_bytes()
    for damaged in (b"", b"not a zip", data[: len(data) // 2], data[:200] + b"\0" * 50 + data[250:]):
        path.write_bytes(damaged)
        with pytest.raises(DamagedArchive, match=r"zip|damaged|cannot be imported"):
            check_archive(str(path))
    assert there.get("/v1/batches")["data"] == []

    # A client that does not look at what it sends: the server notices.
    path.write_bytes(data)
    with monkeypatch.context() as patch:
        patch.setattr("tests.bros_batch.web.api.test_job_files.check_archive", lambda path: None)
        for change, reason in DAMAGES[:2]:
            changed = rewritten(path, change)
            if reason == "version 2":
                with pytest.raises(ServiceError, match=reason):
                    imported(there, changed)
                continue
            copy = imported(there, changed)
            other.ingest(copy)
            job = other.job(copy)
            assert (job.status, job.total) == ("failed", 0)
            assert reason in job.errors[0]["message"]
            other.sweep()
            assert other.items(copy) == []


def test_a_stream_that_breaks_makes_no_archive() -> None:
    with pytest.raises(DamagedArchive, match="too early"):
        write_archive([b'{"format":"bros-batch job"}\n', b'{"row":1}\n'], io.BytesIO())


def test_what_cannot_be_exported_or_imported(world: World, here: Client, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="batch_unknown"):
        list(here.export_lines("batch_unknown"))
    with pytest.raises(ServiceError, match="still being read"):
        list(here.export_lines(world.submit(DOCUMENTS, **JOB)))
    for data, reason in ((b'{"id": 1}\n', "not an exported job"), (b"\xff", "not valid")):
        uploaded = here.upload("x.jsonl", io.BytesIO(data))
        with pytest.raises(ServiceError, match=reason):
            here.post("/v1/batches/import", {"input_file_id": uploaded["id"]})

"""Files: uploads, downloads, lists and deletion."""

from __future__ import annotations

import hashlib
import io
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI
from sqlalchemy import Engine

from bros_batch.db import files, job_control, jobs
from bros_batch.db.connections import open_database, reading, writing
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, web_settings
from tests.services import wait_for

CONTENT = b'{"custom_id": "a"}\n'


@pytest.fixture
def database(web: Web) -> Iterator[Engine]:
    engine = open_database(web.settings.resolved_database_url)
    yield engine
    engine.dispose()


def upload(client: OpenAI, content: bytes = CONTENT, name: str = "docs.jsonl") -> openai.types.FileObject:
    return client.files.create(file=(name, io.BytesIO(content)), purpose="batch")


def stored(web: Web) -> set[str]:
    directory = web.settings.data_dir / "files"
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def test_a_download_equals_the_upload(web: Web, client: OpenAI, database: Engine) -> None:
    content = os.urandom(3_000_000)
    file = upload(client, content, "odd näme.jsonl")
    assert (file.bytes, file.purpose, file.status, file.object) == (3_000_000, "batch", "processed", "file")
    assert file.filename == "odd näme.jsonl"
    assert client.files.content(file.id).read() == content
    assert client.files.retrieve(file.id) == file
    with reading(database) as connection:
        row = files.get_file(connection, file.id)
    assert row is not None
    assert row.sha256 == hashlib.sha256(content).hexdigest()
    assert Path(row.path).stat().st_mode & 0o777 == 0o600
    assert Path(row.path).parent.stat().st_mode & 0o777 == 0o700
    with web.http() as http:
        part = http.get(f"/v1/files/{file.id}/content", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])


def test_an_empty_file_is_accepted(client: OpenAI) -> None:
    file = upload(client, b"")
    assert file.bytes == 0
    assert client.files.content(file.id).read() == b""


def test_lists_are_paged(tmp_path: Path, text_model: Path, database_url: str) -> None:
    with (
        serving(web_settings(tmp_path, text_model, database_url=database_url)) as web,
        web.openai() as client,
    ):
        ids = [upload(client).id for _ in range(5)]
        assert [file.id for file in client.files.list(limit=2)] == ids[::-1]
        assert [file.id for file in client.files.list(limit=2, order="asc")] == ids
        page = client.files.list(limit=2, after=ids[3])
        assert ([file.id for file in page.data], page.has_more) == ([ids[2], ids[1]], True)
        assert list(client.files.list(purpose="batch_output")) == []
        with pytest.raises(openai.NotFoundError) as missing:
            client.files.list(after="file-0")
        assert missing.value.param == "after"
        for param, value in (("limit", "0"), ("limit", "x"), ("order", "up")):
            with pytest.raises(openai.BadRequestError) as wrong:
                client.files.list(extra_query={param: value})
            assert wrong.value.param == param


def test_deletion(web: Web, client: OpenAI, database: Engine) -> None:
    file = upload(client)
    with writing(database) as connection:
        job = jobs.create_job(
            connection, input_file_id=file.id, endpoint="/v1/chat/completions", model=MODEL_NAME, now_s=1.0
        )
    with pytest.raises(openai.ConflictError) as caught:
        client.files.delete(file.id)
    assert caught.value.code == "file_in_use"
    with writing(database) as connection:
        job_control.cancel_job(connection, job.id)
    # Cancelling still reads nothing, but has not ended.
    with pytest.raises(openai.ConflictError):
        client.files.delete(file.id)
    other = upload(client)
    assert client.files.delete(other.id).deleted
    assert other.id not in stored(web)
    assert file.id in stored(web)
    for call in (client.files.retrieve, client.files.delete, client.files.content):
        with pytest.raises(openai.NotFoundError) as missing:
            call(other.id)
        assert missing.value.param == "file_id"


def test_the_client_can_set_the_expiry(client: OpenAI) -> None:
    file = client.files.create(
        file=("a", CONTENT), purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert file.expires_at is not None
    assert abs(file.expires_at - file.created_at - 7200) <= 1
    with pytest.raises(openai.BadRequestError) as caught:
        client.files.create(
            file=("a", CONTENT), purpose="batch", expires_after={"anchor": "created_at", "seconds": 1}
        )
    assert caught.value.param == "expires_after"


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"data": {"purpose": "batch"}, "files": {"other": b"x"}}, "file"),
        ({"files": {"file": b"x"}}, "purpose"),
        ({"data": {"purpose": "fine-tune"}, "files": {"file": b"x"}}, "purpose"),
        ({"files": [("file", b"x"), ("file", b"y")], "data": {"purpose": "batch"}}, "file"),
        ({"json": {"purpose": "batch"}}, "file"),
        ({"data": {"purpose": "x" * 70_000}, "files": {"file": b"x"}}, "purpose"),
    ],
)
def test_invalid_forms(web: Web, form: dict[str, object], param: str) -> None:
    before = stored(web)
    with web.http() as http:
        answer = http.post("/v1/files", **form)  # type: ignore[arg-type]
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert stored(web) == before


@pytest.mark.parametrize(
    "body", [b"", b"garbage", b'--X\r\nContent-Disposition: form-data; name="file"\r\n\r\nhal']
)
def test_broken_forms(web: Web, body: bytes) -> None:
    before = stored(web)
    with web.http() as http:
        answer = http.post(
            "/v1/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=X"}
        )
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert stored(web) == before


def test_a_file_over_the_limit(tmp_path: Path, text_model: Path) -> None:
    with serving(web_settings(tmp_path, text_model, max_upload_bytes=100_000)) as web, web.openai() as client:
        assert upload(client, b"x" * 100_000).bytes == 100_000
        before = stored(web)
        for size in (100_001, 5_000_000):
            with pytest.raises(openai.APIStatusError) as caught:
                upload(client, b"x" * size)
            assert (caught.value.status_code, caught.value.code) == (413, "too_large")

        def unannounced() -> Iterator[bytes]:
            yield b'--X\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
            for _ in range(40):
                yield b"x" * 100_000

        with web.http() as http:
            answer = http.post(
                "/v1/files",
                content=unannounced(),
                headers={"Content-Type": "multipart/form-data; boundary=X"},
            )
        assert answer.status_code == 413
        assert stored(web) == before


def test_a_disconnect_leaves_no_file(web: Web) -> None:
    before = stored(web)

    def half() -> Iterator[bytes]:
        yield b'--X\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        yield b"x" * 2_000_000
        wait_for(lambda: stored(web) != before, "the first bytes on disk")
        raise ConnectionAbortedError

    with web.http() as http, pytest.raises(ConnectionAbortedError):
        http.post("/v1/files", content=half(), headers={"Content-Type": "multipart/form-data; boundary=X"})
    wait_for(lambda: stored(web) == before, "the end of the upload")


def test_a_full_disk(tmp_path: Path, text_model: Path) -> None:
    """Uses a file system of 1 MB. Mounting it needs privileges, and the test is skipped without them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=1m tmpfs {disk} 2>/dev/null") != 0:
        pytest.skip("mounting a small file system needs privileges")
    try:
        settings = web_settings(disk, text_model, database_url=f"sqlite:///{tmp_path / 'bros.db'}")
        with serving(settings) as web, web.openai() as client:
            with pytest.raises(openai.InternalServerError) as caught:
                upload(client, b"x" * 3_000_000)
            assert (caught.value.status_code, caught.value.code) == (507, "disk_full")
            assert stored(web) == set()
            assert upload(client, b"x" * 1000).bytes == 1000
    finally:
        os.system(f"umount {disk}")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(web: Web) -> None:
    block = os.urandom(1_000_000)

    def form() -> Iterator[bytes]:
        yield b'--X\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        yield b'--X\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        for _ in range(400):
            yield block
        yield b"\r\n--X--\r\n"

    with httpx.Client(base_url=web.url, timeout=120) as http:
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = http.post(
            "/v1/files", content=form(), headers={"Content-Type": "multipart/form-data; boundary=X"}
        )
        assert answer.json()["bytes"] == 400_000_000
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 60_000
        http.delete(f"/v1/files/{answer.json()['id']}")

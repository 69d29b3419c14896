"""`bros-batch up`: a process tree that recovers from crashes and leaves nothing behind when it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.services import redis_server, wait_for
from tests.up_process import Up, running_up, start_up, stop

SERVICES = {"redis", "engine", "worker", "beat", "web"}


def run_up(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run an `up` that is expected to fail at once."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BROS_")}
    command = [sys.executable, "-m", "cli", "up", *flags]
    return subprocess.run(command, capture_output=True, text=True, env={**kept, **env}, timeout=60)


def sockets_in(data_dir: Path) -> list[str]:
    return [path.name for path in data_dir.rglob("*") if path.is_socket()]


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    with running_up(tmp_path_factory.mktemp("up") / "data") as running:
        yield running


def run_job(url: str, count: int = 20) -> dict:
    """Run a small job until it ends."""
    lines = "".join(json.dumps({"id": str(n), "text": f"text {n}"}) + "\n" for n in range(count))
    with httpx.Client(base_url=url, trust_env=False, verify=False, timeout=30) as api:
        form = {"files": {"file": ("d.jsonl", lines.encode())}, "data": {"purpose": "batch"}}
        file = api.post("/v1/files", **form).raise_for_status().json()
        body = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        defaults = {"prompt": "{text}", "max_tokens": 8}
        batch = api.post("/v1/batches", json={**body, "defaults": defaults}).raise_for_status().json()

        def ended() -> dict | None:
            seen: dict = api.get(f"/v1/batches/{batch['id']}").raise_for_status().json()
            return seen if seen["status"] in ("completed", "failed", "expired") else None

        done = wait_for(ended)
        assert done is not None
        return done


def test_the_state_file_describes_the_services(up):
    state = up.state()
    assert state["pid"] == up.process.pid
    assert state["ready"]
    assert set(state["children"]) == SERVICES
    for pid in state["children"].values():
        assert psutil.pid_exists(pid)
    assert urlsplit(state["url"]).hostname == "127.0.0.1"
    assert run_job(state["url"])["request_counts"] == {"total": 20, "completed": 20, "failed": 0}


def test_everything_is_private(up):
    run = up.data_dir / "run"
    assert up.data_dir.stat().st_mode & 0o777 == 0o700
    for name in ("redis.sock", "engine.sock"):
        assert (run / name).stat().st_mode & 0o777 == 0o600
    web_port = urlsplit(up.state()["url"]).port
    listening = {
        connection.laddr.port
        for process in up.family()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {web_port}, "Redis and the engine have no port"


def test_redis_keeps_an_append_only_file(up):
    assert list((up.data_dir / "redis").rglob("*.aof")), "every write is on disk"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_killed_service_is_restarted(up, name):
    victim = up.state()["children"][name]
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: up.state()["children"].get(name) not in (None, victim), f"a new {name}")
    wait_for(up.is_ready, "readiness")
    assert f"{name} died (killed by SIGKILL) after" in up.output()
    assert not psutil.pid_exists(victim)
    assert run_job(up.state()["url"])["request_counts"]["completed"] == 20


def test_a_second_up_on_the_same_data_is_rejected(up):
    state = up.state()
    model = up.data_dir.parent / "data-model"
    failed = run_up(
        "--data-dir", str(up.data_dir), "--port", "0", "--model", str(model), "--", "--runner", "simulated"
    )
    assert failed.returncode == 1
    assert failed.stderr == (
        f"bros-batch: bros-batch is already running on {up.data_dir} (pid {state['pid']}, {state['url']}); "
        "stop it, or use another --data-dir.\n"
    )
    assert up.is_ready()


def test_a_busy_port_is_rejected_with_a_sentence(up, tmp_path):
    port = str(urlsplit(up.state()["url"]).port)
    model = up.data_dir.parent / "data-model"
    flags = ("--data-dir", str(tmp_path / "data"), "--port", port, "--model", str(model))
    failed = run_up(*flags, "--", "--runner", "simulated")
    assert failed.returncode == 1
    assert (
        failed.stderr
        == f"bros-batch: Port {port} on 127.0.0.1 is in use; stop the process that uses it, or use another --port.\n"
    )


def test_a_missing_model_is_rejected_before_anything_starts(tmp_path):
    failed = run_up("--data-dir", str(tmp_path / "data"), "--port", "0", "--model", "/no/such/model")
    assert failed.returncode == 1
    assert failed.stderr.startswith("bros-batch: There is no model at /no/such/model;")
    assert not (tmp_path / "data").exists()


def test_listening_to_other_machines_without_a_key_is_rejected(tmp_path):
    failed = run_up("--data-dir", str(tmp_path / "data"), "--host", "0.0.0.0")
    assert failed.returncode == 1
    assert failed.stderr.startswith(
        "bros-batch: Listening on 0.0.0.0 lets other machines in; set BROS_API_KEY"
    )


def test_a_newer_database_is_rejected_with_a_sentence(up, tmp_path):
    import sqlite3

    from bros_batch.db.schema import upgrade

    (tmp_path / "data").mkdir(mode=0o700)
    upgrade(f"sqlite:///{tmp_path / 'data' / 'bros.db'}")
    with sqlite3.connect(tmp_path / "data" / "bros.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    model = up.data_dir.parent / "data-model"
    flags = ("--data-dir", str(tmp_path / "data"), "--port", "0", "--model", str(model))
    failed = run_up(*flags, "--", "--runner", "simulated")
    assert failed.returncode == 1
    assert "newer than this bros-batch" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_a_service_that_cannot_start_ends_up_with_its_last_lines(tmp_path):
    up = start_up(tmp_path / "data", engine=("--runner", "simulated", "--no-such-flag"))
    assert up.process.wait(60) == 1
    stop(up)
    assert "engine does not start; see " in up.output()
    assert "unrecognized arguments: --no-such-flag" in up.output()
    assert "[--" not in up.output(), "the usage of the engine hides its error"
    up.wait_until_nothing_is_left()
    assert not (tmp_path / "data" / "run" / "up.json").exists()


def test_keys_in_the_database_do_not_hide_that_the_engine_cannot_start(tmp_path):
    from bros_batch.db.api_keys import create_api_key
    from bros_batch.db.connections import open_database, writing
    from bros_batch.db.schema import upgrade

    (tmp_path / "data").mkdir(mode=0o700)
    url = f"sqlite:///{tmp_path / 'data' / 'bros.db'}"
    upgrade(url)
    database = open_database(url)
    with writing(database) as connection:
        create_api_key(connection, "laptop")
    database.dispose()
    up = start_up(tmp_path / "data", engine=("--runner", "simulated", "--listen", "unix:///dev/null/s.sock"))
    assert up.process.wait(60) == 1
    stop(up)
    assert "engine does not start; see " in up.output()
    assert "ready again" not in up.output()
    assert "401" not in (tmp_path / "data" / "logs" / "web.log").read_text()


def test_a_start_without_the_redis_of_the_settings_says_where_it_should_be_and_why_it_waits(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        up = start_up(tmp_path / "data", BROS_REDIS_URL=f"redis://:hunter2@{address}")
        try:
            wait_for(lambda: f"waiting for Redis at redis://{address} (Connection refused)" in up.output())
        finally:
            stop(up)
    assert "hunter2" not in up.output()


@pytest.mark.parametrize("url", ["mysql://x", "nonsense://x"])
def test_another_kind_of_database_is_rejected_with_the_kinds_there_are(tmp_path, url):
    flags = ("--data-dir", str(tmp_path / "data"), "--port", "0", "--", "--runner", "simulated")
    failed = run_up(*flags, BROS_DATABASE_URL=url)
    assert failed.returncode == 1
    assert "must be sqlite:///path or postgresql://" in failed.stderr
    assert "pip install" not in failed.stderr


def assert_nothing_is_left(up: Up) -> None:
    up.wait_until_nothing_is_left()
    assert sockets_in(up.data_dir) == []
    assert not (up.data_dir / "run" / "up.json").exists()


def assert_it_drains_and_leaves_nothing(up: Up) -> None:
    """After a signal."""
    assert up.process.wait(60) == 0
    assert_nothing_is_left(up)
    assert "did not stop within" not in up.output()


def test_sigterm_during_the_start_leaves_nothing(tmp_path):
    up = start_up(tmp_path / "data")
    wait_for(lambda: (tmp_path / "data" / "run" / "up.json").exists() and up.state())
    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(60) == 0
    stop(up)
    assert_nothing_is_left(up)


def test_sigterm_lets_an_open_answer_finish_and_leaves_nothing(tmp_path):
    """While draining, a chat that has begun is not cut off; new ones are rejected."""
    with running_up(tmp_path / "data", engine=("--runner", "simulated", "--simulated-step-s", "0.05")) as up:
        url = up.state()["url"]
        chunks: list[str] = []
        begun = threading.Event()

        def ask() -> None:
            messages = [{"role": "user", "content": "Hi"}]
            body = {
                "model": "tiny",
                "messages": messages,
                "max_tokens": 40,
                "ignore_eos": True,
                "stream": True,
            }
            with httpx.stream(
                "POST", f"{url}/v1/chat/completions", json=body, trust_env=False, verify=False, timeout=60
            ) as answer:
                for line in answer.iter_lines():
                    chunks.append(line)
                    if len(chunks) > 4:
                        begun.set()

        asker = threading.Thread(target=ask)
        asker.start()
        assert begun.wait(30)
        up.process.send_signal(signal.SIGTERM)
        asker.join(60)
        assert "data: [DONE]" in chunks, chunks[-3:]
        assert_it_drains_and_leaves_nothing(up)


def test_a_second_signal_kills_at_once(tmp_path):
    up = start_up(tmp_path / "data", engine=("--runner", "simulated", "--simulated-step-s", "0.5"))
    url = up.ready()["url"]

    def ask() -> None:
        body = {"model": "tiny", "prompt": "Hi", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with suppress(httpx.TransportError):
            httpx.post(f"{url}/v1/completions", json=body, trust_env=False, verify=False, timeout=60)

    asker = threading.Thread(target=ask)
    asker.start()
    wait_for(
        lambda: "bros_num_requests_running" in httpx.get(f"{url}/metrics", trust_env=False, verify=False).text
    )
    up.process.send_signal(signal.SIGINT)
    wait_for(lambda: "stopping; a second Ctrl-C kills" in up.output())
    # Two signals in quick succession count as one Ctrl-C, so send it until it counts as the second.
    wait_for(lambda: up.process.poll() is not None or up.process.send_signal(signal.SIGINT))
    _, killing, after = up.output().partition("killing the services that have not stopped")
    assert killing, "it did not wait for the answer, which takes minutes"
    assert "restarting" not in after
    asker.join(30)
    stop(up)
    assert_nothing_is_left(up)


@pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's parent death signal")
def test_when_it_is_killed_nothing_outlives_it_and_nothing_is_lost(tmp_path):
    """The second `up` waits for the dying Redis and continues with its data."""
    up = start_up(tmp_path / "data")
    url = up.ready()["url"]
    job = run_job(url)["id"]
    wait_for(lambda: len(up.family()) > len(SERVICES), "the children that celery has of its own")
    up.process.kill()
    up.process.wait()
    with running_up(tmp_path / "data") as successor:
        answer = httpx.get(f"{successor.state()['url']}/v1/batches/{job}", trust_env=False, verify=False)
        assert answer.json()["status"] == "completed"
        up.wait_until_nothing_is_left()
    stop(up)


def test_a_deep_data_directory_has_its_sockets_elsewhere_and_sigint_leaves_nothing(tmp_path):
    deep = tmp_path.joinpath(*["a-rather-long-name"] * 6)
    with running_up(deep / "data") as up:
        socket_dir = Path(up.state()["socket_dir"])
        assert not socket_dir.is_relative_to(tmp_path)
        assert socket_dir.stat().st_mode & 0o777 == 0o700
        assert run_job(up.state()["url"])["status"] == "completed"
        up.process.send_signal(signal.SIGINT)
        assert_it_drains_and_leaves_nothing(up)
        assert not socket_dir.exists()


def test_sighup_leaves_nothing_but_an_external_redis_that_was_used(tmp_path):
    with redis_server() as redis:
        with running_up(tmp_path / "data", BROS_REDIS_URL=redis.url) as up:
            state = up.state()
            assert set(state["children"]) == SERVICES - {"redis"}
            assert state["redis_url"] == redis.url
            assert run_job(state["url"])["status"] == "completed"
            up.process.send_signal(signal.SIGHUP)
            assert_it_drains_and_leaves_nothing(up)
        assert redis.cli().ping()


def test_a_key_is_required_of_every_client(tmp_path):
    with running_up(tmp_path / "data", BROS_API_KEY="sesame") as up:
        url = up.state()["url"]
        assert httpx.get(f"{url}/v1/batches", trust_env=False, verify=False).status_code == 401
        env = {**os.environ, "BROS_URL": url}
        command = [sys.executable, "-m", "cli", "list", "--json"]
        failed = subprocess.run(command, env=env, capture_output=True, text=True)
        assert failed.returncode == 1
        assert failed.stderr.endswith("; set BROS_API_KEY or use --api-key.\n")
        allowed = subprocess.run([*command, "--api-key", "sesame"], env=env, capture_output=True, text=True)
        assert (allowed.returncode, json.loads(allowed.stdout)) == (0, [])
        assert (
            "sesame"
            not in "".join(path.read_text() for path in (up.data_dir / "logs").iterdir()) + up.output()
        )
        for process in up.family():
            assert "sesame" not in " ".join(process.cmdline())

"""A Redis whose files are damaged: it is told apart from one that fails for another reason, and starts empty."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from bros_batch.up.redis_data import KEPT, is_unreadable, put_aside
from bros_batch.up.service_commands import redis_binary, redis_command
from tests.services import PATIENCE_S, unavailable, wait_for

SOCKET = "redis.sock"


def binaries() -> list[Path]:
    """All versions of Redis that this machine has."""
    found = [path for path in (redis_binary(), Path("/usr/bin/redis-server")) if path and path.exists()]
    return list({path.resolve(): path for path in found}.values())


@pytest.fixture(params=binaries() or [None], ids=lambda path: str(path))
def binary(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        unavailable("Redis")
    return request.param


def start(binary: Path, directory: Path, **options) -> subprocess.Popen[str]:
    directory.mkdir(exist_ok=True)
    command = redis_command(binary, directory.parent / SOCKET, directory)
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    return subprocess.Popen(command, **output, **options)


def answers(process: subprocess.Popen[str], directory: Path) -> bool:
    """Wait until Redis answers or has ended."""

    def settled() -> str | None:
        if process.poll() is not None:
            return "ended"
        try:
            return "answers" if Redis(unix_socket_path=str(directory.parent / SOCKET)).ping() else None
        except (RedisError, OSError):
            return None

    return wait_for(settled, "Redis") == "answers"


def last_lines(process: subprocess.Popen[str]) -> list[str]:
    output, _ = process.communicate(timeout=PATIENCE_S)
    return [line for line in output.splitlines() if line.strip()][-20:]


@pytest.fixture
def data(binary: Path, tmp_path: Path) -> Path:
    """The directory of a Redis that has rewritten its file once and appended to it after that."""
    directory = tmp_path / "redis"
    process = start(binary, directory)
    try:
        assert answers(process, directory)
        with Redis(unix_socket_path=str(tmp_path / SOCKET)) as redis:
            for half in range(2):
                pipe = redis.pipeline()
                for number in range(500):
                    pipe.xadd("items", {"p": os.urandom(100), "i": half * 500 + number})
                pipe.execute()
                if not half:
                    redis.bgrewriteaof()
                    wait_for(lambda: redis.info()["aof_base_size"] > 1000, "the rewritten file")
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
    return directory


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    for position in range(at, min(at + 64, len(content))):
        content[position] ^= 0xFF
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "64 bytes flipped": lambda path: flip(path, path.stat().st_size // 2),
    "the first bytes flipped": lambda path: flip(path, 0),
    "the last bytes flipped": lambda path: flip(path, max(0, path.stat().st_size - 64)),
    "cut in the middle": cut,
    "empty": lambda path: os.truncate(path, 0),
    "zeros at the end": lambda path: path.write_bytes(path.read_bytes() + bytes(4096)),
    "gone": Path.unlink,
}


def files(directory: Path) -> Iterator[Path]:
    yield from sorted(path for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", DAMAGES)
def test_redis_starts_again_whatever_happens_to_any_of_its_files(
    binary: Path, data: Path, damage: str
) -> None:
    copies = data.parent / "undamaged"
    shutil.copytree(data, copies)
    for name in [path.relative_to(data) for path in files(data)]:
        shutil.rmtree(data)
        shutil.copytree(copies, data)
        DAMAGES[damage](data / name)
        process = start(binary, data)
        if not answers(process, data):
            assert is_unreadable(last_lines(process)), name
            aside = put_aside(data)
            assert (list(files(aside)) or damage == "gone") and not list(files(data))
            process = start(binary, data)
            assert answers(process, data)
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
    assert len(list(data.parent.glob("redis-unreadable-*"))) <= KEPT


def test_a_socket_that_cannot_be_made_is_no_reason_to_put_data_aside(binary: Path, data: Path) -> None:
    (data.parent / SOCKET).unlink(missing_ok=True)
    (data.parent / SOCKET / "in the way").mkdir(parents=True)
    process = start(binary, data)
    assert process.wait(PATIENCE_S) != 0
    assert not is_unreadable(last_lines(process))


def test_a_full_disk_is_no_reason_to_put_data_aside(binary: Path, tmp_path: Path) -> None:
    def no_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    process = start(binary, tmp_path / "redis", preexec_fn=no_space)
    if not answers(process, tmp_path / "redis"):
        assert not is_unreadable(last_lines(process))
    process.kill()
    process.communicate(timeout=PATIENCE_S)


@pytest.mark.parametrize(
    "line",
    [
        "# Can't open or create append-only dir appendonlydir: Permission denied",
        "# Can't open the append-only file: No space left on device",
        "# Unrecoverable error reading the append only file appendonly.aof: Input/output error",
        "# Fatal error loading the DB: Permission denied. Exiting.",
        "# Could not create server TCP listening socket *:6379: bind: Address already in use",
        "* Ready to accept connections",
        "",
    ],
)
def test_what_is_wrong_outside_the_files_is_no_reason_to_put_data_aside(line: str) -> None:
    assert not is_unreadable(["# Server initialized", line])

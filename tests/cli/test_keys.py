"""`bros-batch keys`: create, list and revoke keys in the database of the settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bros_batch.db.api_keys import digest_of, list_api_keys
from bros_batch.db.connections import open_database, reading
from bros_batch.db.schema import upgrade
from cli.main import main


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    upgrade(f"sqlite:///{tmp_path / 'bros.db'}")
    return tmp_path


def run(data_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["keys", arguments[0], "--data-dir", str(data_dir), *arguments[1:]])


def is_valid(data_dir: Path, secret: str) -> bool:
    database = open_database(f"sqlite:///{data_dir / 'bros.db'}")
    with reading(database) as connection:
        valid = {key.sha256 for key in list_api_keys(connection) if key.revoked_at is None}
    database.dispose()
    return digest_of(secret) in valid


def test_a_key_is_printed_once_and_stored_as_a_digest(data_dir: Path) -> None:
    made = run(data_dir, "create", "laptop")
    assert made.exit_code == 0
    secret = made.stdout.strip()
    assert secret.startswith("bros-")
    assert len(secret) > 40
    assert is_valid(data_dir, secret)
    assert secret.encode() not in (data_dir / "bros.db").read_bytes()
    listed = run(data_dir, "list").stdout
    assert "laptop" in listed
    assert "valid" in listed
    assert secret not in listed


@pytest.mark.parametrize("by", ["id", "name"])
def test_a_revoked_key_is_no_longer_valid(data_dir: Path, by: str) -> None:
    made = json.loads(run(data_dir, "create", "laptop", "--json").stdout)
    limits = {"requests_per_minute", "tokens_per_minute", "max_queued_items", "max_jobs"}
    assert (
        set(made)
        == {"id", "name", "created_at", "revoked_at", "key", "owner", "weight", "notify_url"} | limits
    )
    other = json.loads(run(data_dir, "create", "server", "--json").stdout)
    assert run(data_dir, "revoke", made[by]).exit_code == 0
    assert not is_valid(data_dir, made["key"])
    assert is_valid(data_dir, other["key"])
    again = run(data_dir, "revoke", made[by])
    assert again.exit_code == 1
    assert "was revoked before" in again.output
    listed = json.loads(run(data_dir, "list", "--json").stdout)
    assert [(each["name"], each["revoked_at"] is not None) for each in listed] == [
        ("laptop", True),
        ("server", False),
    ]
    # The name is free again.
    assert run(data_dir, "create", "laptop").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("create", "a\nb"), 2, "printable"),
        (("create", " "), 2, "printable"),
        (("create", "x" * 65), 2, "printable"),
        (("revoke", "nobody"), 1, "does not exist"),
        (("set", "nobody", "--weight", "2"), 1, "does not exist"),
        (("set", "nobody"), 2, "what to change"),
        (("create", "a", "--owner", "x" * 65), 2, "--owner"),
        (("create", "a", "--weight", "0"), 2, "--weight"),
        (("create", "a", "--max-jobs", "0"), 2, "at least 1"),
        (("create", "a", "--notify", "example.com"), 2, "must begin with https://"),
    ],
)
def test_mistakes_are_explained(data_dir: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    result = run(data_dir, *arguments)
    assert (result.exit_code, message in result.output) == (code, True)


def test_a_key_has_an_owner_a_weight_and_limits_that_can_be_changed(data_dir: Path) -> None:
    terms = ("--owner", "ann", "--weight", "3", "--requests-per-minute", "60", "--tokens-per-minute", "9000")
    made = json.loads(
        run(data_dir, "create", "ann-1", "--json", *terms, "--max-queued-items", "10000").stdout
    )
    assert (made["owner"], made["weight"], made["requests_per_minute"], made["max_jobs"]) == (
        "ann",
        3,
        60,
        None,
    )
    listed = run(data_dir, "list").stdout.splitlines()[1].split()
    assert [listed[1], listed[2], *listed[-5:]] == ["ann-1", "ann", "3", "60", "9,000", "10,000", "-"]
    changes = ("--weight", "0.5", "--tokens-per-minute", "none", "--max-jobs", "2")
    changed = json.loads(run(data_dir, "set", "ann-1", "--json", *changes).stdout)
    assert changed == {
        **{name: value for name, value in made.items() if name != "key"},
        "weight": 0.5,
        "tokens_per_minute": None,
        "max_jobs": 2,
    }


def test_two_keys_with_one_name_are_not_created(data_dir: Path) -> None:
    run(data_dir, "create", "laptop")
    again = run(data_dir, "create", "laptop")
    assert again.exit_code == 1
    assert "already" in again.output


def test_without_a_database_nothing_is_created(tmp_path: Path) -> None:
    result = run(tmp_path, "create", "laptop")
    assert result.exit_code == 1
    assert "There is no database" in result.output
    assert list(tmp_path.iterdir()) == []


def test_the_first_key_is_said_to_close_the_server(data_dir: Path) -> None:
    assert "It is the first key" in run(data_dir, "create", "laptop").stderr
    assert "first key" not in run(data_dir, "create", "server").stderr
    run(data_dir, "revoke", "laptop")
    run(data_dir, "revoke", "server")
    assert "first key" not in run(data_dir, "create", "again").stderr, "the server has stayed closed"


def test_the_last_revoked_key_is_said_to_leave_the_server_closed(data_dir: Path) -> None:
    for name in ("laptop", "server"):
        run(data_dir, "create", name)
    assert "No valid key is left" not in run(data_dir, "revoke", "laptop").stderr
    assert "No valid key is left, and the server stays closed" in run(data_dir, "revoke", "server").stderr


def test_the_notes_on_open_and_closed_are_not_in_json(data_dir: Path) -> None:
    made = run(data_dir, "create", "laptop", "--json")
    assert (json.loads(made.output)["name"], made.stderr) == ("laptop", "")
    revoked = run(data_dir, "revoke", "laptop", "--json")
    assert (json.loads(revoked.output)["name"], revoked.stderr) == ("laptop", "")


def test_the_webhook_of_a_key_has_a_secret_that_is_shown_when_it_is_set(data_dir: Path) -> None:
    url = "https://example.com/hook"
    made = run(data_dir, "create", "laptop", "--notify", url)
    secret = made.stderr.split()[-1]
    assert secret.startswith("whsec_") and secret not in made.stdout
    (listed,) = json.loads(run(data_dir, "list", "--json").stdout)
    assert listed["notify_url"] == url
    assert secret not in json.dumps(listed)
    moved = json.loads(run(data_dir, "set", "laptop", "--notify", f"{url}/new", "--json").stdout)
    assert (moved["notify_url"], moved["notify_secret"]) == (f"{url}/new", secret)
    assert "notify_secret" not in json.loads(run(data_dir, "set", "laptop", "--weight", "2", "--json").stdout)
    gone = json.loads(run(data_dir, "set", "laptop", "--notify", "none", "--json").stdout)
    assert gone["notify_url"] is None and "notify_secret" not in gone
    again = json.loads(run(data_dir, "set", "laptop", "--notify", url, "--json").stdout)
    assert again["notify_secret"] != secret

"""Values of options and arguments that no request can have: usage errors, before anything is sent."""

from __future__ import annotations

import pytest
from click.testing import CliRunner, Result

from bros_batch.openai_api.request_fields import MAX_TOKEN_ID
from cli.main import main
from cli.numbers import MAX_TOKENS

NOT_LISTENING = "http://127.0.0.1:9"
NOT_UTF8 = b"\xff\xfe".decode(errors="surrogateescape")


def run(*arguments: str, stdin: str | bytes = '{"a": 1}\n', **env: str) -> Result:
    return CliRunner().invoke(main, arguments, input=stdin, env={"BROS_URL": NOT_LISTENING, **env})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "command",
    [
        ("submit", "-", "--temperature"),
        ("submit", "-", "--top-p"),
        ("chat", "Hi", "--temperature"),
        ("up", "--gpu-memory-utilization"),
    ],
)
def test_a_number_is_finite(command: tuple[str, ...], value: str) -> None:
    result = run(*command, value)
    assert result.exit_code == 2
    assert command[-1] in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("value", [str(2**31), "99999999999999999999999"])
@pytest.mark.parametrize("option", ["--max-tokens", "--top-k", "--priority"])
def test_a_number_is_within_the_limits_of_the_server(option: str, value: str) -> None:
    result = run("submit", "-", "--prompt", "{a}", option, value)
    assert (result.exit_code, option in result.stderr) == (2, True)
    if option == "--max-tokens":
        assert run("chat", "Hi", option, value).exit_code == 2


def test_the_limit_is_that_of_the_server() -> None:
    assert MAX_TOKENS == MAX_TOKEN_ID
    assert run("submit", "-", "--prompt", "{a}", "--max-tokens", str(MAX_TOKENS)).exit_code == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("chat", NOT_UTF8),
        ("chat", "Hi", "--system", NOT_UTF8),
        ("chat", "Hi", "--model", NOT_UTF8),
        *(
            ("submit", "-", "--prompt", "{a}", option, NOT_UTF8)
            for option in ("--system", "--stop", "--name", "--model")
        ),
        ("submit", "-", "--prompt", "{a}" + NOT_UTF8),
    ],
)
def test_an_argument_that_is_not_utf8_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert (result.exit_code, "is not UTF-8" in result.stderr) == (2, True)


def test_a_message_on_stdin_that_is_not_utf8_is_a_usage_error() -> None:
    result = run("chat", "-", stdin=b"\xff\xfe")
    assert (result.exit_code, "The text on stdin is not UTF-8 (byte 1)" in result.stderr) == (2, True)


@pytest.mark.parametrize("message", ["", " ", "\n"])
def test_an_empty_message_is_a_usage_error(message: str) -> None:
    result = run("chat", message)
    assert (result.exit_code, "MESSAGE is empty" in result.stderr) == (2, True)


@pytest.mark.parametrize("key", ["hidden\nsecret", "secret\r\n", " secret", "secret\x7f", "secr\u00e9t"])
def test_a_key_that_no_header_can_contain_is_not_shown(key: str) -> None:
    result = run("list", BROS_API_KEY=key)
    assert result.exit_code == 1
    assert "The API key contains" in result.stderr
    assert "BROS_API_KEY" in result.stderr
    for part in key.split():
        assert part not in result.output


def test_a_field_of_the_system_message_that_no_document_has_is_a_usage_error() -> None:
    result = run("submit", "-", "--prompt", "{a}", "--system", "You {nope}")
    assert (result.exit_code, "the field 'nope'" in result.stderr) == (2, True)
    assert run("submit", "-", "--prompt", "{a}", "--system", "You {a} {{}}").exit_code == 3

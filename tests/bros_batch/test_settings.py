"""Settings that cannot be used: the error names the file or the setting, and says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from bros_batch.settings import Settings, SettingsError


def error_of(**values: object) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings(**values)
    return str(caught.value)


def test_a_settings_file_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROS_CONFIG", "/nonexist.toml")
    expected = "The settings file /nonexist.toml (BROS_CONFIG) cannot be read: No such file or directory."
    assert error_of() == expected


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'modle = "x"', "has an unknown setting 'modle'; did you mean 'model'?"),
        (b'zzzzzzzz = "x"', "has an unknown setting 'zzzzzzzz'."),
        (b"[web]\nport = 1", "has an unknown setting 'web'"),
        (b"model = x", "is not valid TOML: "),
        (b'model = "\xff"', "is not valid TOML: "),
    ],
)
def test_a_settings_file_with_a_mistake_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, problem: str
) -> None:
    file = tmp_path / "bros.toml"
    file.write_bytes(content)
    monkeypatch.setenv("BROS_CONFIG", str(file))
    assert error_of().startswith(f"The settings file {file} (BROS_CONFIG) {problem}")


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("PORT", "abc", "must be an integer, not 'abc'"),
        ("PORT", "70000", "must be at most 65535, not '70000'"),
        ("MAX_ATTEMPTS", "0", "must be at least 1, not '0'"),
        ("QUEUE_S", "0", "must be greater than 0, not '0'"),
        ("INSECURE", "maybe", "must be true or false, not 'maybe'"),
        ("GENERATION_CONFIG", "on", "must be 'auto' or 'none', not 'on'"),
        (
            "ALLOWED_ORIGINS",
            "chat",
            "is not valid: 'chat' must be an origin such as https://chat.example:8443, or *",
        ),
    ],
)
def test_an_error_says_what_was_given_and_what_is_expected(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(f"BROS_{name}", value)
    assert error_of() == f"The setting BROS_{name} {problem}."


def test_an_error_never_shows_a_secret() -> None:
    assert error_of(api_key=12345) == "The setting BROS_API_KEY must be text."

"""Input files and prompts as people have them: what is checked before anything is uploaded."""

from __future__ import annotations

import json

import pytest

from bros_batch.client.bad_input import BadInput
from bros_batch.client.input_check import check_head
from cli.escapes import unescaped
from tests.cli.test_jobs import Cli
from tests.up_process import Up

REQUEST = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}


def check(head, prompt, **others):
    """Check the lines against these options of the command line."""
    options = {"prompt": prompt, **others}
    defaults = {name: value for name, value in options.items() if value is not None}
    return check_head(head, defaults, spelled=lambda name: f"--{name.replace('_', '-')}")


def head(*lines: object) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


# The check of the first lines -------------------------------------------------------------------------------------


def test_a_prompt_may_name_any_column() -> None:
    assert check(head({"Vendor": "A", "Amount (EUR)": 5}), "{Vendor}: {Amount (EUR)}") == []


def test_a_field_that_does_not_exist_is_reported_before_the_upload() -> None:
    with pytest.raises(
        BadInput, match=r"'Amount \(USD\)'.*Its fields: Vendor, Amount \(EUR\)\..*write \{\{ and \}\}"
    ):
        check(head({"Vendor": "A", "Amount (EUR)": 5}), "{Vendor}: {Amount (USD)}")


def test_a_page_with_a_url_and_a_body_is_a_document() -> None:
    page = {"url": "https://example.org", "title": "A page", "body": "Its text."}
    assert check(head(page), "{body}") == []
    assert check(head({**page, "body": {"html": "x"}}), "{body}") == []
    with pytest.raises(BadInput, match="batch request with its own parameters; remove --prompt"):
        check(head(REQUEST), "{text}")


def test_lines_that_will_fail_are_named() -> None:
    lines = [{"id": 1, "text": "a"}, {"id": 2}, {"id": 2.5, "text": "b"}, [1]]
    warnings = check(head(*lines) + b'{"text": NaN}\n', "{text}")
    assert [warning.split(":")[0] for warning in warnings[:2]] == ["Line 2", "Line 3"]
    assert "not 2.5" in warnings[1]
    assert warnings[2].startswith("Line 4 is JSON, but not an object")
    assert warnings[3].startswith("Line 5 is not JSON (the value NaN is not in JSON)")
    assert all(warning.endswith("It will count as a failed item.") for warning in warnings)


def test_only_some_warnings_are_shown() -> None:
    warnings = check(head({"text": "a"}, *[{}] * 50), "{text}")
    assert len(warnings) == 6
    assert warnings[-1] == "45 more of the first 100 lines have such problems."


def test_repeated_ids_are_ids_and_those_of_requests_are_named() -> None:
    assert check(head({"id": "a", "text": ""}, {"id": "a", "text": ""}), "{text}") == []
    (warning,) = check(head(REQUEST, REQUEST), None)
    assert warning == "Line 2 has the custom_id 'a' of line 1; both will run."


def test_whole_numbers_that_became_floats_are_ids() -> None:
    assert check(b'{"id": 1.0, "text": "a"}\n{"id": 2.0, "text": "b"}\n', "{text}") == []
    with pytest.raises(BadInput, match="Line 1: 'id' must be a string or a whole number, not true"):
        check(b'{"id": true, "text": "a"}\n', "{text}")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\0\0\0\n", "Line 1 is not JSON"),
        (b'{"text": "a\0b"}\n', "Line 1 is not JSON"),
        ('{"text": "ä"}\n'.encode("latin-1"), "Line 1 is not UTF-8 text"),
        (b'[{"text": "a"}]', "Line 1 is JSON, but not an object"),
        (b"id,text\n1,a\n", "Line 1 is not JSON"),
        (b'{"a":' * 100_000, "Line 1 is nested too deeply"),
        (b"", "The file is empty."),
        (b"\xef\xbb\xbf\r\n", "The file is empty."),
    ],
)
def test_lines_that_are_not_objects_are_recognized(content: bytes, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        check(content, "{text}")
    assert sentence in str(caught.value)


def test_a_template_that_is_too_long_is_reported_before_the_upload() -> None:
    with pytest.raises(BadInput, match=r"--prompt is not usable: the template has 400,004 characters"):
        check(head({"text": "a"}), "{a" + " " * 400_000 + "x}")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"a\n\n{text}", "a\n\n{text}"),
        (r"\t|\\n|\\\n", "\t|\\n|\\\n"),
        (r"C:\dir \x \"", r"C:\dir \x \""),
        ("\\", "\\"),
    ],
)
def test_escapes_that_a_shell_leaves_are_interpreted(typed: str, meant: str) -> None:
    assert unescaped(typed) == meant


# The command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(service: Up) -> Cli:
    return Cli(service.state()["url"])


def test_line_breaks_in_a_prompt_and_in_a_file_are_the_same(command: Cli, tmp_path) -> None:
    """The simulated model is deterministic, so equal prompts have equal answers and others do not."""

    def answer(*arguments: str) -> str:
        out = command.ok("submit", "-", *arguments, "--max-tokens", "8", "-o", "-", stdin='{"text": "x"}\n')
        content: str = json.loads(out)["answer"]
        return content

    path = tmp_path / "prompt.txt"
    path.write_bytes(b"Read this.\r\n\r\n{text}\n")
    expected = answer("--prompt", "Read this.\n\n{text}")
    assert answer("--prompt", r"Read this.\n\n{text}") == expected
    assert answer("--prompt", f"@{path}") == expected
    assert answer("--prompt", r"Read this.\\n\\n{text}") != expected
    path.write_text(r"Read this.\n\n{text}")
    assert answer("--prompt", f"@{path}") == answer("--prompt", r"Read this.\\n\\n{text}")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt", "@missing.txt"], "missing.txt: No such file or directory; a prompt that begins with @"),
        (["--prompt", "@latin.txt"], "latin.txt is not UTF-8 text."),
    ],
)
def test_a_prompt_file_that_cannot_be_used_is_named(
    command: Cli, tmp_path, monkeypatch, arguments, sentence
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", command.env.get("PYTHONPATH", ""))
    (tmp_path / "latin.txt").write_bytes("ä".encode("latin-1"))
    done = command.run("submit", "-", *arguments, stdin='{"text": "x"}\n')
    assert done.returncode == 2
    assert sentence in done.stderr


def test_files_that_are_none_are_rejected_without_a_traceback(command: Cli, tmp_path) -> None:
    for path in (tmp_path, tmp_path / "missing", "/dev/null"):
        done = command.run("submit", str(path), "--prompt", "{text}")
        assert done.returncode == 2, done
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().split("\n")) == 1


def test_requests_for_another_model_are_rejected_or_rewritten(command: Cli) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    line = json.dumps({**REQUEST, "body": body})
    done = command.run("submit", "-", stdin=line)
    assert done.returncode == 1
    for part in ("'gpt-4o-mini' is not served here", "'tiny'", "submit --model", "--model-alias"):
        assert part in done.stderr
    batch = command.json("submit", "-", "--model", "tiny", "--wait", stdin=line)
    assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


def test_documents_of_pandas_and_with_repeated_ids_are_all_run(command: Cli) -> None:
    lines = '{"id": 1.0, "text": "a"}\n{"id": 2.0, "text": "b"}\n{"id": 1.0, "text": "c"}\n'
    done = command.run("submit", "-", "--prompt", "{text}", "--max-tokens", "3", "-o", "-", stdin=lines)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.strip().split("\n")]
    assert [(row["id"], row["text"], row["_error"]) for row in rows] == [
        (1, "a", None),
        (2, "b", None),
        (1, "c", None),
    ]

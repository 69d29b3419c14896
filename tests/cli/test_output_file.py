"""The file of `-o`: what is wrong with it is known before the upload, and the input is never replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.failure import Failure
from cli.main import main
from cli.output_file import check_not_input, check_output, write_lines

NOT_LISTENING = "http://127.0.0.1:9"
DOCUMENT = '{"text": "a"}\n'


def submit(source: Path | str, output: Path | str) -> Result:
    """Submit to a server that does not exist: exit code 3 means that the upload was tried."""
    command = ["submit", str(source), "--prompt", "{text}", "-o", str(output), "--url", NOT_LISTENING]
    return CliRunner().invoke(main, command)


@pytest.mark.parametrize("name", ["docs.jsonl", "sub/../docs.jsonl", "symbolic", "hard"])
def test_the_input_is_not_replaced_under_any_name(tmp_path: Path, name: str) -> None:
    source = tmp_path / "docs.jsonl"
    source.write_text(DOCUMENT)
    (tmp_path / "sub").mkdir()
    (tmp_path / "symbolic").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    result = submit(source, tmp_path / name)
    assert (result.exit_code, "choose another file with -o" in result.output) == (2, True)
    assert source.read_text() == DOCUMENT


def test_the_input_on_stdin_is_not_replaced(tmp_path: Path) -> None:
    source = tmp_path / "docs.jsonl"
    source.write_text(DOCUMENT)
    with source.open("rb") as file:
        with pytest.raises(Failure, match="the file on stdin"):
            check_not_input(str(source), file, "the file on stdin")
        check_not_input(str(tmp_path / "other"), file, "the file on stdin")
    with open(os.devnull, "rb") as file:  # noqa: PTH123
        check_not_input(os.devnull, file, "stdin")


def test_the_prompt_file_is_not_replaced(tmp_path: Path) -> None:
    source, prompt = tmp_path / "docs.jsonl", tmp_path / "prompt.txt"
    source.write_text(DOCUMENT)
    prompt.write_text("{text}")
    command = ["submit", str(source), "--prompt", f"@{prompt}", "--url", NOT_LISTENING, "-o"]
    assert CliRunner().invoke(main, [*command, str(prompt)]).exit_code == 2
    assert CliRunner().invoke(main, [*command, str(tmp_path / "out")]).exit_code == 3
    assert prompt.read_text() == "{text}"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("missing/x", "the directory {}/missing does not exist"),
        ("file/x", "{}/file is not a directory"),
        ("x" * 300, "file name too long"),
        ("dangling", "the directory {}/missing does not exist"),
    ],
)
def test_an_output_that_cannot_be_written_is_known_before_the_upload(
    tmp_path: Path, output: str, reason: str
) -> None:
    source = tmp_path / "docs.jsonl"
    source.write_text(DOCUMENT)
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "missing" / "x")
    before = sorted(tmp_path.iterdir())
    for result in (
        submit(source, tmp_path / output),
        CliRunner().invoke(main, ["results", "last", "-o", str(tmp_path / output), "--url", NOT_LISTENING]),
    ):
        assert result.exit_code == 2
        assert reason.format(tmp_path.resolve()) in result.output
        assert ".part" not in result.output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_write_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Failure, match=f"the directory {tmp_path.resolve()} does not allow it"):
        check_output(str(tmp_path / "x"))


def test_a_good_output_passes_the_check_and_is_not_touched(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("kept")
    check_output(str(old))
    check_output(str(tmp_path / "new"))
    assert (list(tmp_path.iterdir()), old.read_text()) == ([old], "kept")
    source = tmp_path / "docs.jsonl"
    source.write_text(DOCUMENT)
    assert submit(source, tmp_path / "new").exit_code == 3


def test_results_go_to_the_file_behind_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    assert write_lines([b"1\n", b"2\n"], str(link)) == 2
    assert link.is_symlink()
    assert target.read_text() == "1\n2\n"


def test_a_pipe_receives_the_lines_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_output(str(pipe))
    assert write_lines([b"1\n"], str(pipe)) == 1
    assert os.read(reader, 100) == b"1\n"
    os.close(reader)
    assert pipe.is_fifo()


def test_a_failed_write_names_the_output_and_leaves_the_old_file(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("kept")

    def lines() -> Iterator[bytes]:
        yield b"1\n"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="no space left on device") as caught:
        write_lines(lines(), str(old))
    assert caught.value.filename == str(old)
    assert (list(tmp_path.iterdir()), old.read_text()) == ([old], "kept")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_is_an_error() -> None:
    with pytest.raises(OSError, match="no space left") as caught:
        write_lines([b"1\n"], "/dev/full")
    assert caught.value.filename == "/dev/full"


def test_a_workbook_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"only format of workbooks that is written is \.xlsx"):
        check_output(str(tmp_path / "out.XLS"))
    check_output(str(tmp_path / "out.xlsx"))

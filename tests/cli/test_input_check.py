"""The look at a file's head before it is uploaded."""

from __future__ import annotations

import io
import json

import pytest

from cli.jobs.input_check import HEAD_BYTES, BadInput, HeadedStream, check_head, read_head

DOCUMENT = b'{"id": "a", "text": "x"}\n'
REQUEST = json.dumps(
    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}
).encode()


@pytest.mark.parametrize(
    ("head", "prompt", "sentence"),
    [
        (b"", "{text}", "The file is empty."),
        (b"\n \r\n", "{text}", "The file is empty."),
        (b"hello\n", "{text}", "Line 1 is not JSON"),
        (b"\xff\xfe{}\n", "{text}", "Line 1 is not UTF-8"),
        (b"\n[1, 2]\n", "{text}", "Line 2 is JSON, but no object"),
        (DOCUMENT, None, "(its fields: id, text); say what to do with it, as in --prompt"),
        (DOCUMENT, "Summarise: {txt}", "uses {txt}, which line 1 does not have (its fields: id, text)"),
        (DOCUMENT, "Summarise it", "no {field} in it"),
        (DOCUMENT, " ", "The --prompt is empty."),
        (REQUEST, "{text}", "which has its own; leave --prompt out"),
        (b'{"url": "/v1/chat/completions", "body": {}}', None, "without a custom_id"),
    ],
)
def test_what_cannot_become_a_job_is_refused_with_its_line(head, prompt, sentence):
    with pytest.raises(BadInput) as refusal:
        check_head(head, prompt)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    ("head", "prompt"),
    [
        (DOCUMENT, "Summarise: {text}"),
        (DOCUMENT, "As {{json}}: {text}"),
        (b"\xef\xbb\xbf" + DOCUMENT, "{text}"),
        (b"\r\n" + DOCUMENT.replace(b"\n", b"\r\n"), "{text}"),
        (REQUEST, None),
    ],
)
def test_what_can_become_a_job_passes(head, prompt):
    assert check_head(head, prompt) == []


def test_a_bad_line_before_a_good_one_is_a_warning_only():
    (warning,) = check_head(b"oops\n" + DOCUMENT, "{text}")
    assert warning.startswith("Line 1 is not JSON")


def test_sampling_flags_are_refused_for_requests_that_have_their_own():
    with pytest.raises(BadInput, match="leave --max-tokens, --seed out"):
        check_head(REQUEST, None, ["--max-tokens", "--seed"])


def test_the_stream_after_the_head_is_the_whole_file(tmp_path):
    content = b"".join(b'{"n": %d}\n' % n for n in range(1000))
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    seen: list[int] = []
    with path.open("rb") as file:
        stream = HeadedStream(read_head(file), file, seen.append, len(content))
        path.write_bytes(content + b"appended meanwhile")
        assert stream.fileno() == file.fileno()
        assert b"".join(iter(lambda: stream.read(777), b"")) == content
    assert sum(seen) == len(content)


def test_a_pipe_has_no_length():
    source = io.BytesIO(DOCUMENT * 300)
    stream = HeadedStream(read_head(source), source, lambda count: None)
    with pytest.raises(io.UnsupportedOperation):
        stream.fileno()
    assert stream.read() + stream.read() == DOCUMENT * 300


def test_a_line_without_end_is_not_held_in_memory():
    class Endless(io.RawIOBase):
        given = 0

        def readline(self, size: int | None = -1) -> bytes:
            assert size is not None and size > 0
            self.given += size
            return b"x" * size

    source = Endless()
    head = read_head(source)
    assert len(head) == source.given <= 16 * 1024**2


def test_a_line_cut_off_by_the_head_is_left_to_the_service():
    cut_off = b'{"text": "' + b"x" * HEAD_BYTES
    assert check_head(cut_off[:HEAD_BYTES], "Read: {text}") == []
    assert check_head((b'{"text": "a"}\n' + cut_off)[:HEAD_BYTES], "Read: {text}") == []

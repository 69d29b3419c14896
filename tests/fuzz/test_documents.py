"""Files of jobs and their templates: every line ends exactly once, as an answer or as an error that names it."""

from __future__ import annotations

import json

from hypothesis import event, given
from hypothesis import strategies as st

from tests.fuzz.examples import fuzz
from tests.fuzz.jobs import lines_of, start_job, wait_for_end
from tests.fuzz.strategies import changed, deep, texts, values
from tests.fuzz.target import Target

BATCH_LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "tiny", "messages": [{"role": "user", "content": "Total?"}], "max_tokens": 2},
}
DECISION_LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/decisions",
    "body": {
        "model": "tiny",
        "input": "Paid.",
        "questions": [{"type": "predicate", "instructions": "Is it paid?"}],
    },
}
DOCUMENT = {"id": "a", "text": "Total: 12.50 EUR", "title": "Invoice", "n": 1.5}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["a", 1]}}}


def as_line(value: object) -> bytes:
    return json.dumps(value).encode(errors="surrogatepass")


lines = st.one_of(
    changed(BATCH_LINE).map(as_line),
    changed(DECISION_LINE).map(as_line),
    changed(DOCUMENT).map(as_line),
    st.just(as_line(DOCUMENT)),
    values.map(as_line),
    deep.map(str.encode),
    st.binary(max_size=40),
)
files = st.builds(
    lambda mark, body, newline, end: mark + newline.join(body) + end,
    st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]),
    st.lists(lines, max_size=6),
    st.sampled_from([b"\n", b"\r\n", b"\r", b"\n\n"]),
    st.sampled_from([b"\n", b"", b"\r\n", b"\x00"]),
)
defaults = st.one_of(
    st.fixed_dictionaries({"prompt": st.one_of(st.just("{text}"), texts), "max_tokens": st.just(2)}),
    changed({"prompt": "{text}", "max_tokens": 2, "system": "Be brief.", "temperature": 0.5}),
    changed({"prompt": "{text}", "max_tokens": 2, "response_format": FORMAT}),
)


@fuzz
@given(content=files, chosen=defaults)
def test_files(watched: Target, content: bytes, chosen: object) -> None:
    watched.sent["files"] += 1
    batch = start_job(watched, content, chosen)  # type: ignore[arg-type]
    if "error" in batch and "id" not in batch:
        assert set(batch["error"]) == {"message", "type", "param", "code"}
        event("rejected")
        return
    done = wait_for_end(watched, batch["id"])
    event(done["status"])
    counts = done["request_counts"]
    found = lines_of(watched, done)
    if done["status"] == "completed":
        assert len(found) == counts["total"] == counts["completed"] + counts["failed"]
        assert len({line["id"] for line in found}) == len(found)
    else:
        assert done["errors"]["data"], done

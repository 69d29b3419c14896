"""A job of plain documents, run to its end."""

from __future__ import annotations

import json
from typing import Any

from tests.fuzz.target import Target
from tests.services import wait_for

ENDED = ("completed", "failed", "expired", "cancelled")


def start_job(target: Target, content: bytes, defaults: dict[str, Any]) -> dict[str, Any]:
    """Upload a file and start a job. Returns the batch object, or the error object."""
    uploaded = target.http.post("/v1/files", files={"file": ("d.jsonl", content)}, data={"purpose": "batch"})
    if uploaded.status_code != 200:
        return dict(uploaded.json())
    body = {
        "input_file_id": uploaded.json()["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "defaults": defaults,
    }
    return dict(
        target.http.post(
            "/v1/batches", content=json.dumps(body), headers={"Content-Type": "application/json"}
        ).json()
    )


def wait_for_end(target: Target, batch_id: str) -> dict[str, Any]:
    """Wait until a job has ended, and return its batch object."""

    def ended() -> dict[str, Any] | None:
        batch: dict[str, Any] = target.http.get(f"/v1/batches/{batch_id}").raise_for_status().json()
        return batch if batch["status"] in ENDED else None

    found = wait_for(ended, "the end of a job", timeout_s=240)
    assert found is not None
    return found


def lines_of(target: Target, batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of the output file and the error file of a job that has ended."""
    lines = []
    for name in ("output_file_id", "error_file_id"):
        if batch[name]:
            text = target.http.get(f"/v1/files/{batch[name]}/content").raise_for_status().text
            lines += [json.loads(line) for line in text.split("\n") if line]
    return lines


def run_job(target: Target, documents: list[str]) -> None:
    """Run a job whose lines all succeed."""
    content = "".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(documents))
    batch = start_job(target, content.encode(), {"prompt": "{text}", "max_tokens": 4})
    done = wait_for_end(target, batch["id"])
    expected = {"total": len(documents), "completed": len(documents), "failed": 0}
    assert {name: done["request_counts"][name] for name in expected} == expected
    assert sorted(int(line["custom_id"]) for line in lines_of(target, done)) == list(range(len(documents)))

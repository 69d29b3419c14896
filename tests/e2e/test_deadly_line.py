"""A line whose computation kills the engine's process fails by itself, through all services of a real `up`."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from bros_batch.text.tokenizer import load_tokenizer
from tests.e2e.known_jobs import Api, assert_every_line_once, simulated_engine, write_job
from tests.factories_text import make_text_model
from tests.poisoned_engine import write_sitecustomize
from tests.services import wait_for
from tests.up_process import running_up

NUM_LINES = 80
DEADLY = "Document number 37: "
PLAIN = "Document number 38: "


def poison(directory: Path) -> dict[str, str]:
    """The environment in which a prompt that contains `DEADLY` kills its engine by SIGSEGV."""
    text = load_tokenizer(str(make_text_model(directory / "model-for-tokens")))
    plain = text.encode_chat([{"role": "user", "content": PLAIN}])
    deadly = text.encode_chat([{"role": "user", "content": DEADLY}])
    first = next(i for i, (a, b) in enumerate(zip(plain, deadly, strict=False)) if a != b)
    token_ids = deadly[: first + 2]
    assert token_ids != plain[: first + 2]
    return {
        "POISON": json.dumps({"signal": signal.SIGSEGV, "token_ids": token_ids}),
        "PYTHONPATH": write_sitecustomize(directory / "site"),
    }


@pytest.mark.slow
def test_the_line_that_kills_the_engine_fails_and_the_others_succeed(tmp_path: Path) -> None:
    job = write_job(tmp_path / "in.jsonl", NUM_LINES, max_tokens=24)
    with running_up(tmp_path / "data", **poison(tmp_path)) as up, Api(up.state()["url"]) as api:
        batch_id = api.submit(job)
        batch = wait_for(lambda: api.ended(batch_id), "the end of the job", timeout_s=240)
        assert batch["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES - 1, "failed": 1}
        errors = api.get(f"/v1/files/{batch['error_file_id']}/content").text.splitlines()
        output = api.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
    (failed,) = map(json.loads, errors)
    assert failed["custom_id"] == "doc-37"
    assert failed["error"]["code"] == "engine_lost"
    assert "it computed nothing else" in failed["error"]["message"]
    expected = job.expected_texts(tmp_path / "data-model")
    del expected["doc-37"]
    answers = {line["custom_id"]: line["response"]["body"] for line in map(json.loads, output)}
    assert {name: body["choices"][0]["message"]["content"] for name, body in answers.items()} == expected


@pytest.mark.slow
def test_lines_survive_an_engine_that_is_killed_by_hand_three_times(tmp_path: Path) -> None:
    job = write_job(tmp_path / "in.jsonl", NUM_LINES, max_tokens=24)
    with running_up(tmp_path / "data", engine=simulated_engine(0.05)) as up, Api(up.state()["url"]) as api:
        batch_id = api.submit(job)
        for kills in range(3):
            done = 5 * kills
            wait_for(lambda done=done: api.num_done(batch_id) > done, timeout_s=120)
            up.kill("engine")
        database_url = up.state()["database_url"]
        assert_every_line_once(api, batch_id, job, tmp_path / "data-model", database_url, timeout_s=240)

"""The programs in examples/ work against a running server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.up_process import Up

EXAMPLES = Path(__file__).parents[2] / "examples"
# In tests/clients: they need a model that computes, or packages that are not installed here.
ELSEWHERE = {"extract_pydantic.py", "map_table.py", "tool_loop.py"}
WITH_OTHER_PACKAGES = {"evaluate_lm_eval.py"}
TESTED = {
    "ask_data_frame.py",
    "background_response.py",
    "bulk_openai.py",
    "chat_stream.py",
    "decide.py",
    "hybrid.py",
    "submit_documents.py",
}


@pytest.fixture
def run(service: Up):
    env = {name: value for name, value in os.environ.items() if not name.startswith("BROS_")}
    env["BROS_URL"] = service.state()["url"]

    def run_example(name: str, *arguments: str) -> str:
        command = [sys.executable, str(EXAMPLES / name), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_example


def test_there_is_a_test_for_every_example():
    assert {path.name for path in EXAMPLES.glob("*.py")} == TESTED | ELSEWHERE | WITH_OTHER_PACKAGES


def test_bulk_with_the_openai_client(run, tmp_path):
    path = tmp_path / "requests.jsonl"
    with path.open("w") as file:
        for number in range(5):
            body = {"model": "tiny", "messages": [{"role": "user", "content": f"{number}"}], "max_tokens": 4}
            line = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    results = [json.loads(line) for line in run("bulk_openai.py", str(path)).strip().split("\n")]
    assert [result["custom_id"] for result in results] == [f"r{number}" for number in range(5)]


def test_chat_as_it_is_written(run):
    assert len(run("chat_stream.py", "What can you do?")) > 1


def test_documents_and_one_prompt(run, tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text('{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n')
    out = run("submit_documents.py", str(path), "Summarize: {text}")
    assert [part for part in ("a\t", "b\t") if part in out] == ["a\t", "b\t"]


def test_documents_with_line_separators_of_unicode(run, tmp_path):
    path = tmp_path / "docs.jsonl"
    names = ["a\u2028b", "c\u2029d", "e\x85f", "g\x1ch"]
    path.write_text("".join(json.dumps({"id": name, "text": name}) + "\n" for name in names))
    out = run("submit_documents.py", str(path), "Summarize: {text}")
    assert [name for name in names if f"{name}\t" in out] == names


def test_a_response_in_the_background(run):
    answer = run("background_response.py", "What can you do?")
    assert len(answer) > 1


def test_questions_about_a_text(run):
    lines = run("decide.py", "My card was charged twice.").splitlines()
    assert [line.partition(":")[0] for line in lines] == ["urgent", "team", "mood"]
    assert all("%" in line for line in lines)


def test_questions_about_a_data_frame(run, tmp_path):
    path = tmp_path / "mails.csv"
    path.write_text("text\nWhere is my invoice?\nI cannot log in.\n")
    header, *rows = run("ask_data_frame.py", str(path)).splitlines()
    questions = ("urgent", "team", "mood")
    assert header.split() == ["text", *(part for name in questions for part in (name, f"{name}_probability"))]
    assert sorted(row.split()[0] for row in rows) == ["0", "1"]


def test_both_lanes_at_once(run):
    lines = run("hybrid.py").splitlines()
    assert lines
    assert all("of 50 done; chat: first token after " in line for line in lines)


@pytest.mark.parametrize("name", sorted((TESTED | ELSEWHERE) - {"hybrid.py"}))
def test_without_arguments_the_usage_is_printed(name):
    done = subprocess.run([sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(f"usage: python examples/{name} ")

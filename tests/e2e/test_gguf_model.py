"""`up` and `doctor` with a GGUF file as the model: all services use it, and a bad file is refused before they start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest

from tests.factories_gguf import make_gguf
from tests.up_process import running_up


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def test_chats_and_jobs_run_on_a_gguf_file(tmp_path: Path) -> None:
    """On the real engine, which unpacks the weights. Greedy, a chat and a line of a job get the same answer."""
    path = make_gguf(tmp_path / "m.gguf", max_position_embeddings=1024)
    before = json.loads(
        run("doctor", "--data-dir", str(tmp_path / "data"), "--model", str(path), "--json").stdout
    )
    assert [each for each in before["findings"] if each["name"] == "model"] == [
        {
            "name": "model",
            "health": "note",
            "detail": f"{path} in {path}",
            "fix": "The first start unpacks it.",
        }
    ]
    assert not (tmp_path / "m.gguf.bros").exists()

    engine = ("--device", "cpu", "--profile-s", "0", "--num-kv-blocks", "64")
    with running_up(tmp_path / "data", "--model", str(path), engine=engine) as up:
        url = up.state()["url"]
        assert (tmp_path / "m.gguf.bros" / "float32").is_dir()
        messages = [{"role": "user", "content": "The quick brown fox"}]
        body = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 12}
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        chat = client.chat.completions.create(**body)  # type: ignore[call-overload]
        line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
        (tmp_path / "job.jsonl").write_text(json.dumps(line) + "\n")
        out = tmp_path / "out.jsonl"
        done = run("submit", str(tmp_path / "job.jsonl"), "--url", url, "--wait", "-o", str(out))
        assert done.returncode == 0, done.stderr
        answer = json.loads(out.read_text())["response"]["body"]["choices"][0]
        assert answer["message"]["content"] == chat.choices[0].message.content
        assert chat.usage.completion_tokens > 0
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["max_model_len"] == 1024


@pytest.mark.parametrize("command", ["up", "doctor"])
def test_a_bad_file_is_refused_with_a_sentence(command: str, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-2000])
    result = run(command, "--data-dir", str(tmp_path / "data"), "--model", str(path))
    assert result.returncode == 1
    assert f"{path} is incomplete: it has " in result.stderr + result.stdout
    assert "download it again." in result.stderr + result.stdout
    assert not (tmp_path / "data").exists()


def test_a_file_that_is_missing_is_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    missing = run("up", "--data-dir", str(tmp_path / "data"), "--model", str(path))
    assert missing.returncode == 1
    assert f"there is no file {path}; set --model to a GGUF file or a model directory." in missing.stderr

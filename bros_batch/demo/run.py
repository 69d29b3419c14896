"""The demo: a job of documents and three chats at once, on services that live only as long as it runs.

Every document is made up, so the truth is known and every answer can be graded.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bros_batch.client.chat_stream import ask
from bros_batch.client.http_client import Client
from bros_batch.demo.documents import (
    CHAT_PROMPT,
    EXTRACTION_PROMPT,
    FIELDS,
    HELD_OUT_SEED,
    Document,
    generate_documents,
    questions,
)
from bros_batch.up.preflight import Refused
from bros_batch.up.tether import tethered

# Vendors that the model has never seen.
DOCUMENT_SEED = HELD_OUT_SEED + 2026
CHAT_SEED = HELD_OUT_SEED + 2027
CHATS = 3
MAX_ANSWER_TOKENS = 128
ASK_EVERY_S = 0.25
DRAIN_S = 5.0
KILL_S = 20.0

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True, slots=True)
class ChatResult:
    """One question, asked when `done` of the job's documents had ended."""

    question: str
    answer: str
    truth: str
    ttft_s: float | None
    done: int

    @property
    def is_right(self) -> bool:
        return self.answer.strip() == self.truth


@dataclass(frozen=True, slots=True)
class DemoReport:
    """What came of it. Accuracies are shares of all documents; a failed document is wrong in every field."""

    documents: int
    failed: int
    seconds: float
    documents_per_s: float
    tokens_per_s: float
    accuracy: dict[str, float]
    accuracy_all_fields: float
    chats: list[ChatResult]
    results_dir: str


class DemoView(Protocol):
    """Shows how the demo goes."""

    def step(self, text: str) -> None: ...
    def progress(self, batch: dict[str, Any]) -> None: ...
    def chat(self, result: ChatResult) -> None: ...


def run_demo(
    up_command: Sequence[str],
    documents: int,
    results_dir: Path,
    view: DemoView,
    engine_args: Sequence[str] = (),
) -> DemoReport:
    """Start `up_command` on a data directory of its own, run the demo, stop it. `up_command` prints one JSON object
    with its `url` when it is ready. Leaves nothing but `results_dir`, also when interrupted.

    Raises Refused if the services do not start, ServiceError or ServiceUnreachable if they fail.
    """
    view.step("Starting every service: Redis, the engine, a worker, the web server")
    with (
        tempfile.TemporaryDirectory(prefix="bros-demo-") as directory,
        _services(up_command, engine_args, Path(directory)) as url,
        Client(url) as client,
    ):
        batch_documents = list(generate_documents(documents, DOCUMENT_SEED))
        chat_documents = list(generate_documents(CHATS, CHAT_SEED))
        view.step(f"Submitting {documents} made-up documents as a job, and chatting while it runs")
        started_s = time.monotonic()
        batch = _submit(client, batch_documents, Path(directory))
        chats: list[ChatResult] = []
        for seen in _observe(client, batch["id"]):
            batch = seen
            view.progress(batch)
            counts = batch["request_counts"]
            done = counts["completed"] + counts["failed"]
            if len(chats) < CHATS and done >= max(1, documents * len(chats) // (2 * CHATS)):
                chats.append(_chat(client, chat_documents[len(chats)], len(chats), done))
                view.chat(chats[-1])
        seconds = time.monotonic() - started_s
        while len(chats) < CHATS:  # a small job may be over sooner than three questions are asked
            chats.append(_chat(client, chat_documents[len(chats)], len(chats), documents))
            view.chat(chats[-1])
        results_dir.mkdir(parents=True, exist_ok=True)
        results = list(client.result_lines(batch["id"], "succeeded"))
        (results_dir / "results.jsonl").write_bytes(b"".join(results))
        (results_dir / "errors.jsonl").write_bytes(b"".join(client.result_lines(batch["id"], "failed")))
        _write_documents(results_dir / "documents.jsonl", batch_documents, with_truth=True)
        right = grade(batch_documents, results)
        view.step("Stopping every service")
    return DemoReport(
        documents=documents,
        failed=documents - len(results),
        seconds=seconds,
        documents_per_s=len(results) / seconds,
        tokens_per_s=(batch.get("usage") or {}).get("total_tokens", 0) / seconds,
        accuracy={name: sum(name in fields for fields in right) / documents for name in FIELDS},
        accuracy_all_fields=sum(len(fields) == len(FIELDS) for fields in right) / documents,
        chats=chats,
        results_dir=str(results_dir),
    )


def grade(documents: Sequence[Document], result_lines: Sequence[bytes]) -> list[set[str]]:
    """For each document, the fields that its result has right."""
    answers: dict[str, dict[str, Any]] = {}
    for line in result_lines:
        record = json.loads(line)
        content = record["response"]["body"]["choices"][0]["message"]["content"]
        try:
            answer = json.loads(content)
        except ValueError:
            continue
        if isinstance(answer, dict):
            answers[record["custom_id"]] = answer
    return [
        {name for name in FIELDS if answers.get(document.document_id, {}).get(name) == document.truth[name]}
        for document in documents
    ]


@contextmanager
def _services(up_command: Sequence[str], engine_args: Sequence[str], directory: Path) -> Iterator[str]:
    """The URL of services that end with the block; if we are killed, they stop by themselves."""
    log = directory / "up.log"
    # What this shell has set for services of its own is not for the demo's.
    env = {name: value for name, value in os.environ.items() if not name.startswith("BROS_")}
    flags = ["--data-dir", str(directory / "data"), "--port", "0", "--json"]
    command = tethered([*up_command, *flags, "--", *engine_args], signal.SIGTERM)
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=env,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # arrives when everything is ready; ends when `up` does
        if not line:
            process.wait()
            raise Refused(f"The services did not start:\n{log.read_text(errors='replace').strip()}")
        yield json.loads(line)["url"]
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """A drain, if it is a short one: nobody will want what is still in work. Asked twice, `up` kills at once."""
    for patience_s in (DRAIN_S, KILL_S):
        process.terminate()
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(patience_s)
            break
    else:
        process.kill()  # its children are tethered to it
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _submit(client: Client, documents: Sequence[Document], directory: Path) -> dict[str, Any]:
    path = directory / "documents.jsonl"
    _write_documents(path, documents, with_truth=False)
    with path.open("rb") as file:
        uploaded = client.upload(path.name, file)
    return client.post(
        "/v1/batches",
        {
            "input_file_id": uploaded["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "name": "demo",
            "defaults": {"prompt": EXTRACTION_PROMPT, "temperature": 0.0, "max_tokens": MAX_ANSWER_TOKENS},
        },
    )


def _observe(client: Client, batch_id: str) -> Iterator[dict[str, Any]]:
    while True:
        batch = client.batch(batch_id)
        yield batch
        if batch["status"] in ENDED:
            return
        time.sleep(ASK_EVERY_S)  # HTTP has no way to wait for a job


def _chat(client: Client, document: Document, number: int, done: int) -> ChatResult:
    question, truth = questions(document)[number]
    body = {
        "model": client.served_model(),
        "messages": [{"role": "user", "content": CHAT_PROMPT.format(question=question, text=document.text)}],
        "temperature": 0.0,
        "max_tokens": MAX_ANSWER_TOKENS,
    }
    answer = ask(client, body, lambda piece: None)
    return ChatResult(question, answer.text, truth, answer.ttft_s, done)


def _write_documents(path: Path, documents: Sequence[Document], *, with_truth: bool) -> None:
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            record: dict[str, Any] = {"id": document.document_id, "text": document.text}
            if with_truth:
                record["truth"] = document.truth
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

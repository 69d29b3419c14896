"""The demo: a bulk job and three chats at the same time, on services that run only for the demo.

Every document is generated, so its true values are known and every answer can be graded.
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
from bros_batch.db.states import ENDED_JOB
from bros_batch.demo.documents import FIELDS, HELD_OUT_SEED, Document, generate_documents
from bros_batch.demo.prompts import CHAT_PROMPT, EXTRACTION_PROMPT, EXTRACTION_SCHEMA, questions
from bros_batch.item_counts import ItemCounts
from bros_batch.openai_api.endpoints import CHAT_COMPLETIONS
from bros_batch.up.preflight import StartupError
from bros_batch.up.tether import tethered

# Held-out seeds, so that the vendors are new to the model.
DOCUMENT_SEED = HELD_OUT_SEED + 2026
CHAT_SEED = HELD_OUT_SEED + 2027
CHATS = 3
MAX_ANSWER_TOKENS = 128
POLL_INTERVAL_S = 0.25
DRAIN_S = 5.0
KILL_S = 20.0


@dataclass(frozen=True, slots=True)
class ChatResult:
    """A chat question and its answer. `done` items of the job had ended when it was asked."""

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
    """Result of the demo. Accuracies are fractions of all documents; a failed item counts as wrong in every field."""

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
    """Shows the progress of the demo."""

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
    """Start `up_command` on a temporary data directory, run the demo, and stop the services.

    `up_command` prints one JSON object with its `url` once it is ready. Only `results_dir` remains, also after an
    interruption.

    Raises StartupError if the services do not start, ServiceError or ServiceUnreachable if they fail.
    """
    view.step("Starting the services (the first start can take two minutes)")
    with (
        tempfile.TemporaryDirectory(prefix="bros-demo-") as directory,
        _services(up_command, engine_args, Path(directory)) as url,
        Client(url) as client,
    ):
        batch_documents = list(generate_documents(documents, DOCUMENT_SEED))
        chat_documents = list(generate_documents(CHATS, CHAT_SEED))
        view.step(f"Submitting {documents} generated documents as a job, and chatting while it runs")
        started_s = time.monotonic()
        batch = _submit(client, batch_documents, Path(directory))
        chats: list[ChatResult] = []
        for seen in _observe(client, batch["id"]):
            batch = seen
            view.progress(batch)
            done = ItemCounts.of_batch(batch).ended
            if len(chats) < CHATS and done >= max(1, documents * len(chats) // (2 * CHATS)):
                chats.append(_chat(client, chat_documents[len(chats)], len(chats), done))
                view.chat(chats[-1])
        seconds = time.monotonic() - started_s
        while len(chats) < CHATS:  # a small job may end before all questions were asked
            chats.append(_chat(client, chat_documents[len(chats)], len(chats), documents))
            view.chat(chats[-1])
        results_dir.mkdir(parents=True, exist_ok=True)
        results = list(client.result_lines(batch["id"], "succeeded"))
        (results_dir / "results.jsonl").write_bytes(b"".join(results))
        (results_dir / "errors.jsonl").write_bytes(b"".join(client.result_lines(batch["id"], "failed")))
        _write_documents(results_dir / "documents.jsonl", batch_documents, with_truth=True)
        right = grade(batch_documents, results)
        view.step("Stopping the services")
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
    """Return, for each document, the set of fields that its result got right."""
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
    """Run the services for the duration of the block and yield their URL. They also stop if this process is killed."""
    log = directory / "up.log"
    # The settings in this environment are for other services, not for those of the demo.
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
        line = process.stdout.readline()  # the line arrives once everything is ready, or ends if `up` ends
        if not line:
            process.wait()
            raise StartupError(f"The services did not start:\n{log.read_text(errors='replace').strip()}")
        yield json.loads(line)["url"]
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop `up` after a short drain; its unfinished work is not needed. A second SIGTERM makes it kill its children."""
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
    return client.create_batch(
        {
            "input_file_id": uploaded["id"],
            "endpoint": CHAT_COMPLETIONS,
            "completion_window": "24h",
            "name": "demo",
            "defaults": {
                "prompt": EXTRACTION_PROMPT,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "invoice", "schema": EXTRACTION_SCHEMA},
                },
                "temperature": 0.0,
                "max_tokens": MAX_ANSWER_TOKENS,
            },
        },
    )


def _observe(client: Client, batch_id: str) -> Iterator[dict[str, Any]]:
    while True:
        batch = client.batch(batch_id)
        yield batch
        if batch["status"] in ENDED_JOB:
            return
        time.sleep(POLL_INTERVAL_S)  # the HTTP API has no way to wait for a job


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

"""Take the picture of the dashboard in docs/: the product at work, with the demo model, on a temporary directory.

    python scripts/screenshot.py                 # writes docs/dashboard.png
    python scripts/screenshot.py --review DIR    # every page too: wide and on a phone, light and dark

It needs Chromium with its driver, and the extra `test`.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from selenium.webdriver import Chrome

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from bros_batch.client.chat_stream import ask  # noqa: E402
from bros_batch.client.http_client import Client  # noqa: E402
from bros_batch.demo.documents import Document, generate_documents  # noqa: E402
from bros_batch.demo.prompts import CHAT_PROMPT, EXTRACTION_PROMPT, questions  # noqa: E402
from tests.bros_batch.web.browser import browser  # noqa: E402

PICTURE = ROOT / "docs" / "dashboard.png"
WIDTH, JOBS_HEIGHT, ENGINE_HEIGHT, GAP = 1200, 440, 796, 24
MAX_PICTURE_BYTES = 150_000
CHATTERS = 2
LONG_JOB, SHOWN_DONE = 2000, 600  # documents of the job that is shown running, and how many are done by then
MAX_WAIT_S = 200
PAUSE_S = 1.5  # between two chats of one person
SEED = 20_261
REVIEWED = ((1440, 1000), (390, 844))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--review", type=Path, metavar="DIR", help="also save every page in all its forms")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="bros-screenshot-") as directory,
        services(Path(directory)) as url,
        Client(url) as client,
    ):
        job_id = submit_jobs(client, Path(directory))
        with chatting(url), browser(width=WIDTH, height=ENGINE_HEIGHT) as chrome:
            chrome.get(f"{url}/engine")
            wait_until_shown(client, job_id)
            save_picture(
                [shoot(chrome, f"{url}/", JOBS_HEIGHT), shoot(chrome, f"{url}/engine", ENGINE_HEIGHT)]
            )
            if options.review:
                review(url, job_id, options.review)


@contextmanager
def services(directory: Path) -> Iterator[str]:
    """Run `bros-batch up` on a free port, and yield its URL."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("BROS_")}
    flags = ["--data-dir", str(directory / "data"), "--port", "0", "--json"]
    # The engine is named after the host by default, which is of no interest to a reader.
    command = [sys.executable, "-m", "cli", "up", *flags, "--", "--engine-id", "engine-0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "the services did not start"
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            time.sleep(1)
            process.terminate()  # the second one does not wait for open work


def submit_jobs(client: Client, directory: Path) -> str:
    """Submit three jobs: one that ends with a few errors, one that is paused, and a long one, whose id is returned."""
    documents = generate_documents(24 + 300 + LONG_JOB, SEED)
    path = directory / "small.jsonl"
    write(path, itertools.islice(documents, 24))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"id": "scan-17"\n{"id": "scan-18", "txt": "no text"}\n')
    first = submit(client, path, "invoices, third quarter")
    while client.batch(first)["status"] != "completed":
        time.sleep(0.2)
    receipts, archive = directory / "receipts.jsonl", directory / "archive.jsonl"
    write(receipts, itertools.islice(documents, 300))
    write(archive, documents)
    long = submit(client, archive, "purchase orders, archive")
    while not client.batch(long)["request_counts"]["completed"]:
        time.sleep(0.2)
    later = submit(client, receipts, "receipts, backlog")
    while client.batch(later)["status"] == "validating":
        time.sleep(0.05)
    client.post(f"/v1/batches/{later}/pause")
    return long


def wait_until_shown(client: Client, job_id: str) -> None:
    """Wait until the job has got as far as the picture shows it, or for MAX_WAIT_S on a slow machine."""
    end_s = time.monotonic() + MAX_WAIT_S
    while client.batch(job_id)["request_counts"]["completed"] < SHOWN_DONE and time.monotonic() < end_s:
        time.sleep(0.5)


def submit(client: Client, path: Path, name: str) -> str:
    with path.open("rb") as file:
        uploaded = client.upload(path.name, file)
    body = {
        "input_file_id": uploaded["id"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "name": name,
        "defaults": {"prompt": EXTRACTION_PROMPT, "temperature": 0.0, "max_tokens": 128},
    }
    return str(client.post("/v1/batches", body)["id"])


def write(path: Path, documents: Iterator[Document]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"id": document.document_id, "text": document.text}) + "\n")


@contextmanager
def chatting(url: str) -> Iterator[None]:
    """Let a few people ask about documents for the duration of the block."""
    over = threading.Event()

    def chat(person: int) -> None:
        with Client(url) as client:
            model = client.served_model()
            for document in generate_documents(10_000, SEED + 1 + person):
                if over.wait(PAUSE_S):
                    return
                content = CHAT_PROMPT.format(question=questions(document)[0][0], text=document.text)
                message = {"role": "user", "content": content}
                ask(client, {"model": model, "messages": [message], "max_tokens": 128}, lambda piece: None)

    people = [threading.Thread(target=chat, args=(number,)) for number in range(CHATTERS)]
    for person in people:
        person.start()
    try:
        yield
    finally:
        over.set()
        for person in people:
            person.join()


def shoot(chrome: Chrome, url: str, height: int) -> Image.Image:
    """The upper `height` pixels of a page with live data."""
    chrome.get(url)
    time.sleep(2.5)
    chrome.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    chrome.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    return Image.open(io.BytesIO(chrome.get_screenshot_as_png())).convert("RGB")


def save_picture(parts: Sequence[Image.Image]) -> None:
    """The parts above each other, in few colors, in docs/."""
    height = sum(part.height for part in parts) + GAP * (len(parts) - 1)
    picture = Image.new("RGB", (WIDTH, height), "white")
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height + GAP
    PICTURE.parent.mkdir(exist_ok=True)
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(PICTURE, optimize=True)
    size = PICTURE.stat().st_size
    print(f"{PICTURE}: {picture.width} x {picture.height}, {size / 1000:.0f} KB")
    assert size < MAX_PICTURE_BYTES, "the picture is too large for a README"


def review(url: str, job_id: str, directory: Path) -> None:
    """Save every page whole: wide and narrow, light and dark."""
    directory.mkdir(parents=True, exist_ok=True)
    with Client(url) as client:
        ended = next(job["id"] for job in client.batches() if job["status"] == "completed")
    paths = {
        "jobs": "/",
        "job": f"/jobs/{job_id}",
        "ended": f"/jobs/{ended}",
        "engine": "/engine",
        "chat": "/chat",
        "404": "/nowhere",
    }
    for (width, height), dark in itertools.product(REVIEWED, (False, True)):
        with browser(width=width, height=height, dark=dark) as chrome:
            for name, path in paths.items():
                chrome.get(url + path)
                time.sleep(2.5)
                if name == "chat":
                    talk(chrome)
                whole: Any = chrome.execute_cdp_cmd(
                    "Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"}
                )
                target = directory / f"{name}-{width}-{'dark' if dark else 'light'}.png"
                target.write_bytes(base64.b64decode(whole["data"]))


def talk(chrome: Chrome) -> None:
    """Ask about an invoice on the chat page."""
    field = chrome.find_element("css selector", "textarea")
    field.send_keys("What is the total? Invoice from ACME Ltd. Date: 3 March 2026. Total: EUR 12.50\n")
    time.sleep(4)


if __name__ == "__main__":
    main()

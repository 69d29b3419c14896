"""The services under test, and what must hold whatever is sent to them."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil
from redis import Redis

from tests.services import wait_for
from tests.up_process import Up

# How much the memory of a process may grow, in MiB, from when it was ready until all tests have run. Caches fill and
# allocators keep what they once had, so it is not nothing; a leak or an unbounded request exceeds it.
MOST_GROWTH_MIB = {"web": 300, "engine": 300, "worker": 200, "beat": 50, "redis": 100}
INNOCENT = {
    "model": "tiny",
    "messages": [
        {"role": "user", "content": "Acme GmbH\nInvoice 4711\nTotal: 12.50 EUR\n\nWhat is the total?"}
    ],
    "temperature": 0,
    "max_tokens": 24,
}
TRACEBACK = re.compile(r"^Traceback \(most recent call last\)", re.MULTILINE)


class Target:
    """An `up` that is ready. `sent` counts the inputs by kind."""

    def __init__(self, up: Up) -> None:
        state = up.state()
        self.up = up
        self.url: str = state["url"]
        self.engine_url: str = state["engine_url"]
        self.sent: Counter[str] = Counter()
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=30)
        self.redis = Redis(unix_socket_path=state["redis_url"].removeprefix("unix://"))
        self._children: dict[str, int] = state["children"]
        self._expected = self.innocent_chat()
        self._memory_mib = self._memory()

    def innocent_chat(self) -> dict[str, Any]:
        """The answer to a greedy chat, which nothing else may change."""
        answer = self.http.post("/v1/chat/completions", json=INNOCENT).raise_for_status().json()
        choice: dict[str, Any] = answer["choices"][0]
        return choice

    def check(self) -> None:
        """Check that no process has ended, that no log has a traceback, that memory is bounded, and that an innocent
        chat is answered as before. Raises AssertionError."""
        assert self.up.process.poll() is None, self.up.output()
        assert self.up.state()["children"] == self._children, f"a process ended:\n{self.up.output()}"
        for path in self._logs():
            text = path.read_text(errors="replace")
            assert not TRACEBACK.search(text), f"{path.name} has a traceback:\n{text[-5000:]}"
        self.check_innocent_chat()
        grown = {name: self._memory()[name] - before for name, before in self._memory_mib.items()}
        assert all(mib <= MOST_GROWTH_MIB[name] for name, mib in grown.items()), grown

    def check_innocent_chat(self) -> None:
        """Check that an innocent chat is answered as before."""
        assert self.innocent_chat() == self._expected

    def close(self) -> None:
        """Close the connections. Append what was sent, and by how much the processes grew, to the file that
        `scripts/fuzz` shows."""
        self.http.close()
        self.redis.close()
        grown = {name: round(self._memory()[name] - before) for name, before in self._memory_mib.items()}
        if path := os.environ.get("FUZZ_REPORT"):
            with Path(path).open("a") as file:
                file.write(f"inputs {dict(self.sent)}, growth in MiB {grown}\n")

    def is_idle(self) -> bool:
        """Whether no request is open at the engine."""
        text = self.http.get("/metrics").text
        open_requests = re.findall(r"^bros_num_requests_(?:running|waiting)\{.*\} (\S+)$", text, re.MULTILINE)
        return bool(open_requests) and not any(map(float, open_requests))

    def wait_until_idle(self) -> None:
        wait_for(self.is_idle, "an idle engine", timeout_s=240)

    def _memory(self) -> dict[str, float]:
        """Resident memory in MiB per service, with its own children."""
        found = {}
        for name, pid in self._children.items():
            process = psutil.Process(pid)
            family = [process, *process.children(recursive=True)]
            found[name] = sum(each.memory_info().rss for each in family) / 2**20
        return found

    def _logs(self) -> list[Any]:
        return sorted((self.up.data_dir / "logs").glob("*.log"))

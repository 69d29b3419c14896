"""Progress of a running job: a live line on a terminal, a bar in a notebook, occasional plain lines elsewhere."""

from __future__ import annotations

import html
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from bros_batch.client.http_client import Client, ServiceUnreachable
from bros_batch.client.plain_text import safe, time_left
from bros_batch.db.states import ENDED_JOB
from bros_batch.item_counts import ItemCounts

# The HTTP API has no way to wait for a job, so it is polled.
POLL_INTERVAL_S = 0.5
PLAIN_LINE_INTERVAL_S = 10.0
RATE_WINDOW_S = 20.0
# How long the server may be unreachable, for example during a restart, before the command gives up.
MAX_OUTAGE_S = 60.0

STATUS_WORDS = {
    "validating": "reading the file",
    "in_progress": "running",
    "finalizing": "writing the results",
    "cancelling": "cancelling",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a job at one point in time.

    The rate covers the last RATE_WINDOW_S; `forecast` is that of the batch object. Both are None until they are known.
    """

    status: str
    counts: ItemCounts
    tokens_per_s: float | None
    forecast: dict[str, float] | None

    def line(self) -> str:
        """Describe the progress in words, such as `running, 20 of 100 done, about 1 min 20 s (1 min to 2 min) left`."""
        parts = [
            STATUS_WORDS.get(self.status, self.status),
            self.counts.of_total(),
            *self.counts.shortfalls(),
        ]
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:,.0f} tokens/s")
        if self.forecast is not None:
            parts.append(f"{time_left(self.forecast)} left")
        return ", ".join(parts)


class Meter:
    """Computes the rate of tokens over a sliding window from successive batch objects."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def read(self, batch: dict[str, Any], now_s: float) -> Progress:
        counts = ItemCounts.of_batch(batch)
        tokens = int((batch.get("usage") or {}).get("total_tokens") or 0)
        self._seen.append((now_s, counts.ended, tokens))
        while len(self._seen) > 2 and now_s - self._seen[0][0] > RATE_WINDOW_S:
            self._seen.popleft()
        then_s, then_ended, then_tokens = self._seen[0]
        tokens_per_s = None
        if counts.ended > then_ended and batch["status"] == "in_progress":
            tokens_per_s = (tokens - then_tokens) / (now_s - then_s) if tokens > then_tokens else None
        return Progress(batch["status"], counts, tokens_per_s, batch.get("forecast"))


class JobWatch:
    """Asks for a batch again and again. A server that is unreachable for a while leaves it as it was."""

    def __init__(self, client: Client, batch: dict[str, Any]) -> None:
        self._client = client
        self._batch = batch
        self._unreachable_since_s: float | None = None

    def poll(self) -> dict[str, Any]:
        """Return the batch as it is now. Raises ServiceUnreachable after MAX_OUTAGE_S."""
        try:
            self._batch = self._client.batch(self._batch["id"])
            self._unreachable_since_s = None
        except ServiceUnreachable:
            self._unreachable_since_s = self._unreachable_since_s or time.monotonic()
            if time.monotonic() - self._unreachable_since_s > MAX_OUTAGE_S:
                raise
        return self._batch


def observe(client: Client, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Poll a batch and yield it each time, until it has ended."""
    watch = JobWatch(client, batch)
    while True:
        yield batch
        if batch["status"] in ENDED_JOB:
            return
        time.sleep(POLL_INTERVAL_S)
        batch = watch.poll()


def follow(
    client: Client,
    batch: dict[str, Any],
    console: Console,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Show the progress of a job until it has ended. Returns its final batch object."""
    meter = Meter()
    with progress_display(batch, console) as show:
        for seen in observe(client, batch):
            batch = seen
            progress = meter.read(batch, time.monotonic())
            show(progress)
            on_progress(progress)
    return batch


@contextmanager
def progress_display(batch: dict[str, Any], console: Console | None) -> Iterator[Callable[[Progress], None]]:
    """Yield a function that shows the progress of a job: in a notebook, on a terminal, or as occasional lines."""
    name = safe(batch.get("name") or batch["id"])
    if console is None:
        yield lambda progress: None
        return
    if console.is_jupyter:
        yield _notebook_display(name)
        return
    if console.is_terminal:
        with Live(console=console, refresh_per_second=8, transient=True) as live:
            yield lambda progress: live.update(live_line(name, progress))
        return
    last: tuple[str, float] = ("", 0.0)

    def show(progress: Progress) -> None:
        nonlocal last
        now_s = time.monotonic()
        if progress.status != last[0] or now_s - last[1] >= PLAIN_LINE_INTERVAL_S:
            last = (progress.status, now_s)
            console.print(f"{name}: {progress.line()}", markup=False, highlight=False, soft_wrap=True)

    yield show


def visible_console() -> Console | None:
    """Return a console on stderr if somebody looks at it: in a terminal or a notebook."""
    console = Console(stderr=True)
    return console if console.is_terminal or console.is_jupyter else None


def _notebook_display(name: str) -> Callable[[Progress], None]:
    """Return a function that shows progress in one output of a notebook's cell. It needs no widgets."""
    from IPython.display import display

    shown = display({"text/plain": name}, raw=True, display_id=True)

    def show(progress: Progress) -> None:
        text = f"{name}: {progress.line()}"
        bar = f'<progress value="{progress.counts.ended}" max="{progress.counts.total or 1}"></progress>'
        shown.update({"text/plain": text, "text/html": f"{bar} {html.escape(text)}"}, raw=True)

    return show


def live_line(name: str, progress: Progress) -> Table:
    """Lay out a progress bar with the job's name and its numbers on one line."""
    grid = Table.grid(padding=(0, 1), expand=False)
    total = progress.counts.total or None
    bar = ProgressBar(total, progress.counts.ended, width=24, pulse=total is None)
    grid.add_row(name, bar, progress.line())
    return grid

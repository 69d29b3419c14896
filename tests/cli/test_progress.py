"""Progress: rates, remaining time and how they are shown."""

from __future__ import annotations

import json

import pytest

from bros_batch.client.plain_text import duration, safe
from bros_batch.client.progress import Meter
from cli.output_file import write_lines

FORECAST = {"p10": 70.0, "p50": 80.0, "p90": 95.0}


def batch(
    status: str = "in_progress", done: int = 0, failed: int = 0, tokens: int = 0, forecast: dict | None = None
) -> dict:
    counts = {"total": 100, "completed": done, "failed": failed}
    items = {"succeeded": done, "failed": failed, "cancelled": 0, "expired": 0}
    return {
        "id": "batch_1",
        "name": "docs",
        "status": status,
        "request_counts": counts,
        "item_counts": items,
        "usage": {"total_tokens": tokens},
        "forecast": forecast,
    }


def test_rates_are_over_the_window():
    meter = Meter()
    assert meter.read(batch("validating"), 0.0).tokens_per_s is None
    meter.read(batch(done=0), 10.0)
    progress = meter.read(batch(done=18, failed=2, tokens=4000, forecast=FORECAST), 20.0)
    assert progress.tokens_per_s == 200
    left = "about 1 min 20 s (1 min 10 s to 1 min 35 s) left"
    assert progress.line() == f"running, 18 of 100 done, 2 failed, 200 tokens/s, {left}"
    later = meter.read(batch(done=60, tokens=9000), 40.0)
    assert later.tokens_per_s == 250, "the first observation has left the window"


def test_no_rates_without_progress():
    meter = Meter()
    meter.read(batch(done=5, tokens=10), 0.0)
    progress = meter.read(batch(done=5, tokens=10), 5.0)
    assert (progress.tokens_per_s, progress.forecast) == (None, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (90_000, "1 d 1 h"), (-3, "0 s")],
)
def test_durations_as_text(seconds, text):
    assert duration(seconds) == text


def test_an_output_file_appears_only_once_complete(tmp_path):
    path = tmp_path / "out.jsonl"

    def lines():
        yield b"1\n"
        raise OSError("the connection broke")

    with pytest.raises(OSError, match="broke"):
        write_lines(lines(), str(path))
    assert list(tmp_path.iterdir()) == []
    assert write_lines([b"1\n", b"2\n"], str(path)) == 2
    assert path.read_bytes() == b"1\n2\n"


def test_untrusted_text_cannot_rewrite_the_terminal():
    assert safe("a\x1b[2Jb\nc") == "a�[2Jb\nc"
    assert safe(json.loads('"\\u202e"')) == "�"

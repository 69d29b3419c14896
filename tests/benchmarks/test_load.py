"""The load of the serving benchmark has the stated properties, and its measurements add up. No times are asserted."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from benchmarks.serving.__main__ import measure
from benchmarks.serving.load import Lengths, Load, chats, documents
from benchmarks.serving.own_server import Server, own_server
from benchmarks.serving.phase import Timing
from benchmarks.serving.report import Limits, numbers, percentiles
from tests.factories_text import make_text_model

MODEL = "sim"
# In a phase of about a second, documents take several steps and several chats arrive.
SMALL = Load(
    token_ids=(259, 380),
    be_in_flight=6,
    be_prompt=Lengths(40, 0.6, 4, 100),
    be_output=Lengths(12, 0.3, 4, 24),
    rt_rate=30.0,
    rt_prompt=Lengths(20, 0.8, 4, 60),
    rt_output=Lengths(8, 0.5, 2, 16),
)
BRIEF = Timing(window_s=0.7, warm_up_s=0.2, lead_in_s=20, drain_s=20)


def mean_and_cv(values: list[float]) -> tuple[float, float]:
    mean = statistics.fmean(values)
    return mean, statistics.stdev(values) / mean


def test_every_server_gets_the_same_load() -> None:
    assert chats(Load(), "both", 60) == chats(Load(), "both", 60)
    first, second = (list(itertools.islice(documents(Load(), "be"), 50)) for _ in range(2))
    assert first == second
    assert chats(Load(seed=Load().seed + 1), "both", 60) != chats(Load(), "both", 60)


def test_a_seed_gives_the_same_load_in_another_process() -> None:
    program = (
        "from benchmarks.serving.load import *; print(chats(Load(), 'rt', 5), next(documents(Load(), 'rt')))"
    )
    printed = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert printed.strip() == f"{chats(Load(), 'rt', 5)} {next(documents(Load(), 'rt'))}"


def test_phases_and_rounds_have_equal_lengths_and_times_but_different_prompts() -> None:
    alone, both = chats(Load(), "rt", 60), chats(Load(), "both", 60)

    def shape(ask: object) -> tuple[float, int, int]:
        return ask.due_s, len(ask.token_ids), ask.num_tokens  # type: ignore[attr-defined]

    assert list(map(shape, alone)) == list(map(shape, both))
    assert not {tuple(ask.token_ids) for ask in alone} & {tuple(ask.token_ids) for ask in both}
    again = chats(Load(round=1), "both", 60)
    assert list(map(shape, again)) == list(map(shape, both))
    assert not {tuple(ask.token_ids) for ask in again} & {tuple(ask.token_ids) for ask in both}


def test_a_longer_schedule_begins_like_a_shorter_one() -> None:
    short, long = chats(Load(), "rt", 20), chats(Load(), "rt", 60)
    assert long[: len(short)] == short
    assert short[-1].due_s < 20 <= long[len(short)].due_s


def test_lengths_have_the_stated_means_and_variations() -> None:
    asks = list(itertools.islice(documents(Load(), "be"), 5000))
    assert mean_and_cv([len(ask.token_ids) for ask in asks]) == pytest.approx((309, 0.6), rel=0.05)
    assert mean_and_cv([ask.num_tokens for ask in asks]) == pytest.approx((48, 0.3), rel=0.05)
    timetable = chats(Load(), "rt", 3000)
    assert mean_and_cv([len(ask.token_ids) for ask in timetable]) == pytest.approx((46, 0.8), rel=0.05)
    assert mean_and_cv([ask.num_tokens for ask in timetable]) == pytest.approx((24, 0.5), rel=0.05)
    assert all(259 <= token_id < 8192 for ask in asks[:100] for token_id in ask.token_ids)


def test_chats_arrive_at_the_stated_rate_in_bursts() -> None:
    due_s = [ask.due_s for ask in chats(Load(), "rt", 10_000)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(due_s)]
    assert mean_and_cv(gaps) == pytest.approx((0.5, 2.0), rel=0.08)


def test_percentiles() -> None:
    assert percentiles([]) == {}
    assert percentiles(range(101)) == {"mean": 50, "p50": 50, "p90": 90, "p99": 99}
    assert percentiles([3, 1])["p50"] == 2


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = make_text_model(tmp_path_factory.mktemp("model"))
    flags = "--runner simulated --simulated-step-s 0.002 --max-num-seqs 16"
    with own_server(Path(model), MODEL, flags) as running:
        yield running


def measured(
    server: Server, phases: list[str], load: Load, timing: Timing, limits: Limits, rounds: int = 1
) -> dict[str, Any]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(measure(server, MODEL, phases, load, timing, limits, rounds))
    return result["phases"]  # type: ignore[no-any-return]


def test_counts_add_up(server: Server) -> None:
    phases = measured(server, ["rt", "be", "both"], SMALL, BRIEF, Limits(60_000, 60_000))
    assert list(phases) == ["rt", "be", "both"]
    assert "be" not in phases["rt"] and "rt" not in phases["be"]

    due = [ask for ask in chats(SMALL, "rt", 0.9) if ask.due_s >= 0.2]
    for phase in ("rt", "both"):
        rt = phases[phase]["rt"]
        assert rt["errors"] == {}
        assert rt["requests"] == rt["answered"] == len(due) > 0
        assert rt["output_tokens"] == sum(ask.num_tokens for ask in due)
        assert rt["prompt_tokens"] == sum(len(ask.token_ids) for ask in due)
        assert rt["attainment"] == 1
        assert len(numbers(rt["samples"]["ttft_ms"])) == len(due)

    for phase in ("be", "both"):
        be = phases[phase]["be"]
        assert be["errors"] == {} and be["documents"] > 0
        # The server sends several bulk tokens at once.
        assert 1 < be["tokens_per_piece"] <= SMALL.be_output.most
        assert be["output_tokens"] == pytest.approx(be["output_tokens_per_s"] * BRIEF.window_s, abs=1)


def test_rounds_are_pooled(server: Server) -> None:
    both = measured(server, ["both"], SMALL, BRIEF, Limits(60_000, 60_000), rounds=2)["both"]
    due = [
        ask.due_s - 0.2 + 0.7 * i for i in range(2) for ask in chats(SMALL, "both", 0.9) if ask.due_s >= 0.2
    ]
    assert both["window_s"] == pytest.approx(2 * BRIEF.window_s)
    assert both["rt"]["requests"] == both["rt"]["answered"] == len(due)
    assert numbers(both["rt"]["samples"]["due_s"]) == pytest.approx(due, abs=0.001)
    of_windows = both["be"]["output_tokens_per_s_of_windows"]
    assert len(of_windows) == 2
    assert both["be"]["output_tokens_per_s"] == pytest.approx(sum(of_windows) / 2, abs=0.01)
    assert both["counters"]["bros_step_seconds_count"] > 0


def test_a_rejected_request_is_an_error_and_misses_the_slo(server: Server) -> None:
    too_long = Load(
        token_ids=(259, 380), rt_rate=30.0, rt_prompt=Lengths(3000, 0.1, 2500, 4000), be_in_flight=1
    )
    timing = Timing(window_s=0.5, warm_up_s=0.0, lead_in_s=0.0, drain_s=20)
    rt = measured(server, ["rt"], too_long, timing, Limits())["rt"]["rt"]
    assert rt["requests"] == sum(rt["errors"].values()) > 0
    assert all(error.startswith("HTTP 400") or error == "others" for error in rt["errors"])
    assert (rt["answered"], rt["attainment"], rt["ttft_ms"]) == (0, 0, {})

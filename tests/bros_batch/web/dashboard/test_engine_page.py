"""The engine page: rates and charts from the engine's counters, and the picture of KV memory."""

from __future__ import annotations

import re
from typing import Any

import pytest

from bros_batch.web.dashboard.chart import WINDOW_S, Chart, Series, chart
from bros_batch.web.dashboard.engine_page import charts, engine_page
from bros_batch.web.dashboard.history import SECONDS_KEPT_S, EngineHistory, Point, with_gaps
from bros_batch.web.dashboard.kv_memory import memory_picture
from bros_batch.web.dashboard.rendering import ENVIRONMENT, fragments
from bros_batch.web.formats import milliseconds, per_second, percent


def stats(steps: int, rt_tokens: int, **more: Any) -> dict[str, Any]:
    return {
        "steps": steps,
        "step_time": {"sum_s": 0.01 * steps},
        "lanes": {"rt": {"generated_tokens": rt_tokens, "slo": {"recent_ratio": None}}, "be": {}},
        "restored_tokens": {"copy": 10 * steps},
        "step_cap_s": 0.25,
        **more,
    }


def test_counters_become_rates() -> None:
    history = EngineHistory()
    history.observe(100.0, stats(10, 50))
    history.observe(100.1, stats(11, 60))
    history.observe(102.0, stats(30, 90))
    first, last = history.seconds[-2].values, history.seconds[-1].values
    assert (first["rt_tokens"], first["cap_s"]) == (None, 0.25)
    assert last["rt_tokens"] == 20.0
    assert last["copied"] == 100.0
    assert last["step_s"] == pytest.approx(0.01)
    assert (last["be_tokens"], last["attainment"], last["recomputed"]) == (None, None, None)


def test_a_restarted_engine_and_a_long_gap_break_the_line() -> None:
    history = EngineHistory()
    for now_s, steps in ((0.0, 10), (1.0, 20), (2.0, 3), (3.0, 4), (60.0, 5), (61.0, 6)):
        history.observe(now_s, stats(steps, 10 * steps))
    known = [
        (point.at_s, point.values["rt_tokens"]) for point in history.seconds if "rt_tokens" in point.values
    ]
    assert known == [(0.0, None), (1.0, 100.0), (2.0, None), (3.0, 10.0), (60.0, None), (61.0, 10.0)]
    drawn = chart("Tokens", [Series("cap_s", "cap", "rt")], list(history.seconds), milliseconds)
    assert len(drawn.lines) == 3


def test_the_window_moves() -> None:
    history = EngineHistory()
    for second in range(500):
        history.observe(float(second), stats(second, second))
    assert SECONDS_KEPT_S <= len(history.seconds) <= SECONDS_KEPT_S + 2
    drawn = chart("Tokens", [Series("rt_tokens", "rt", "rt")], list(history.seconds), per_second)
    xs = [float(x) for _, line in drawn.lines for x in re.findall(r"([\d.-]+),[\d.]+", line)]
    assert (min(xs), max(xs)) == (-600 / WINDOW_S, 600.0)


def test_a_clock_that_is_set_back_replaces_what_comes_after() -> None:
    history = EngineHistory()
    for step, at_s in enumerate((*range(100), *range(50, 60))):
        history.observe(float(at_s), stats(step, step))
    times = [point.at_s for point in history.seconds]
    assert times == sorted(times)
    assert times[-1] == 59.0


def test_minutes_are_means_and_are_loaded_again() -> None:
    history = EngineHistory()
    ended = [history.observe(float(second), stats(second, 10 * second)) for second in range(130)]
    first, second = (minute for minute in ended if minute is not None)
    assert (first.at_s, second.at_s) == (0.0, 60.0)
    assert first.values["rt_tokens"] == pytest.approx(10.0)
    assert first.values["cap_s"] == 0.25
    again = EngineHistory()
    again.load(Point(each.at_s, dict(each.values)) for each in history.minutes)
    for each in (history, again):
        (drawn,) = (each for each in charts(each, "1h") if each.title == "Output tokens")
        assert drawn.legend[0] == ("rt", "chat", "10/s")
        assert (drawn.begin, drawn.end) == ("1 h ago", "now")
    with_hole = with_gaps([*history.minutes, Point(6000.0, {"rt_tokens": 1.0})])
    assert [point.values.get("rt_tokens") for point in with_hole][2:] == [None, 1.0]


def html_of(drawn: Chart) -> str:
    block = ENVIRONMENT.get_template("engine.html").blocks["charts"]
    context = ENVIRONMENT.get_template("engine.html").new_context(
        {"charts": [drawn], "spans": {}, "span": ""}
    )
    return "".join(block(context))


def test_a_chart_shows_its_scale_and_newest_values() -> None:
    history = EngineHistory()
    history.observe(0.0, stats(1, 0))
    history.observe(1.0, stats(2, 1234))
    drawn = html_of(chart("A <b>", [Series("rt_tokens", "chat", "rt")], list(history.seconds), per_second))
    assert "A &lt;b&gt;" in drawn
    assert '<span class="top">1\u202f500/s</span>' in drawn
    assert "chat <b>1\u202f234/s</b>" in drawn
    assert drawn.count("<polyline") == 1
    assert "–" in html_of(chart("Empty", [Series("rt_tokens", "chat", "rt")], [], per_second))


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (milliseconds(0.00042), "0.42 ms"),
        (milliseconds(0.0123), "12.3 ms"),
        (milliseconds(0.25), "250 ms"),
        (milliseconds(1.254), "1.25 s"),
        (percent(0.0), "0 %"),
        (percent(0.9534), "95.3 %"),
        (percent(1.0), "100 %"),
        (per_second(0.25), "0.2/s"),
        (per_second(3.0), "3/s"),
        (per_second(1e6), "1\u202f000\u202f000/s"),
    ],
)
def test_numbers_for_people(shown: str, words: str) -> None:
    assert shown == words


def test_memory_is_drawn_from_both_sides() -> None:
    """Five blocks in cells of two; the last cell has one."""
    memory = {
        "block_size": 16, "blocks_per_cell": 2, "left": [8, 0, 16], "right": [16, 0, 0], "cached": [0, 32, 0],
    }  # fmt: skip
    page = engine_page("engine-0", "tiny", {"memory": memory, "kv_blocks": 5}, EngineHistory())
    drawn = fragments(page)["memory"]
    assert re.findall(r"<i(?: class=\"([^\"]*)\")?>", drawn) == ["l5 r10", "c20", "l20"]  # in steps of 5%
    assert "chat <b>30.0 %</b>" in drawn
    assert "prefix cache <b>40.0 %</b>" in drawn
    assert "free <b>10.0 %</b>" in drawn
    assert "Each cell is 2 blocks of 16 tokens; there are 5 blocks." in drawn
    assert "Each cell is one block" in memory_picture({**memory, "blocks_per_cell": 1}, 3).scale


def test_what_bulk_costs_chats_is_a_factor() -> None:
    slowdown = {"ttft": {"p99": 0.046}, "tpot": {"p99": 46.97}}
    page = engine_page("engine-0", "tiny", {"lanes": {"rt": {"slowdown": slowdown}}}, EngineHistory())
    lanes = fragments(page)["lanes"]
    assert "<dt>First token beside bulk p99</dt><dd>1.05 ×</dd>" in lanes
    assert "<dt>Next token beside bulk p99</dt><dd>48 ×</dd>" in lanes


def test_a_little_memory_is_shown_too() -> None:
    memory = {"block_size": 16, "blocks_per_cell": 100, "left": [1], "right": [0], "cached": [1590]}
    assert memory_picture(memory, 100).cells == ["l1 c20"]

"""Trace files: each line becomes an arrival, and an error names the invalid line."""

from __future__ import annotations

import pytest

from engine.core.terms import SLO, Lane
from engine.sim.feed import Limits
from engine.sim.replay import replay
from engine.sim.scenario import trace_load
from engine.sim.traces import trace_file
from engine.sim.traces.arrival import Arrival
from engine.sim.traces.trace_file import TraceError
from tests.engine.sim.loads import setup

RT = '{"arrival_s": 0.5, "lane": "rt", "prompt_tokens": 20, "output_tokens": 3, "ttft_s": 0.2}'
BE = (
    '{"arrival_s": 0.5, "lane": "be", "prompt_tokens": 40, "output_tokens": 4, "priority": 2, "deadline_s": 9.5, '
    '"prefix": "a", "prefix_tokens": 32}'
)


@pytest.fixture
def trace(tmp_path):
    def write(*lines: str):
        path = tmp_path / "trace.jsonl"
        path.write_text("\n".join(lines))
        return path

    return write


def test_lines_become_arrivals(trace):
    path = trace(BE, "", RT, RT)
    default = SLO(1.0, 0.1)
    chat = Arrival(0.5, Lane.RT, 20, 3, SLO(0.2, 0.1))
    assert list(trace_file.arrivals(path, Lane.RT, default)) == [chat, chat]
    assert list(trace_file.arrivals(path, Lane.BE, default)) == [
        Arrival(0.5, Lane.BE, 40, 4, None, 2, 9.5, "a", 32)
    ]
    facts = trace_file.examine(path)
    assert facts.num_requests == {Lane.RT: 2, Lane.BE: 1}
    assert facts.most_output_tokens == 4
    assert facts.has_prefixes


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([RT, "{"], r"trace.jsonl, line 2: .*truncated"),
        ([RT, "[]"], r"line 2: Expected `object`"),
        ([RT, '{"lane": "rt"}'], r"line 2: .*missing required field `arrival_s`"),
        (["", RT.replace('"rt"', '"chat"')], r"line 2: Invalid enum value 'chat' - at `\$.lane`"),
        ([RT.replace("20", "0")], r"line 1: Expected `int` >= 1 - at `\$.prompt_tokens`"),
        ([RT.replace("20", '"many"')], r"line 1: Expected `int`, got `str` - at `\$.prompt_tokens`"),
        ([RT.replace("ttft_s", "tftt_s")], r"line 1: .*unknown field `tftt_s`"),
        ([RT.replace("0.5", "-1")], r"line 1: Expected `float` >= 0.0"),
        ([RT, RT.replace("0.5", "0.25")], r"line 2: it arrives at 0.25 s, before the line above"),
        (
            [BE.replace(', "prefix_tokens": 32', "")],
            r"line 1: prefix and prefix_tokens must be given together",
        ),
        ([BE.replace("32", "41")], r"line 1: its prefix of 41 tokens is longer than its prompt of 40"),
        (["", ""], r"there is no request in this file"),
    ],
)
def test_an_error_names_the_invalid_line(trace, lines, sentence):
    with pytest.raises(TraceError, match=sentence):
        trace_file.examine(trace(*lines))


def test_invalid_utf8_is_an_invalid_line(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(RT.encode() + b'\n{"lane": "\xff"}\n')
    with pytest.raises(TraceError, match="line 2"):
        trace_file.examine(path)


def test_a_trace_is_replayed(trace):
    lines = [RT.replace("0.5", str(0.1 * i)) for i in range(20)]
    engine, load = trace_load(trace(BE.replace("0.5", "0"), *lines), setup(), Limits(be_in_flight=4))
    assert engine.prefix_cache
    found = replay(engine, load)
    assert (found.rt.num_succeeded, found.be.num_succeeded) == (20, 1)
    assert (found.rt.output_tokens, found.be.output_tokens) == (60, 4)

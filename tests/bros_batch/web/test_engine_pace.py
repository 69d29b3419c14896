"""What tokens cost, from the counters of an engine whose costs are known."""

from __future__ import annotations

import random

import pytest

from bros_batch.web.engine_pace import OUTPUT_WEIGHT, EnginePace


def look(
    pace: EnginePace,
    at_s: float,
    prompt: float,
    output: float,
    running: int = 8,
    chats: int = 0,
    chat_s: float = 0.0,
) -> None:
    be = {"running": running, "generated_tokens": output, "output_tokens": output - 40}
    tpot = {"counts": [chats, 0], "sum_s": chat_s}
    lanes = {"rt": {"generated_tokens": 0, "tpot": tpot, "slo": {"recent_ratio": 1.0}}, "be": be}
    pace.observe({"computed_tokens": prompt + output, "lanes": lanes}, at_s)


def test_the_costs_of_an_engine_are_found_and_followed() -> None:
    pace, drawn = EnginePace(), random.Random(1)
    at_s = prompt = output = 0.0
    for prompt_s, output_s in ((0.0002, 0.001), (0.001, 0.002)):
        for _ in range(600):
            look(pace, at_s, prompt, output)
            new_prompt, new_output = drawn.randint(0, 2000), drawn.randint(0, 600)
            at_s += new_prompt * prompt_s + new_output * output_s
            prompt, output = prompt + new_prompt, output + new_output
        found = pace.cost()
        assert found is not None
        assert found.prompt_s == pytest.approx(prompt_s, rel=0.1)
        assert found.output_s == pytest.approx(output_s, rel=0.1)
    assert pace.running == 8
    assert pace.unfinished_tokens == 40


def test_time_without_bulk_and_an_engine_that_starts_anew_say_nothing() -> None:
    pace = EnginePace()
    look(pace, 0.0, 0, 0, running=0)
    look(pace, 2.0, 1000, 100, running=0)
    assert pace.cost() is None
    look(pace, 3.0, 1000, 100)
    look(pace, 5.0, 10, 1)
    assert pace.cost() is None


def test_what_was_never_seen_apart_has_the_usual_relation() -> None:
    pace = EnginePace()
    for second in range(10):
        look(pace, float(second), 700.0 * second, 100.0 * second)
    found = pace.cost()
    assert found is not None
    assert found.output_s / found.prompt_s == pytest.approx(OUTPUT_WEIGHT, rel=0.01)
    assert found.seconds(700, 100) == pytest.approx(1.0)


def test_chats_beside_bulk_and_alone_are_told_apart() -> None:
    pace = EnginePace()
    look(pace, 0.0, 0, 0, running=0)
    look(pace, 1.0, 0, 0, running=0, chats=2, chat_s=0.02)
    look(pace, 2.0, 100, 10, chats=3, chat_s=9.0)  # this one saw both
    look(pace, 3.0, 200, 20, chats=5, chat_s=9.1)
    assert pace.chats.alone_s == pytest.approx(0.01)
    assert pace.chats.beside_bulk_s == pytest.approx(0.05)
    assert pace.chats.in_time == 1.0

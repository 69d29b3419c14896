"""Answers that their limit of tokens cuts: a failure only in a job whose answers follow a schema."""

from __future__ import annotations

from typing import Any

import pytest

from bros_batch.db.connections import writing
from bros_batch.db.rerun import rerun_rows
from engine.wire.item_messages import Choice
from tests.bros_batch.world import World, batch_line

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
WHOLE, CUT = '{"a": 1}', '{"a": 1'


def answered(world: World, lines: list[dict[str, Any]], text: str, **job: Any) -> str:
    """A job whose items all got `text`, cut by the limit of tokens."""
    job_id = world.running(lines, **job)
    world.prepare()
    choice = Choice(world.tokenizer.encode_prompt(text), "length")
    world.engine.answer(world.engine.take(), choices=[choice])
    world.record()
    world.finalize(job_id)
    return job_id


def with_schema(**more: Any) -> dict[str, Any]:
    return {"prompt": "{text}", "response_format": FORMAT, **more}


@pytest.mark.parametrize("endpoint", ["/v1/chat/completions", "/v1/completions"])
def test_json_that_is_cut_fails_and_its_text_is_kept(world: World, endpoint: str) -> None:
    job_id = answered(world, [{"id": "x", "text": "t"}], CUT, defaults=with_schema(), endpoint=endpoint)
    job = world.check_counts(job_id)
    assert (job.succeeded, job.failed, job.output_file_id) == (0, 1, None)
    (line,) = world.file_lines(job.error_file_id)
    assert line["custom_id"] == "x"
    assert line["error"]["code"] == "output_truncated"
    number = len(world.tokenizer.encode_prompt(CUT))
    assert f"limit of {number} tokens" in line["error"]["message"]
    assert f"'max_tokens' above {number};" in line["error"]["message"]
    assert "repeated itself" in line["error"]["message"]
    choice = line["response"]["body"]["choices"][0]
    assert choice["finish_reason"] == "length"
    assert (choice["message"]["content"] if "message" in choice else choice["text"]) == CUT


def test_an_answer_that_fills_the_context_needs_a_shorter_text(world: World) -> None:
    job_id = world.running([{"text": "t"}], defaults=with_schema())
    world.prepare()
    choice = Choice(world.tokenizer.encode_prompt(CUT), "length")
    context = world.worker.model.limits.max_model_len
    world.engine.answer(world.engine.take(), choices=[choice], prompt_tokens=context - len(choice.token_ids))
    world.record()
    (item,) = world.items(job_id)
    message = item.error_message or ""
    assert f"context of {context:,} tokens" in message and "shorter text" in message
    assert "max_tokens" not in message and "repeated" not in message


def test_a_long_answer_to_a_short_text_needs_limits_of_the_answer(world: World) -> None:
    job_id = world.running([{"text": "t"}], defaults=with_schema())
    world.prepare()
    context = world.worker.model.limits.max_model_len
    token_ids = world.tokenizer.encode_prompt(CUT + "2" * context)[:context]
    choice = Choice(token_ids, "length")
    world.engine.answer(world.engine.take(), choices=[choice], prompt_tokens=context - len(token_ids))
    world.record()
    (item,) = world.items(job_id)
    assert item.error_code == "output_truncated"
    message = item.error_message or ""
    for part in (
        f"context of {context:,} tokens",
        "repeated itself",
        "maximum",
        "another model",
        "--max-tokens",
    ):
        assert part in message
    assert "shorter text" not in message


def test_json_that_ends_at_the_limit_is_a_result(world: World) -> None:
    job_id = answered(world, [{"text": "t"}], WHOLE, defaults=with_schema())
    assert world.check_counts(job_id).succeeded == 1


@pytest.mark.parametrize("format", [None, {"type": "json_object"}])
def test_without_a_schema_of_the_job_a_cut_answer_is_a_result(world: World, format: dict | None) -> None:
    job_id = answered(world, [{"text": "t"}], CUT, defaults=with_schema(response_format=format))
    assert world.check_counts(job_id).succeeded == 1


def test_a_cut_answer_of_a_batch_line_is_a_result(world: World) -> None:
    job_id = answered(world, [batch_line("a", response_format=FORMAT)], CUT)
    assert world.check_counts(job_id).succeeded == 1


def test_a_rerun_forgets_the_text_that_was_cut(world: World) -> None:
    job_id = answered(world, [{"text": "t"}], CUT, defaults=with_schema())
    with writing(world.database) as connection:
        rerun_rows(connection, job_id)
    assert [item.result for item in world.items(job_id)] == [None]
    world.prepare()
    world.engine.answer(world.engine.take(), WHOLE)
    world.record()
    job = world.check_counts(job_id)
    assert (job.succeeded, job.failed) == (1, 0)


def test_every_item_carries_the_grammar_of_its_job_or_line(world: World) -> None:
    world.running([{"text": "t"}], defaults=with_schema())
    world.running([batch_line("a", response_format=FORMAT), batch_line("b")])
    world.prepare()
    grammars = [each.item.sampling.grammar for each in world.engine.take()]
    assert grammars[0] is not None and grammars[0].kind == "json_schema"
    assert grammars == [grammars[0], grammars[0], None]


def test_a_line_with_an_unusable_schema_fails_by_its_keyword(world: World) -> None:
    wrong = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"properties": {"a": {"not": {}}}}},
    }
    job_id = world.running([batch_line("a", response_format=wrong), batch_line("b")])
    (item, _) = world.items(job_id)
    assert (item.status, item.error_code) == ("failed", "invalid_request")
    assert "'not' is not supported (at #/properties/a)" in (item.error_message or "")

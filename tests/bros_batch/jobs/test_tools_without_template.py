"""Lines of a batch with tools fail, and say why, if the model's chat template does not show tools to the model."""

from __future__ import annotations

from tests.bros_batch.world import World, batch_line

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def test_only_lines_that_may_call_fail(world: World) -> None:
    job_id = world.running([batch_line("a", tools=TOOLS), batch_line("b", tools=TOOLS, tool_choice="none")])
    world.prepare()
    taken = world.engine.take()
    assert len(taken) == 1
    world.engine.answer(taken, "Hello")
    world.record()
    world.finalize(job_id)
    job = world.job(job_id)
    (failed,) = world.file_lines(job.error_file_id)
    assert failed["custom_id"] == "a"
    assert "chat template does not support tools" in str(failed)
    (done,) = world.file_lines(job.output_file_id)
    assert done["custom_id"] == "b"

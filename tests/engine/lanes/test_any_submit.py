"""Requests over the socket with any value in any field: each is rejected or served, and a chat beside it is served.

The fields and their types are those that the protocol declares, so a new one is drawn without a change here.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from engine.lanes.pulled_item import PulledItem
from engine.runner.simulated import SimulatedRunner
from engine.wire.client import EngineClient
from engine.wire.decoding import DECODE_ERRORS
from engine.wire.item_messages import ItemRequest, decode_item_request
from engine.wire.limits import ModelLimits
from engine.wire.protocol import Finished, Rejected, Submit, Tokens
from engine.wire.request_problems import problem_with_item
from engine.wire.request_terms import Sampling
from tests.engine.lanes.raw_client import RawClient
from tests.engines import RunningEngine, running_engine
from tests.factories import run_to_end, runner_info, scheduler_for
from tests.samplings import HOSTILE_INTEGERS, HOSTILE_NUMBERS, samplings

VOCAB_SIZE = 32_000  # of the simulated model
GREEDY = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True)
OF_ANOTHER_TYPE = st.sampled_from([None, True, "text", b"bytes", [], [[]], {}, {"a": {}}, 1, 0.5])
SENDABLE_INTEGERS = st.sampled_from([n for n in HOSTILE_INTEGERS if -(2**63) <= n < 2**64])


def usual(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Values of a type that are probably valid."""
    match kind:
        case inspect.UnionType(types=types):
            return st.one_of(*map(usual, types))
        case inspect.NoneType():
            return st.none()
        case inspect.IntType():
            return st.integers(1, 4)
        case inspect.FloatType():
            return st.floats(0.001, 3600)
        case inspect.StrType():
            return st.text("abé", min_size=1, max_size=5)
        case inspect.BytesType():
            return st.binary(max_size=20)
        case inspect.LiteralType(values=literals):
            return st.sampled_from(literals)
        case inspect.ListType(item_type=inspect.IntType()):
            return st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20)
        case inspect.ListType(item_type=item_type):
            return st.lists(usual(item_type), max_size=3)
        case inspect.StructType(cls=cls, fields=fields):
            if cls is Sampling:
                return samplings(VOCAB_SIZE).filter(is_sendable).map(msgspec.to_builtins)
            return st.fixed_dictionaries({field.encode_name: usual(field.type) for field in fields})
        case _:
            raise AssertionError(f"no values are known for {kind}")


def wild(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Values of any size and of any type, as msgpack may carry them."""
    match kind:
        case inspect.UnionType(types=types):
            return st.one_of(*map(wild, types))
        case inspect.IntType():
            return SENDABLE_INTEGERS | OF_ANOTHER_TYPE
        case inspect.FloatType():
            return st.sampled_from([*HOSTILE_NUMBERS, 1e11, -1.0, 3601.0]) | OF_ANOTHER_TYPE
        case inspect.StrType():
            return st.sampled_from(["", "a" * 128, "a" * 129]) | OF_ANOTHER_TYPE
        case inspect.ListType():
            return st.lists(SENDABLE_INTEGERS, max_size=3) | st.just([5] * 9000) | OF_ANOTHER_TYPE
        case inspect.StructType(cls=cls, fields=fields) if cls is not Sampling:
            return st.fixed_dictionaries(
                {field.encode_name: usual(field.type) | wild(field.type) for field in fields}
            )
        case _:
            return OF_ANOTHER_TYPE


def is_sendable(sampling: Sampling) -> bool:
    try:
        msgspec.msgpack.encode(sampling)
    except (ValueError, OverflowError):
        return False
    return True


def maps_of(struct: type[msgspec.Struct], *skipped: str) -> st.SearchStrategy[dict[str, Any]]:
    """Maps with the fields of `struct`, up to two of which may have any value."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    types = {field.encode_name: field.type for field in info.fields if field.name not in skipped}
    required = {field.encode_name for field in info.fields if field.required} - set(skipped)

    @st.composite
    def draw(draw: st.DrawFn) -> dict[str, Any]:
        odd = draw(st.sets(st.sampled_from(sorted(types)), max_size=2))
        present = sorted({*required, *odd, *draw(st.sets(st.sampled_from(sorted(types))))})
        return {name: draw((wild if name in odd else usual)(types[name])) for name in present}

    return draw()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    with running_engine(tmp_path_factory.mktemp("engine"), max_model_len=64) as running:
        yield running


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(fields=maps_of(Submit, "id"), other=st.integers(3, 60))
def test_any_request_is_rejected_or_served_beside_others(
    engine: RunningEngine, fields: dict[str, Any], other: int
) -> None:
    async def ask() -> None:
        client, raw = await EngineClient.connect(engine.url), await RawClient.connect(engine.url)
        async with client.submit([7, other], GREEDY) as beside:
            raw.send_map(**{"type": "submit", "id": "odd", **fields})
            raw.send_map(type="submit", id="next", token_ids=[5, other], sampling=msgspec.to_builtins(GREEDY))
            ended: dict[str, Any] = {}
            token_ids: dict[str, list[int]] = {"odd": [], "next": []}
            while len(ended) < 2:
                message = await raw.receive()
                assert isinstance(message, Tokens | Finished | Rejected), message
                if isinstance(message, Tokens):
                    token_ids[message.id] += message.ids
                else:
                    ended[message.id] = message
            messages = [message async for message in beside]
        assert isinstance(ended["next"], Finished)
        assert token_ids["next"] == engine.runner.continuation([5, other], GREEDY)
        heard = [token_id for message in messages if isinstance(message, Tokens) for token_id in message.ids]
        assert heard == engine.runner.continuation([7, other], GREEDY)
        odd = ended["odd"]
        if isinstance(odd, Finished):
            assert odd.reason in ("stop", "length")
            assert len(token_ids["odd"]) == odd.output_tokens
            assert odd.output_tokens or odd.scores or odd.prompt_logprobs is not None or odd.embedding
        else:
            assert odd.code in ("invalid_request", "context_length_exceeded")
        await client.close()
        await raw.close()

    asyncio.run(ask())


@settings(max_examples=200, deadline=None)
@given(fields=maps_of(ItemRequest))
def test_any_item_is_rejected_or_has_values_that_the_core_can_compute_with(fields: dict[str, Any]) -> None:
    try:
        item = decode_item_request(msgspec.msgpack.encode(fields))
    except DECODE_ERRORS:
        return
    runner = SimulatedRunner(dataclasses.replace(runner_info(), vocab_size=VOCAB_SIZE))
    limits = ModelLimits(max_model_len=runner.info.max_model_len, vocab_size=runner.info.vocab_size)
    if (problem := problem_with_item(item, limits)) is not None:
        assert problem.code in ("invalid_request", "context_length_exceeded")
        return
    scheduler = scheduler_for(runner.info)
    pulled = PulledItem(b"1-0", item)
    for request in pulled.requests():
        scheduler.add(request)
    outputs = run_to_end(scheduler, runner)
    assert {end.reason.value for end in outputs.finished.values()} <= {"stop", "length"}
    assert len(outputs.finished) == item.n * (len(item.parts) or 1)

"""Owners share the stream by weight, counted in tokens; priorities order the jobs of one owner."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from bros_batch.db.api_keys import KeyTerms, create_api_key
from bros_batch.db.connections import writing
from bros_batch.jobs.fair_shares import FairShares, Share
from tests.bros_batch.world import World, batch_line, batch_lines


def long_lines(count: int) -> list[dict[str, Any]]:
    return [batch_line(f"long-{number}", f"{number} " + "word " * 60) for number in range(count)]


def add_key(world: World, owner: str, weight: float) -> None:
    with writing(world.database) as connection:
        create_api_key(connection, owner, terms=KeyTerms(owner, weight))


def compute(world: World, count: int) -> Counter[str]:
    """Fill the stream, compute `count` items, and return the computed prompt tokens by job."""
    world.prepare()
    taken = world.engine.take(count)
    world.engine.answer(taken)
    world.record()
    tokens: Counter[str] = Counter()
    for each in taken:
        tokens[each.item.job_id] += len(each.item.token_ids) + len(
            world.tokenizer.encode_prompt("An answer.")
        )
    return tokens


def test_weights_divide_the_computed_tokens(world: World) -> None:
    """Whichever owner has the longer rows."""
    world.settings = world.settings.model_copy(update={"queue_max_items": 200})
    add_key(world, "ann", 1)
    add_key(world, "bob", 3)
    ann = world.running(long_lines(1500), owner="ann")
    bob = world.running(batch_lines(3000), owner="bob")
    tokens: Counter[str] = Counter()
    compute(world, 100)
    for _ in range(24):
        tokens += compute(world, 50)
    assert set(world.statuses(ann)) & set(world.statuses(bob)) >= {"succeeded", "pending"}
    assert abs(tokens[bob] / tokens.total() - 0.75) < 0.03, tokens


def test_a_small_job_goes_ahead_of_what_waits_for_another_owner(world: World) -> None:
    world.running(batch_lines(2000), owner="ann")
    world.prepare()
    small = world.running(batch_lines(10), owner="bob")
    world.prepare()
    first = world.engine.take(10)
    assert {each.item.job_id for each in first} == {small}
    world.engine.answer(first)
    world.record()
    assert world.job(small).status == "finalizing"
    # What was taken back is in the stream again, once.
    world.prepare()
    rest = world.engine.take()
    assert len({each.item.item_id for each in rest}) == len(rest) == 2000


def test_an_owner_who_has_little_queued_need_not_wait_with_its_next_job(world: World) -> None:
    """When the stream was filled, the owner had no more than these rows."""
    world.running(batch_lines(2000), owner="ann")
    few = world.running(batch_lines(3), owner="bob")
    world.prepare()
    world.engine.take(1)
    again = world.running(batch_lines(10), owner="bob")
    world.prepare()
    first = [each.item.job_id for each in world.engine.take(20)]
    assert first.count(again) == 10, first
    assert world.prepare().queued == 0, "nothing is taken back once more"
    assert {*world.statuses(few), *world.statuses(again)} == {"queued"}


def test_what_only_waits_for_an_answer_takes_nothing_back(world: World) -> None:
    """The rows of the second job are those of the first one, which are being computed."""
    world.engine.weights = "0123456789abcdef"
    world.running(batch_lines(2000), owner="ann")
    lines = [batch_line(f"row-{number}", f"Row {number}", temperature=0) for number in range(3)]
    world.running(lines, owner="bob")
    world.prepare()
    assert len(world.engine.take(5)) == 5
    copy = world.running(lines, owner="bob")
    world.prepare()
    assert world.statuses(copy) == ["pending"] * 3
    waiting = world.queue_length()
    assert world.prepare().queued == 0
    assert world.queue_length() == waiting


def test_priorities_order_the_jobs_of_one_owner_only(world: World) -> None:
    low = world.running(batch_lines(200), owner="ann")
    high = world.running(batch_lines(200), owner="ann", priority=9)
    other = world.running(batch_lines(200), owner="bob")
    world.prepare()
    taken = [each.item for each in world.engine.take(256)]
    counts = Counter(item.job_id for item in taken)
    assert counts[low] == 0
    assert abs(counts[high] - counts[other]) < 20
    # Engines would let them pass those of the other owner.
    assert {item.priority for item in taken} == {0}


def test_everything_of_every_owner_is_done_once(world: World) -> None:
    job_ids = [world.running(batch_lines(30 * n), owner=f"owner-{n}", priority=n) for n in range(1, 6)]
    for _ in range(60):
        compute(world, 37)
    for job_id in job_ids:
        world.finalize(job_id)
        assert world.check_counts(job_id).succeeded == world.job(job_id).total


def test_more_owners_than_the_stream_has_room_for_take_turns(world: World) -> None:
    """What waits is not taken back for those without a place, over and over, which would give others all places."""
    world.settings = world.settings.model_copy(update={"queue_max_items": 6})
    owners = {world.running(batch_lines(30), owner=f"owner-{number:02}"): number for number in range(20)}
    seen: Counter[int] = Counter()
    for _ in range(10):
        world.prepare()
        taken = world.engine.take(6)
        seen.update(owners[each.item.job_id] for each in taken)
        world.engine.answer(taken)
        world.record()
    assert set(seen.values()) == {3}, "60 items of 20 owners"


def test_an_owner_that_comes_late_has_no_credit(world: World) -> None:
    redis = world.redis
    shares = FairShares(redis, "any")
    for _ in range(10):
        assert shares.divide({"ann": Share(1, 10)}, 100) == {"ann": 100}
        shares.charge({"ann": 1000})
    both = {"ann": Share(1, 10), "bob": Share(3, 10)}
    assert shares.divide(both, 100) == pytest.approx({"ann": 25, "bob": 75}, abs=1)
    # Counted in tokens: rows of a third of the length come three times as often.
    shares.start_anew()
    assert shares.divide({"ann": Share(1, 30), "bob": Share(1, 10)}, 100) == pytest.approx(
        {"ann": 25, "bob": 75}, abs=1
    )
    # However few are wanted at a time, everyone gets some.
    shares.start_anew()
    got: Counter[str] = Counter()
    for _ in range(40):
        (owner,) = (owner for owner, count in shares.divide(both, 1).items() if count)
        shares.charge({owner: 10})
        got[owner] += 1
    assert got == pytest.approx({"ann": 10, "bob": 30}, abs=1)

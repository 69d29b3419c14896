"""Two owners never get each other's answers, however equal their requests are."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from bros_batch.db import tables
from bros_batch.db.connections import reading
from tests.bros_batch.world import World, batch_line

OWNERS = ("ann", "bob", "")


@pytest.fixture(autouse=True)
def _engine_with_weights(world: World) -> None:
    world.engine.weights = "0123456789abcdef"


def lines() -> list[dict[str, Any]]:
    """Four rows with two texts."""
    return [batch_line(f"row-{number}", f"Text {number % 2}", temperature=0) for number in range(4)]


def computed(world: World, text: str) -> dict[str, int]:
    """Compute what waits, and return how many items the engine got, by owner."""
    world.prepare()
    taken = world.engine.take()
    counts: dict[str, int] = {}
    for each in taken:
        owner = world.job(each.item.job_id).owner
        counts[owner] = counts.get(owner, 0) + 1
        world.engine.answer([each], f"{text} of {owner or 'nobody'}.")
    world.record()
    return counts


@pytest.mark.parametrize("together", [True, False], ids=["in flight together", "one after the other"])
def test_each_owner_computes_its_own_and_reuses_only_that(world: World, together: bool) -> None:
    """Of four rows with two texts each, an owner computes two; a second job of it computes none."""
    first: dict[str, str] = {}
    for owner in OWNERS:
        first[owner] = world.running(lines(), owner=owner)
        if not together:
            assert computed(world, "First") == {owner: 2}
    if together:
        assert computed(world, "First") == dict.fromkeys(OWNERS, 2)
    second = {owner: world.running(lines(), owner=owner) for owner in OWNERS}
    assert computed(world, "Second") == {}
    for owner in OWNERS:
        for job_id in (first[owner], second[owner]):
            results = [item.result or "" for item in world.items(job_id)]
            assert all(f"First of {owner or 'nobody'}." in result for result in results), results


def test_the_stored_keys_of_owners_are_different(world: World) -> None:
    for owner in OWNERS:
        world.running(lines(), owner=owner)
    computed(world, "Any")
    with reading(world.database) as connection:
        query = select(tables.content_keys.c.key, tables.jobs.c.owner).where(
            tables.content_keys.c.item_id == tables.items.c.id, tables.items.c.job_id == tables.jobs.c.id
        )
        stored = connection.execute(query).all()
    assert sorted(owner for _, owner in stored) == sorted([*OWNERS, *OWNERS])
    assert len({key for key, _ in stored}) == 6

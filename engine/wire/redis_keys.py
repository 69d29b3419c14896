"""Names of what the engines and the rest of the system share in Redis: streams of items and results, and a few keys."""

from __future__ import annotations

ENGINE_GROUP = "engines"
RECORD_GROUP = "recorders"
RESULTS_KEY = "bros:results"
GENERATION_KEY = "bros:generation"
# Ids of the items whose outputs are wanted while they are computed, by the Unix time until which they are.
FOLLOWED_KEY = "bros:followed"


def output_key(item_id: int, epoch: int) -> str:
    """Key of the output so far of an attempt at an item that is followed: a `Choice` in msgpack."""
    return f"bros:output:{item_id}:{epoch}"


def items_key(model: str) -> str:
    """Key of the stream of items for the engines that serve `model`."""
    return f"bros:items:{model}"


def engine_key(engine_id: str) -> str:
    """Key of an engine's heartbeat: a msgpack map that expires unless the engine renews it.

    Among its fields are the `model`, the `weights` (engines with the same text give the same answers), and what decides
    how many items are queued for the engine: `max_in_flight`, the number of items that it holds at the same time, and
    `items_per_s`, the number that it has lately ended per second. `jobs` tells what it holds, by job id: the number of
    items, the number of those that have output, and the tokens of these outputs.
    """
    return f"bros:engine:{engine_id}"

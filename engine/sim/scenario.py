"""Setups and loads made from plain values, such as command line options. Raises ValueError if a value is invalid."""

from __future__ import annotations

import dataclasses
import difflib
from functools import partial
from pathlib import Path

from engine.config import BE_PREFETCH
from engine.core.terms import SLO, Lane, Policy
from engine.sim.device import NEVER, parse_device, parse_slowdown
from engine.sim.feed import Limits
from engine.sim.replay import BLOCK_SIZE, NOTHING, Load, Setup
from engine.sim.traces import trace_file
from engine.sim.traces.synthetic import backlog, open_arrivals
from engine.sim.traces.workloads import WORKLOADS, Workload

POLICIES = tuple(policy.value for policy in Policy)


def make_setup(
    device: str,
    *,
    policy: str = Policy.BROS.value,
    ttft_s: float,
    tpot_s: float,
    rt_slowdown: float | None = None,
    kv_tokens: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    be_share: float = 0.05,
    noise: float = 0.05,
    seed: int = 0,
    slowdown: str | None = None,
) -> Setup:
    """Make the setup of an engine. `parse_device` reads `device`, and `parse_slowdown` reads `slowdown`. Missing limits
    are those of the device."""
    found = parse_device(device)
    given = {
        "kv_tokens": kv_tokens,
        "host_tokens": kv_tokens,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    found = dataclasses.replace(found, **changes)  # type: ignore[arg-type]
    if found.kv_tokens < BLOCK_SIZE:
        raise ValueError(f"{found.kv_tokens} tokens of KV memory are less than one block of {BLOCK_SIZE}")
    if found.max_num_seqs < 2:
        raise ValueError(
            "one sequence at a time is too few; there must be a row reserved for chat and at least one more"
        )
    return Setup(
        found,
        Policy(policy),
        SLO(ttft_s, tpot_s, rt_slowdown),
        be_share,
        noise=noise,
        seed=seed,
        slowdown=parse_slowdown(slowdown) if slowdown else NEVER,
    )


def find_workload(name: str) -> Workload:
    """Return the workload with this name."""
    if name in WORKLOADS:
        return WORKLOADS[name]
    near = difflib.get_close_matches(name, WORKLOADS, n=1)
    meant = f"; did you mean {near[0]}?" if near else "."
    raise ValueError(f"there is no workload {name!r}{meant} There are {', '.join(WORKLOADS)}")


def limits_for(
    setup: Setup,
    *,
    be_in_flight: int | None = None,
    max_open_rt: int | None = None,
    num_requests: int | None = None,
    duration_s: float | None = None,
    warmup_s: float = 0.0,
) -> Limits:
    """Limits of a load. By default, as many BE requests are in flight as an engine would pull."""
    in_flight = setup.device.max_num_seqs + BE_PREFETCH if be_in_flight is None else be_in_flight
    return Limits(in_flight, max_open_rt, num_requests, duration_s, warmup_s)


def synthetic_load(
    limits: Limits,
    *,
    rt: str | None,
    rt_rate: float | None,
    be: str | None,
    be_rate: float | None,
    seed: int,
    every: int = 1,
) -> Load:
    """Make a load from workloads. Without `be_rate`, bulk is an endless backlog. `every` is that of `open_arrivals`."""
    if limits.num_requests is None and limits.duration_s is None:
        raise ValueError("this load never ends; give a number of requests or a duration")
    rt_source = be_source = NOTHING
    most = 1
    if rt is not None:
        workload = find_workload(rt)
        rate = workload.rate if rt_rate is None else rt_rate
        if rate is None:
            raise ValueError(f"the trace of {rt} has no rate; give one, in requests per second")
        rt_source = partial(open_arrivals, workload, Lane.RT, rate, seed, every)
        most = max(most, workload.output.most)
    if be is not None:
        workload = find_workload(be)
        be_source = (
            partial(backlog, workload, Lane.BE, seed)
            if be_rate is None
            else partial(open_arrivals, workload, Lane.BE, be_rate, seed, every)
        )
        most = max(most, workload.output.most)
    return Load(rt_source, be_source, limits, most)


def trace_load(path: Path, setup: Setup, limits: Limits) -> tuple[Setup, Load]:
    """Make a load from a trace file. If it has prefixes, the setup enables the prefix cache. Also raises OSError."""
    facts = trace_file.examine(path)
    sources = {lane: partial(trace_file.arrivals, path, lane, setup.slo) for lane in Lane}
    setup = dataclasses.replace(setup, prefix_cache=facts.has_prefixes)
    return setup, Load(sources[Lane.RT], sources[Lane.BE], limits, facts.most_output_tokens)

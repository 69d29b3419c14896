"""Synthetic traces: the drawn lengths and arrival times have the stated statistics."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from engine.core.terms import Lane
from engine.sim.outcomes import percentile
from engine.sim.traces.arrival_process import Gamma, OnOff
from engine.sim.traces.lengths import PERCENTILES, Lognormal, Percentiles, Uniform
from engine.sim.traces.synthetic import backlog, open_arrivals
from engine.sim.traces.workloads import WORKLOADS

MEANS = {  # prompts, outputs
    "azure-2023-conv": (1155, 211),
    "azure-2023-code": (2048, 27.9),
    "sharegpt-8k": (2340, 439),
    "arxiv-summarization-4k": (2588, 291),
    "bros-best-effort": (768, 80),
    "cpu-mini": (309, 48),
    "cpu-mini-chat": (46, 24),
}


@pytest.mark.parametrize("name", WORKLOADS)
def test_drawn_lengths_have_the_stated_means(name):
    workload = WORKLOADS[name]
    drawn = list(itertools.islice(backlog(workload, Lane.BE, seed=1), 20_000))
    # Linear interpolation between percentiles gives slightly longer lengths than a distribution that falls off.
    assert statistics.mean(a.prompt_tokens for a in drawn) == pytest.approx(MEANS[name][0], rel=0.08)
    assert statistics.mean(a.output_tokens for a in drawn) == pytest.approx(MEANS[name][1], rel=0.08)
    assert max(a.prompt_tokens for a in drawn) <= workload.prompt.most
    assert max(a.output_tokens for a in drawn) <= workload.output.most
    assert min(min(a.prompt_tokens, a.output_tokens) for a in drawn) >= 1


@pytest.mark.parametrize(
    "lengths",
    [side for w in WORKLOADS.values() for side in (w.prompt, w.output) if isinstance(side, Percentiles)],
)
def test_drawn_lengths_have_the_stated_percentiles(lengths):
    rng = random.Random(2)
    drawn = sorted(lengths.draw(rng) for _ in range(40_000))
    for percent, value in zip(PERCENTILES, lengths.values, strict=True):
        # Where the density is low, a small change of the share moves the value far, so compare shares instead.
        below = sum(length <= value for length in drawn) / len(drawn)
        assert percentile(drawn, percent) == pytest.approx(value, rel=0.05, abs=1) or below == pytest.approx(
            percent / 100, abs=0.01
        )


def test_lognormal_and_uniform():
    rng = random.Random(3)
    drawn = [Lognormal(300, 0.6, 1, 100_000).draw(rng) for _ in range(40_000)]
    assert statistics.mean(drawn) == pytest.approx(300, rel=0.02)
    assert statistics.stdev(drawn) / statistics.mean(drawn) == pytest.approx(0.6, rel=0.04)
    assert {Uniform(4, 6).draw(rng) for _ in range(200)} == {4, 5, 6}


def test_decreasing_percentiles_are_rejected():
    with pytest.raises(ValueError, match="at percentiles"):
        Percentiles((5, 4, 3, 2, 1, 1, 1, 1, 1))


def gaps(arrivals, rate, count=40_000):
    times = list(itertools.islice(arrivals.times(random.Random(4), rate), count))
    assert times == sorted(times)
    return [b - a for a, b in itertools.pairwise(times)]


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0])
def test_gamma_arrivals_have_rate_and_burstiness(cv):
    found = gaps(Gamma(cv), 5.0)
    assert statistics.mean(found) == pytest.approx(0.2, rel=0.05)
    assert statistics.stdev(found) / statistics.mean(found) == pytest.approx(cv, rel=0.05)


def test_on_off_arrivals_have_the_rate_and_the_pauses():
    found = gaps(OnOff(cv=1.0, on_share=0.25, cycle_s=40.0), 10.0, count=100_000)
    assert statistics.mean(found) == pytest.approx(0.1, rel=0.15)
    silent_s = sum(gap for gap in found if gap > 1.0)
    assert silent_s / sum(found) == pytest.approx(0.75, abs=0.08)


def test_the_code_trace_is_as_bursty_as_the_real_one():
    workload = WORKLOADS["azure-2023-code"]
    assert workload.rate is not None
    found = gaps(workload.arrivals, workload.rate)
    assert statistics.stdev(found) / statistics.mean(found) == pytest.approx(13.2, rel=0.2)


def test_n_engines_share_the_arrivals_evenly():
    def times(every):
        arrivals = open_arrivals(WORKLOADS["cpu-mini-chat"], Lane.RT, 10.0, seed=1, every=every)
        return [a.arrival_s for a in itertools.islice(arrivals, 300 // every)]

    assert times(3) == times(1)[2::3]

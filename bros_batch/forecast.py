"""When a job will be done: an interval of seconds from what is left, how fast rows end, and what is ahead of it.

Every quantity that is not known exactly is an `Estimate`. The calculation is pure: `bros_batch.web.job_forecasts`
collects what it needs.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# P10 and P90 of a normal distribution, in standard deviations from its mean.
Z = 1.2816
# Rows that end together, a chat that begins: even a steady pace is not known better than this.
MIN_DOUBT = 0.08
SLOTS = 6
# Rows are recorded in groups, and a second passes before somebody looks.
DELAY_S = 0.4
MAX_ERROR = 6.0  # more says only that something else happened
# Until there are errors of earlier forecasts, they are assumed to be distributed normally: in as many as these.
ASSUMED = tuple(1.25 * statistics.NormalDist().inv_cdf((number + 0.5) / 10) for number in range(10))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A positive quantity: its median, and the standard deviation of its logarithm."""

    median: float
    doubt: float

    def quantile(self, z: float) -> float:
        """The value that is so many standard deviations above the median."""
        return self.median * math.exp(z * self.doubt)

    def per(self, other: Estimate) -> Estimate:
        """This quantity divided by an independent one."""
        return Estimate(self.median / other.median, math.hypot(self.doubt, other.doubt))


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds from now until a job is done: it takes at most these with a probability of 10%, 50% and 90%."""

    p10: float
    p50: float
    p90: float

    @property
    def doubt(self) -> float:
        """The standard deviation of the logarithm of the seconds, which the delays of small jobs are a part of."""
        spread = math.log(max(self.p90, 1e-3) / max(self.p10, 1e-3)) / (2 * Z)
        return math.hypot(spread, MIN_DOUBT, DELAY_S / max(self.p50, DELAY_S))

    def error(self, took_s: float) -> float:
        """How many standard deviations more than the median it took."""
        error = math.log(max(took_s, 0.1) / max(self.p50, 0.1)) / self.doubt
        return min(max(error, -MAX_ERROR), MAX_ERROR)

    def calibrated(self, errors: Sequence[float]) -> Forecast:
        """The forecast whose interval would have covered 80% of earlier ones with these errors."""
        pool = [*errors, *ASSUMED]
        cuts = statistics.quantiles(pool, n=10)
        return Forecast(*(self.p50 * math.exp(self.doubt * z) for z in (cuts[0], cuts[4], cuts[8])))

    def as_json(self) -> dict[str, float]:
        return {name: round(getattr(self, name), 1) for name in ("p10", "p50", "p90")}


@dataclass(frozen=True, slots=True)
class Workload:
    """What a job, or each job ahead of it, has left: its rows, and the work of a row.

    A row that is half done is half a row.
    """

    rows_left: float
    work: Estimate


def combined(estimates: Iterable[Estimate | None]) -> Estimate | None:
    """Return one estimate from several independent ones of the same quantity; the surer ones count more."""
    known = [each for each in estimates if each is not None and each.median > 0]
    if not known:
        return None
    weights = [1 / max(each.doubt, 1e-3) ** 2 for each in known]
    mean = sum(w * math.log(each.median) for w, each in zip(weights, known, strict=True)) / sum(weights)
    # Estimates that contradict one another are less sure together than they say.
    spread = sum(w * (math.log(each.median) - mean) ** 2 for w, each in zip(weights, known, strict=True))
    doubt = math.sqrt((1 + spread / len(known)) / sum(weights))
    return Estimate(math.exp(mean), max(doubt, MIN_DOUBT))


def recent_pace(seen: Sequence[tuple[float, float]], now_s: float) -> Estimate | None:
    """How many rows end per second, from counts of ended rows at earlier times (oldest first); None if none ended.

    The doubt comes from the number of rows and from how much the pace differed between parts of the time.
    """
    if len(seen) < 2:
        return None
    (first_s, first), (_, last) = seen[0], seen[-1]
    elapsed_s, ended = now_s - first_s, last - first
    if elapsed_s <= 0 or ended <= 0:
        return None
    slots = [0.0] * SLOTS
    for (from_s, before), (to_s, count) in itertools.pairwise([*seen, (now_s, last)]):
        # Rows are counted from time to time: each lot is spread over the time since the count before.
        begin, end = ((at_s - first_s) / elapsed_s * SLOTS for at_s in (from_s, to_s))
        for slot in range(int(begin), SLOTS):
            share = min(end, slot + 1) - max(begin, slot)
            if share <= 0:
                break
            slots[slot] += max(0.0, count - before) * share / (end - begin)
    mean = sum(slots) / SLOTS
    variance = sum((slot - mean) ** 2 for slot in slots) / (SLOTS - 1) / mean**2
    return Estimate(ended / elapsed_s, math.sqrt(MIN_DOUBT**2 + variance / SLOTS + 1 / ended))


def forecast(
    job: Workload,
    pace: Estimate | None,
    rows_per_s: Estimate | None = None,
    ahead: Sequence[Workload] = (),
    row_s: float = 0.0,
    overhead_s: float = 0.0,
) -> Forecast | None:
    """Return when a job is done, or None if nothing is known of how fast the engine is.

    `pace` is the work that the engine does per second, and `rows_per_s` what was observed of the job itself. A job
    takes at least `row_s`, the time of one row, and always `overhead_s`.
    """
    by_pace = None if pace is None else pace.per(job.work)
    rate = combined([rows_per_s, by_pace])
    if rate is None:
        return None
    queue = []
    if pace is not None:
        queue = [(each.rows_left, pace.per(each.work)) for each in ahead]

    def seconds(z: float) -> float:
        own_s = job.rows_left / rate.quantile(-z)
        return (
            overhead_s
            + max(own_s, row_s if job.rows_left else 0.0)
            + sum(rows / each.quantile(-z) for rows, each in queue)
        )

    return Forecast(seconds(-Z), seconds(0.0), seconds(Z))

"""When a job will be done: an interval of seconds from the work that is left, and what is ahead of it.

Work is counted in seconds of the engines, with the chats of now beside. The calculation is pure:
`bros_batch.web.engine_load` collects what it needs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# P10 and P90 of a normal distribution, in standard deviations from its mean.
Z = 1.2816
# Rows that end together, a chat that begins: even a steady pace is not known better than this.
MIN_DOUBT = 0.08
# Rows are recorded in groups, and a second passes before somebody looks.
DELAY_S = 0.4
MAX_ERROR = 6.0  # more says only that something else happened
# Until there are errors of earlier forecasts, they are assumed to be distributed normally: in as many as these.
ASSUMED = tuple(1.25 * statistics.NormalDist().inv_cdf((number + 0.5) / 10) for number in range(10))


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
class Work:
    """What a job has left, in seconds of the engines. `doubt_s` is its standard deviation."""

    seconds: float
    doubt_s: float

    def __add__(self, other: Work) -> Work:
        return Work(self.seconds + other.seconds, math.hypot(self.doubt_s, other.doubt_s))

    def at_most(self, seconds: float) -> Work:
        """As much of it as is done before so many seconds of it are."""
        share = min(1.0, seconds / self.seconds) if self.seconds > 0 else 0.0
        return Work(share * self.seconds, share * self.doubt_s)


NO_WORK = Work(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class OtherOwner:
    """The work of another owner, and the weight of that owner in relation to the job's owner."""

    work: Work
    weight: float


def forecast(
    job: Work,
    pace_doubt: float,
    *,
    ahead: Work = NO_WORK,
    others: Sequence[OtherOwner] = (),
    row_s: float = 0.0,
    overhead_s: float = 0.0,
) -> Forecast:
    """Return when a job is done. `ahead` is the work of its owner that comes first, and `pace_doubt` the doubt about
    how fast the engines are, as the standard deviation of a logarithm.

    The last rows end one after the other for `row_s`, the time of one row, and take half of it longer than their work.
    Until the job is done, another owner gets its share, or what it wants if that is less.
    """
    own = ahead + job
    total = own
    for other in others:
        total += other.work.at_most(own.seconds * other.weight)
    seconds = max(total.seconds + row_s / 2, row_s)
    # The logarithm of a lognormal quantity has this standard deviation.
    doubt = math.hypot(pace_doubt, math.sqrt(math.log1p((total.doubt_s / max(seconds, 1e-3)) ** 2)))
    return Forecast(*(overhead_s + seconds * math.exp(z * doubt) for z in (-Z, 0.0, Z)))

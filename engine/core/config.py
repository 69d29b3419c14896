"""The configuration of a scheduler: the limits of a step, the policy, and what each lane may expect."""

from __future__ import annotations

from dataclasses import dataclass

from engine.core.terms import SLO, Policy

DEFAULT_SLO = SLO(ttft_s=0.5, tpot_s=0.1)


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits and shares. Raises ValueError if one is out of range.

    `reserved_rt_rows` rows are never given to BE, so that a full engine makes no chat wait. BE gets `be_share` of all
    tokens even if RT could use them all. A BE request that was preempted `max_preemptions` times is spared while there
    are other victims. `trims` is the table by which steps are trimmed (see `engine.core.trim`).
    """

    max_num_seqs: int
    max_model_len: int
    max_num_batched_tokens: int
    reserved_rt_rows: int
    policy: Policy = Policy.BROS
    default_slo: SLO = DEFAULT_SLO
    be_share: float = 0.05
    max_preemptions: int = 8
    trims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.reserved_rt_rows < self.max_num_seqs:
            raise ValueError(
                f"reserved_rt_rows ({self.reserved_rt_rows}) must leave BE at least one of the {self.max_num_seqs} rows"
            )
        if not 0 <= self.be_share <= 1:
            raise ValueError(f"be_share ({self.be_share:g}) is a share of all tokens, between 0 and 1")

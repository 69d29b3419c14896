"""The settings of an item puller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engine.core.terms import SLO
from engine.step_mark import LastStep
from engine.wire.limits import EngineLimits


@dataclass(frozen=True, slots=True)
class ItemPullerConfig:
    """Settings of an item puller.

    `max_in_flight` limits the entries that it holds: those of running requests and a few that wait. It takes in as many
    again if they have a higher priority than others it holds. After the engine died `max_attempts` times while it
    computed one item by itself, that item fails. `last_step` is the step in which the last run of this engine died.
    `about` is added to each heartbeat. Items of the RT lane have the SLO `default_slo`. `weights` is the identity
    of what the engine computes with.
    """

    model: str
    engine_id: str
    max_in_flight: int
    claim_timeout_s: float
    max_attempts: int
    limits: EngineLimits
    about: dict[str, Any]
    default_slo: SLO
    last_step: LastStep
    weights: str = ""

"""Engine configuration: which values are valid, and what the errors say."""

import pytest

from engine.config import SLOWDOWN_RANGE, EngineConfig
from engine.wire import limits


def config(**settings) -> EngineConfig:
    return EngineConfig(model="m", served_model_name="m", listen="unix:///unused", **settings)


@pytest.mark.parametrize("name", ["profile_s", "num_host_slots", "be_prefetch", "drain_grace_s"])
def test_some_values_may_be_zero(name):
    assert getattr(config(**{name: 0}), name) == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_num_batched_tokens": 0}, "--max-num-batched-tokens is 0; it must be positive"),
        ({"profile_s": -1.0}, "--profile-s is -1.0; it must be positive"),
        ({"max_num_seqs": 1}, "at least 2"),
        ({"be_share": 1.5}, "a share, at most 1"),
        (
            {"rt_slowdown": 101.0},
            "--rt-slowdown is 101; it must be from 0.001 to 100, for example 0.05 for 5%",
        ),
        ({"rt_slowdown": float("nan")}, "--rt-slowdown is nan; it must be from 0.001 to 100"),
        ({"rt_slowdown": 0.0}, "--rt-slowdown is 0.0; it must be positive"),
        ({"rt_slowdown": 0.1, "policy": "fcfs"}, "no effect with --policy fcfs; use --policy bros"),
        ({"gpu_memory_utilization": 90.0}, "a share, at most 1"),
        ({"policy": "priority", "kv_preemption": "none"}, "use --kv-preemption whole"),
    ],
)
def test_invalid_values_are_rejected_and_the_error_says_what_to_do(settings, says):
    with pytest.raises(ValueError, match=says):
        config(**settings)


def test_the_command_line_and_the_wire_allow_the_same_slowdowns():
    assert tuple(limits.SLOWDOWN_RANGE) == SLOWDOWN_RANGE


def test_steps_are_larger_on_a_gpu_by_default():
    assert (config().max_rows(False), config().max_step_tokens(False)) == (64, 512)
    assert (config().max_rows(True), config().max_step_tokens(True)) == (256, 2048)
    assert (
        config(max_num_seqs=7).max_rows(True),
        config(max_num_batched_tokens=9).max_step_tokens(True),
    ) == (7, 9)

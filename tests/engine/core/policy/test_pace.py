"""The time limits of steps."""

import pytest

from engine.core.policy.pace import MARGIN_LEAST, QUIET_CAP, QUIET_S, Pace, aimed_deadline_s
from engine.core.terms import SLO, Lane
from tests.factories import request


def pace(be_share: float = 0.05) -> Pace:
    return Pace(SLO(1.0, 0.1), be_share, max_owed_tokens=100)


def decoding(first_token_s: float, num_tokens: int):
    r = request(lane=Lane.RT)
    r.first_token_s = first_token_s
    r.token_ids += [7] * num_tokens
    return r


def test_the_cap_is_the_limit_for_a_while_after_a_chat_and_a_wider_one_later():
    p = pace()
    assert p.set_limit([], None, 0.0, 0.0, 0.0, now_s=5.0) == pytest.approx(QUIET_CAP * (1 - MARGIN_LEAST))
    p.set_limit([decoding(5.0, 1)], None, 0.0, 0.0, 0.0, now_s=5.0)
    soon_s, later_s = 5.0 + 0.9 * QUIET_S, 5.1 + QUIET_S
    assert p.set_limit([], None, 0.0, 0.0, 0.0, now_s=soon_s) == pytest.approx(1 / 3 * (1 - MARGIN_LEAST))
    assert p.set_limit([], None, 0.0, 0.0, 0.0, now_s=later_s) == pytest.approx(
        QUIET_CAP * (1 - MARGIN_LEAST)
    )


def test_without_chats_the_fixed_cost_is_at_most_an_eighth_of_a_step_and_a_quarter_if_one_was_there_lately():
    paced = pace()
    assert paced.set_limit([], None, 0.0, 1.5, 0.0, now_s=5.0) == pytest.approx(12.0)
    paced.set_limit([decoding(1.0, 2)], None, 0.0, 1.5, 0.0, now_s=6.0)
    assert paced.set_limit([], None, 0.0, 1.5, 0.0, now_s=7.0) == pytest.approx(6.0)
    assert paced.set_limit([], None, 0.0, 1.5, 0.0, now_s=17.0) == pytest.approx(12.0)


@pytest.mark.parametrize("now_s", [1.25, 1.3, 7.0], ids=["in time", "a little late", "very late"])
@pytest.mark.parametrize(
    ("fixed_s", "least_s"),
    [(0.0, 0.0), (0.01, 0.04), (0.02, 0.08), (0.05, 0.08), (0.089, 0.08), (0.091, 0.364), (2.0, 8.0)],
)
def test_a_chat_shortens_steps_only_as_far_as_that_serves_it(now_s, fixed_s, least_s):
    chats = [decoding(1.0, 2)]  # TPOT 0.1
    limit_s = pace().set_limit(chats, None, 0.0, fixed_s, 0.0, now_s=now_s)
    wanted_s = max(0.0, (aimed_deadline_s(chats[0]) - now_s) * (1 - MARGIN_LEAST))
    assert limit_s == pytest.approx(max(wanted_s, least_s))


def test_a_chat_that_no_step_can_serve_takes_nothing_from_one_that_can_be_served():
    normal, impossible = decoding(1.0, 1), decoding(1.0, 1)
    impossible.slo = SLO(1.0, 1e-6)
    for chats in ([normal], [impossible, normal], [normal, impossible]):
        assert pace().set_limit(chats, None, 0.0, 0.03, 0.0, now_s=2.0) == pytest.approx(0.08)


def test_while_a_chat_is_too_fast_for_the_machine_its_fixed_cost_is_measured_now_and_then():
    p = pace()
    limits_s = [p.set_limit([decoding(1.0, 1)], None, 0.0, 0.2, 0.0, now_s=2.0) for _ in range(64)]
    assert [i for i, limit_s in enumerate(limits_s, 1) if not limit_s] == [32, 64]
    assert {limit_s for limit_s in limits_s if limit_s} == {0.8}


def test_the_tightest_deadline_is_the_limit():
    chats = [decoding(1.0, 3), decoding(1.2, 2)]
    limit_s = pace().set_limit(chats, None, 0.0, 0.0, 0.0, now_s=1.25)
    assert limit_s == pytest.approx((1.27 - 1.25) * (1 - MARGIN_LEAST))


def test_being_ahead_of_the_deadlines_leaves_time_for_a_longer_step():
    early = decoding(1.0, 4)
    assert aimed_deadline_s(early) == pytest.approx(1.36)
    assert pace().set_limit([early], None, 0.0, 0.0, 0.0, now_s=1.05) == pytest.approx(
        0.31 * (1 - MARGIN_LEAST)
    )


def test_a_late_chat_leaves_bulk_no_time():
    assert pace().set_limit([decoding(1.0, 1)], None, 0.0, 0.0, 0.0, now_s=2.0) == 0.0


@pytest.mark.parametrize(("num_tokens", "early_s"), [(1, 0.01), (2, 0.02), (6, 0.06), (7, 0.06), (100, 0.06)])
def test_steps_aim_ahead_of_token_deadlines_by_a_share_of_the_time_and_then_by_a_constant(
    num_tokens, early_s
):
    chat = decoding(1.0, num_tokens)
    assert aimed_deadline_s(chat) == pytest.approx(chat.next_deadline_s - early_s)


def test_a_first_token_in_time_limits_the_step_to_the_tpot_and_a_late_one_to_half_of_it():
    waiting = request(lane=Lane.RT, arrival_s=2.0)
    assert pace().set_limit([], waiting, 0.01, 0.0, 0.0, now_s=2.0) == pytest.approx(0.1 * (1 - MARGIN_LEAST))
    assert pace().set_limit([], waiting, 0.01, 0.0, 0.0, now_s=2.42) == pytest.approx(
        0.08 * (1 - MARGIN_LEAST)
    )
    assert pace().set_limit([], waiting, 0.01, 0.0, 0.0, now_s=2.6) == pytest.approx(
        0.05 * (1 - MARGIN_LEAST)
    )
    assert pace().set_limit([], waiting, 0.3, 0.0, 0.0, now_s=2.0) == pytest.approx(0.3 * (1 - MARGIN_LEAST))


def test_an_inaccurate_cost_model_shortens_steps():
    p = pace()
    p.set_limit([decoding(0.0, 1)], None, 0.0, 0.0, 0.0, now_s=0.0)
    assert p.set_limit([], None, 0.0, 0.0, error_ratio=0.1, now_s=0.0) == pytest.approx(0.3)
    assert p.set_limit([], None, 0.0, 0.0, error_ratio=3.0, now_s=0.0) == pytest.approx(0.8 / 3)


def test_the_cap_shrinks_on_a_late_first_token_and_grows_while_they_are_in_time():
    p = pace()
    p.count_finished(False, now_s=10.0)
    assert p.cap_s == pytest.approx(0.7 / 3)
    p.count_finished(False, now_s=10.1)
    assert p.cap_s == pytest.approx(0.7 / 3), "the same long step may have made both late"
    p.count_finished(False, now_s=13.0)
    assert p.cap_s == pytest.approx(0.49 / 3)
    for _ in range(10):
        p.count_finished(True, now_s=14.0)
    assert p.cap_s == pytest.approx(0.49 / 3 + 0.02)
    for _ in range(10_000):
        p.count_finished(True, now_s=15.0)
    assert p.cap_s == pytest.approx(1 / 3)
    for i in range(100):
        p.count_finished(False, now_s=100.0 + 10 * i)
    assert p.cap_s == pytest.approx(0.02)


def test_bulk_is_owed_its_share_while_it_has_work():
    p = pace(be_share=0.1)
    for _ in range(5):
        p.count_step(100, 0, be_has_work=True)
    assert p.be_owed_tokens == pytest.approx(50)
    p.count_step(100, 40, be_has_work=True)
    assert p.be_owed_tokens == pytest.approx(20)
    for _ in range(20):
        p.count_step(100, 0, be_has_work=True)
    assert p.is_be_starving
    p.count_step(100, 0, be_has_work=False)
    assert p.be_owed_tokens == 0 and not p.is_be_starving

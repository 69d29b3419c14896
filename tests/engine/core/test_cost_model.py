"""The cost model learns how long steps take from the steps it observes."""

import json
import random

import pytest

from engine.core.cost_model import CostModel, StepShape


def true_s(shape: StepShape) -> float:
    step_s = 0.004 if shape.tokens == shape.rows else 0.006
    return (
        step_s
        + 2.5e-4 * shape.tokens
        + 1e-4 * shape.rows
        + 4e-7 * shape.context
        + 3e-7 * shape.chunk_context
        + 2e-6 * shape.copied
    )


def a_step(rng: random.Random) -> StepShape:
    shape = StepShape()
    for _ in range(rng.randint(1, 64)):
        shape.add_chunk(rng.randint(10, 600), 1)
    if rng.random() < 0.6:
        shape.add_chunk(rng.choice([0, 0, 100]), rng.randint(16, 400))
    shape.copied = rng.choice([0, 0, 0, 40])
    return shape


def learned(num_steps: int, noise: float, seed: int = 1) -> CostModel:
    rng = random.Random(seed)
    model = CostModel()
    for _ in range(num_steps):
        shape = a_step(rng)
        model.observe(shape, true_s(shape) * rng.lognormvariate(0, noise))
    return model


def median_error(model: CostModel) -> float:
    rng = random.Random(99)
    shapes = [a_step(rng) for _ in range(301)]
    return sorted(abs(model.predict(s) - true_s(s)) / true_s(s) for s in shapes)[150]


def test_it_learns_what_steps_cost():
    assert median_error(learned(300, noise=0.0)) < 0.02
    assert median_error(learned(600, noise=0.15)) < 0.06


def test_its_error_is_that_of_its_predictions():
    assert learned(600, noise=0.0).error_ratio < 0.03
    assert 0.05 < learned(600, noise=0.2).error_ratio < 0.3
    assert CostModel().median_error == 0.0
    assert learned(600, noise=0.0).median_error < 0.01
    assert 0.05 < learned(600, noise=0.2).median_error < 0.2


def test_steps_that_were_held_up_do_not_spoil_it():
    rng = random.Random(3)
    model = CostModel()
    for _ in range(600):
        shape = a_step(rng)
        model.observe(shape, true_s(shape) * (10 if rng.random() < 0.05 else 1))
    assert median_error(model) < 0.1


def test_it_follows_a_machine_that_gets_slower():
    model = learned(300, noise=0.05)
    rng = random.Random(4)
    for _ in range(1500):
        shape = a_step(rng)
        model.observe(shape, 2 * true_s(shape))
    shape = a_step(rng)
    assert model.predict(shape) == pytest.approx(2 * true_s(shape), rel=0.15)


def test_it_follows_a_machine_that_is_slow_for_a_moment():
    model = learned(600, noise=0.0)
    rng = random.Random(7)
    for _ in range(8):
        shape = a_step(rng)
        model.observe(shape, 1.5 * true_s(shape))
    shape = a_step(rng)
    assert model.predict(shape) == pytest.approx(1.5 * true_s(shape), rel=0.1)
    empty = StepShape()
    count = model.chunk_tokens(empty, 0.05, 0, 10_000)
    shape = StepShape()
    shape.add_chunk(0, count)
    assert model.predict(shape) == pytest.approx(0.05, rel=0.05)
    for _ in range(8):
        shape = a_step(rng)
        model.observe(shape, true_s(shape))
    assert median_error(model) < 0.05, "and fast again the next"


def test_it_follows_a_machine_that_becomes_much_slower_or_faster_within_a_few_steps():
    model = learned(600, noise=0.0)
    rng = random.Random(8)
    for factor, num_steps in ((9.0, 16), (1.0, 24)):
        for _ in range(num_steps):
            shape = a_step(rng)
            model.observe(shape, factor * true_s(shape))
        shape = a_step(rng)
        assert model.predict(shape) == pytest.approx(factor * true_s(shape), rel=0.15)


def test_the_fixed_cost_is_never_above_that_of_small_steps():
    model = CostModel()
    for _ in range(300):
        model.observe(StepShape(512, 64, 10_000, 20_000.0), 0.14)
    assert model.fixed_s == 0.0, "steps that are all alike do not tell which part of them is fixed"
    for _ in range(20):
        model.observe(StepShape(1, 1, 100), 0.01)
    assert model.fixed_s == pytest.approx(0.01, rel=0.2)
    for _ in range(20):
        model.observe(StepShape(1, 1, 100), 0.25)
    assert model.fixed_s == pytest.approx(0.25, rel=0.2)


def test_steps_of_constant_time_teach_no_cost_of_tokens():
    rng = random.Random(5)
    model = CostModel()
    for _ in range(200):
        model.observe(a_step(rng), 0.02)
    shape = StepShape()
    shape.add_chunk(0, 2000)
    assert model.predict(shape) == pytest.approx(0.02, rel=0.2)


def test_a_chunk_has_as_many_tokens_as_the_time_allows():
    model = learned(600, noise=0.0)
    shape = StepShape()
    for _ in range(10):
        shape.add_chunk(300, 1)
    for limit_s in (0.02, 0.05, 0.1):
        for start in (0, 500):
            count = model.chunk_tokens(shape, limit_s, start, 10_000)
            fits, too_long = StepShape(shape.tokens, shape.rows, shape.context), None
            fits.add_chunk(start, count)
            too_long = StepShape(shape.tokens, shape.rows, shape.context)
            too_long.add_chunk(start, count + 2)
            assert model.predict(fits) <= limit_s < model.predict(too_long)
    assert model.chunk_tokens(shape, 0.001, 0, 100) == 0
    assert model.chunk_tokens(shape, 10.0, 0, 100) == 100


def test_there_are_as_many_rows_as_the_time_allows():
    model = learned(600, noise=0.0)
    contexts = [300] * 200
    count = model.single_rows(StepShape(), 0.03, contexts)
    assert model.predict(StepShape(count, count, 300 * count)) <= 0.03
    assert model.predict(StepShape(count + 1, count + 1, 300 * (count + 1))) > 0.03


def test_a_new_model_predicts_zero():
    model = CostModel()
    assert model.predict(StepShape(100, 3, 50)) == 0
    assert model.chunk_tokens(StepShape(), 0.0, 0, 64) == 64


def test_a_model_can_be_stored_and_restored():
    model = learned(600, noise=0.0)
    again = CostModel.from_learned(json.loads(json.dumps(model.learned())))
    assert median_error(again) < 0.02
    rng = random.Random(6)
    for _ in range(800):
        shape = a_step(rng)
        again.observe(shape, 3 * true_s(shape))
    shape = a_step(rng)
    assert again.predict(shape) == pytest.approx(3 * true_s(shape), rel=0.2), "today counts for more"


@pytest.mark.parametrize("stored", [{}, {"single": 1}, {"single": {"theta": [1], "a": [1], "b": [1]}}, []])
def test_data_that_is_no_stored_model_is_rejected(stored):
    with pytest.raises((ValueError, KeyError, TypeError)):
        CostModel.from_learned(stored)

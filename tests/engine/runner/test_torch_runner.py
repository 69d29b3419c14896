"""What a runner reports about itself, and requests that fail without affecting others."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.core.plan import SlotCopy, StepPlan
from engine.core.terms import SamplingParams
from engine.runner.base import UnsupportedModel
from engine.runner.model.loading import load_model
from tests.engine.runner.driver import GREEDY, Driver, load_runner
from tests.factories_models import VOCAB_SIZE, make_model, make_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_model("llama", tmp_path_factory.mktemp("model"))
    make_tokenizer(path)
    return path


def test_runner_info(llama: Path) -> None:
    info = load_runner(llama, max_num_seqs=3, block_size=32, num_kv_blocks=7).info
    assert (info.num_blocks, info.block_size, info.max_num_seqs) == (7, 32, 3)
    assert (info.max_model_len, info.vocab_size, info.device, info.dtype) == (
        256,
        VOCAB_SIZE,
        "cpu",
        "float32",
    )


def test_by_default_kv_memory_holds_all_rows(llama: Path) -> None:
    info = load_runner(llama, max_num_seqs=3, num_kv_blocks=None, max_model_len=100).info
    assert info.num_blocks == 3 * 7  # 100 tokens are 7 blocks of 16


@pytest.mark.parametrize(
    ("fields", "requested", "expected"),
    [
        ({}, None, 256),
        ({}, 100, 100),
        ({}, 9999, 256),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}, None, 256),
        (
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "short_factor": [1.0] * 8,
                    "long_factor": [4.0] * 8,
                    "original_max_position_embeddings": 64,
                }
            },
            None,
            64,
        ),
    ],
)
def test_longest_context(
    fields: dict[str, object], requested: int | None, expected: int, tmp_path: Path
) -> None:
    path = make_model("llama", tmp_path, **fields)
    assert load_model(str(path), device="cpu", max_model_len=requested).max_model_len == expected


def test_end_of_sequence_ids_come_from_the_generation_config(tmp_path: Path) -> None:
    path = make_model("llama", tmp_path)
    (path / "generation_config.json").write_text('{"eos_token_id": [2, 77]}')
    assert load_model(str(path), device="cpu").eos_token_ids == {2, 77}


def test_a_request_with_bad_tokens_fails_alone(llama: Path) -> None:
    good = [5, 6, 7, 8, 9]
    alone = Driver(load_runner(llama))
    expected = alone.add(good)
    alone.run(10)

    driver = Driver(load_runner(llama))
    sequence = driver.add(good)
    too_high = driver.add([5, VOCAB_SIZE, 7])
    negative = driver.add([-1])
    bad_bias = driver.add([5, 6], SamplingParams(max_tokens=9, logit_bias=((VOCAB_SIZE + 1, 1.0),)))
    driver.run(10)
    assert sequence.output == expected.output
    for failed, named in ((too_high, VOCAB_SIZE), (negative, -1), (bad_bias, VOCAB_SIZE + 1)):
        assert failed.finished is not None
        assert f"token id {named}" in failed.finished
        assert failed.output == []
    # The row that a failed request held serves the next one.
    after = driver.add(good, row=too_high.row)
    driver.run(10)
    assert after.output == expected.output


def test_stop_strings_without_a_tokenizer_fail_alone(tmp_path: Path) -> None:
    driver = Driver(load_runner(make_model("llama", tmp_path)))
    asking = driver.add([5, 6], SamplingParams(max_tokens=9, stop=("x",)))
    other = driver.add([5, 6])
    driver.run(3)
    assert asking.finished is not None
    assert "stop strings need a tokenizer" in asking.finished
    assert len(other.output) == 3


def test_stops_at_the_end_of_sequence_at_stop_tokens_and_at_stop_strings(llama: Path) -> None:
    from tokenizers import Tokenizer

    runner = load_runner(llama)
    driver = Driver(runner)
    free = driver.add([5, 6, 7])
    driver.run(30)
    stop_id = free.output[11]
    text = Tokenizer.from_file(str(llama / "tokenizer.json")).decode(free.output)
    stop = next(text[i : i + 3] for i in range(8, len(text) - 3) if "�" not in text[i : i + 3])

    by_token = driver.add(
        [5, 6, 7], SamplingParams(max_tokens=99, temperature=0.0, stop_token_ids=(stop_id,))
    )
    by_string = driver.add(
        [5, 6, 7], SamplingParams(max_tokens=99, temperature=0.0, ignore_eos=True, stop=(stop,))
    )
    free.finished = "enough"
    driver.run(30)
    assert by_token.finished == by_string.finished == "stop"
    assert by_token.output == free.output[: free.output.index(stop_id) + 1]
    decode = Tokenizer.from_file(str(llama / "tokenizer.json")).decode
    assert stop in decode(by_string.output)
    assert stop not in decode(by_string.output[:-1])


def test_min_tokens_is_exact(llama: Path) -> None:
    driver = Driver(load_runner(llama))
    enders = tuple(token for token in range(VOCAB_SIZE) if token != 10)
    sampling = SamplingParams(max_tokens=99, temperature=0.0, min_tokens=5, stop_token_ids=enders)
    sequence = driver.add([5, 6, 7], sampling)
    driver.run(20)
    assert sequence.finished == "stop"
    assert sequence.output[:5] == [10] * 5
    assert len(sequence.output) == 6


def test_rows_that_do_not_sample_hold_nothing(llama: Path) -> None:
    driver = Driver(load_runner(llama))
    long, short = driver.add(list(range(3, 30))), driver.add([4])
    result = driver.step([(long, 10), (short, 1)])
    assert result.sampled[0] == -1
    assert not result.stopped[0]
    assert result.sampled[1] >= 0
    result = driver.step([(long, 10)])
    assert (result.sampled, result.stopped) == ([-1], [False])


def test_an_empty_plan_computes_nothing(llama: Path) -> None:
    result = load_runner(llama).execute(StepPlan([], [], [], [], [], []))
    assert result.sampled == []


def test_copies_without_host_memory_raise(llama: Path) -> None:
    plan = StepPlan([], [], [], [], [], [], copies_out=[SlotCopy([0], [0])])
    with pytest.raises(ValueError, match="no host KV memory"):
        load_runner(llama, num_host_slots=0).execute(plan)


def test_temperature_zero_is_greedy(llama: Path) -> None:
    driver = Driver(load_runner(llama))
    sequences = [
        driver.add([5, 6, 7], GREEDY),
        driver.add([5, 6, 7], SamplingParams(max_tokens=9, top_k=1, seed=3)),
    ]
    driver.run(8)
    assert sequences[0].output[:8] == sequences[1].output[:8]


def test_dummy_weights_need_only_a_configuration(llama, tmp_path):
    """They are the same each time, so that measurements can be repeated."""
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    outputs = []
    for _ in range(2):
        driver = Driver(load_runner(tmp_path, load_format="dummy"))
        sequence = driver.add([5, 6, 7])
        driver.run(8)
        outputs.append(sequence.output)
    assert outputs[0] == outputs[1] and len(outputs[0]) >= 8
    with pytest.raises(UnsupportedModel):
        load_runner(tmp_path)

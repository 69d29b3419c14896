"""Stop strings across token boundaries, and which rule ends a request when."""

from __future__ import annotations

import random
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from engine.core.plan import RowStart
from engine.core.terms import SamplingParams
from engine.runner.sampling.growing_text import GrowingText
from engine.runner.sampling.stop import StopStrings, StopTable
from tests.factories_models import make_tokenizer
from tests.services import wait_for

EOS = frozenset({2})


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def encode(tokenizer_dir: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json")).encode(text).ids)


def rules_with(tokenizer_dir: Path, sampling: SamplingParams, output: list[int] | None = None) -> StopTable:
    rules = StopTable(4, EOS, str(tokenizer_dir))
    rules.start(RowStart(1, "r", [5, 6, *(output or [])], 2, [], sampling))
    return rules


def end_of(rules: StopTable, token_ids: list[int], already: int = 0) -> int | None:
    """The number of output tokens after which the request in row 1 ended, or None."""
    for number, token_id in enumerate(token_ids, already + 1):
        if rules.rules_of(np.array([1])).ends([token_id], np.array([number])) == ([True], {}):
            return number
    return None


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two END three", "END", "one two END"),
        ("no such thing here", "END", None),
        ("a\n\nb", "\n\n", "a\n\n"),
        ("EEND", "END", "EEND"),
        ("schön 🎈 und gut", "🎈", "schön 🎈"),
        ("ends with ü", "ü", "ends with ü"),
        ("E N D", "END", None),
    ],
)
def test_a_stop_string_ends_at_the_token_that_completes_it(
    tokenizer_dir: Path, text: str, stop: str, expected: str | None
) -> None:
    token_ids = encode(tokenizer_dir, text)
    ended = end_of(rules_with(tokenizer_dir, SamplingParams(max_tokens=99, stop=(stop,))), token_ids)
    if expected is None:
        assert ended is None
    else:
        assert ended is not None
        prefix = encode(tokenizer_dir, expected)
        assert token_ids[:ended][: len(prefix) - 1] == prefix[:-1]
        from tokenizers import Tokenizer

        decode = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json")).decode
        assert stop in decode(token_ids[:ended])
        assert stop not in decode(token_ids[: ended - 1])


@pytest.mark.parametrize("seed", range(20))
def test_searching_the_end_of_the_text_finds_the_same_as_searching_all_of_it(
    tokenizer_dir: Path, seed: int
) -> None:
    from tokenizers import Tokenizer

    decode = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json")).decode
    rng = random.Random(seed)
    token_ids = encode(tokenizer_dir, "".join(rng.choice("ab√🎈 ") for _ in range(400)))
    stops = ["".join(rng.choice("ab√🎈 ") for _ in range(rng.randint(1, 5))) for _ in range(3)]
    watched = StopStrings(stops, GrowingText(decode, [], frozenset()))
    found = next((i for i, token_id in enumerate(token_ids) if watched.push(token_id)), None)
    whole = next(
        (i for i in range(len(token_ids)) if any(s in decode(token_ids[: i + 1]) for s in stops)), None
    )
    assert found == whole


def test_a_stop_string_begun_before_a_preemption_is_found_after_it(tokenizer_dir: Path) -> None:
    token_ids = encode(tokenizer_dir, "go on: STOP now")
    sampling = SamplingParams(max_tokens=99, stop=("STOP",))
    whole = end_of(rules_with(tokenizer_dir, sampling), token_ids)
    assert whole is not None
    cut = whole - 2
    assert end_of(rules_with(tokenizer_dir, sampling, token_ids[:cut]), token_ids[cut:], cut) == whole


def test_end_of_sequence_and_stop_tokens(tokenizer_dir: Path) -> None:
    def ended(**fields: object) -> int | None:
        sampling = SamplingParams(max_tokens=99, **fields)  # type: ignore[arg-type]
        return end_of(rules_with(tokenizer_dir, sampling), [9, 8, 2, 7])

    assert ended() == 3
    assert ended(ignore_eos=True) is None
    assert ended(stop_token_ids=(8,)) == 2
    assert ended(ignore_eos=True, stop_token_ids=(7,)) == 4
    assert ended(stop_token_ids=(9,), min_tokens=1) == 3


def test_a_stop_string_may_be_a_special_token(tokenizer_dir: Path) -> None:
    sampling = SamplingParams(max_tokens=99, stop=("<s>",), ignore_eos=True)
    assert end_of(rules_with(tokenizer_dir, sampling), [9, 2, 1, 9]) == 3


def test_stop_strings_wait_for_min_tokens(tokenizer_dir: Path) -> None:
    token_ids = encode(tokenizer_dir, "xy xy xy xy")
    sampling = SamplingParams(max_tokens=99, stop=("xy",), min_tokens=len(encode(tokenizer_dir, "xy xy")))
    ended = end_of(rules_with(tokenizer_dir, sampling), token_ids)
    assert ended is not None
    assert ended > sampling.min_tokens


@pytest.mark.parametrize("seed", range(20))
def test_only_a_stop_string_that_ends_after_min_tokens_counts(tokenizer_dir: Path, seed: int) -> None:
    """As in "The total is 12.50 EUR." with the stop string "." and min_tokens between the two."""
    from tokenizers import Tokenizer

    decode = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json")).decode
    rng = random.Random(seed)
    token_ids = encode(tokenizer_dir, "".join(rng.choice("ab√🎈 .") for _ in range(60)))
    stop = rng.choice([".", "a", "🎈", "ab"])
    min_tokens = rng.randint(1, len(token_ids) // 2)
    ends = [decode(token_ids[:n]).rstrip("�").count(stop) for n in range(len(token_ids) + 1)]
    expected = next((n for n in range(min_tokens + 1, len(ends)) if ends[n] > ends[n - 1]), None)
    sampling = SamplingParams(max_tokens=99, stop=(stop,), min_tokens=min_tokens)
    assert end_of(rules_with(tokenizer_dir, sampling), token_ids) == expected


def test_rules_are_those_of_the_requests_at_launch(tokenizer_dir: Path) -> None:
    def start(row: int, **fields: object) -> None:
        sampling = SamplingParams(max_tokens=99, **fields)  # type: ignore[arg-type]
        rules.start(RowStart(row, "r", [5], 1, [], sampling))

    (letter,) = encode(tokenizer_dir, "x")
    rules = StopTable(5, EOS, str(tokenizer_dir))
    start(0)
    start(1, stop_token_ids=(77,))
    start(2, stop=("x",))
    start(3, ignore_eos=True, min_tokens=3, stop_token_ids=(77, 78))
    rows = np.array([3, 2, 1, 0])
    launched = [rules.rules_of(rows) for _ in range(4)]
    for row in range(4):
        start(row, ignore_eos=True)
    numbers = np.array([4, 1, 2, 3])
    assert launched[0].ends([9, 9, 9, 9], numbers) == ([False] * 4, {})
    assert launched[1].ends([78, letter, 77, 2], numbers) == ([True] * 4, {})
    assert launched[2].ends([2, 2, 78, 77], numbers) == ([False, True, False, False], {})
    assert launched[3].ends([77, 9, 2, 2], numbers - 1) == ([False, False, True, True], {})
    assert rules.rules_of(rows).ends([77, letter, 77, 2], numbers) == ([False] * 4, {})


def test_stop_tokens_of_many_requests_come_and_go(tokenizer_dir: Path) -> None:
    rng = random.Random(0)
    rules = StopTable(6, EOS, str(tokenizer_dir))
    held: dict[int, set[int]] = {}
    for _ in range(400):
        row = rng.randrange(6)
        own = {rng.randrange(200) for _ in range(rng.randrange(4))}
        rules.start(RowStart(row, "r", [5], 1, [], SamplingParams(max_tokens=9, stop_token_ids=tuple(own))))
        held[row] = own | EOS
        rows = np.array(rng.sample(sorted(held), rng.randint(1, len(held))))
        tokens = [rng.choice([rng.randrange(200), *held[row]]) for row in rows.tolist()]
        expected = [token in held[row] for token, row in zip(tokens, rows.tolist(), strict=True)]
        assert rules.rules_of(rows).ends(tokens, np.ones(len(rows), dtype=np.int64)) == (expected, {})


def test_without_a_tokenizer_only_requests_with_stop_strings_fail(tmp_path: Path) -> None:
    rules = StopTable(4, EOS, str(tmp_path))
    rules.start(RowStart(1, "r", [5], 1, [], SamplingParams(max_tokens=9)))
    assert end_of(rules, [9, 2]) == 2
    with pytest.raises(ValueError, match="stop strings need a tokenizer"):
        rules.start(RowStart(1, "r", [5], 1, [], SamplingParams(max_tokens=9, stop=("x",))))


def test_a_tokenizer_that_is_loaded_beforehand_is_not_loaded_again(
    tokenizer_dir: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(tokenizer_dir, tmp_path / "model"))
    rules = StopTable(4, EOS, str(copied))
    rules.begin_to_load()
    wait_for(lambda: not any(thread.name == "tokenizer" for thread in threading.enumerate()))
    shutil.rmtree(copied)
    rules.start(RowStart(1, "r", [5], 1, [], SamplingParams(max_tokens=9, stop=("x",))))


def test_a_tokenizer_that_cannot_be_loaded_beforehand_fails_only_requests_with_stop_strings(
    tmp_path: Path,
) -> None:
    rules = StopTable(4, EOS, str(tmp_path))
    rules.begin_to_load()
    with pytest.raises(ValueError, match="stop strings need a tokenizer"):
        rules.start(RowStart(1, "r", [5], 1, [], SamplingParams(max_tokens=9, stop=("x",))))
    rules.start(RowStart(1, "r", [5], 1, [], SamplingParams(max_tokens=9)))

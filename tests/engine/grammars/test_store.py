"""Compiled grammars: shared by all requests, within limits, and the engine survives those that exhaust a compiler."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from transformers import AutoTokenizer

from engine.core.terms import Grammar
from engine.grammars import store
from engine.grammars.allowance import MOST_S, SHARE, Allowance
from engine.grammars.contract import Asker, Problem, TooManyGrammars
from engine.grammars.store import Grammars
from engine.grammars.tokenizer import Vocabulary
from tests.factories_models import VOCAB_SIZE, make_tokenizer
from tests.services import wait_for

EOS = 2
# A chain of rules so long that llguidance exhausts the stack while it compiles them.
DEEP = Grammar("lark", "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(10_000)) + '\nr10000: "a"')
SLOW = Grammar("json_schema", '{"type": "integer", "multipleOf": 9999991}')
DIGITS = Grammar("regex", "[0-9]+")


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def vocabulary(
    path: Path, vocab_size: int = VOCAB_SIZE, eos: frozenset[int] = frozenset({EOS})
) -> Vocabulary:
    return Vocabulary.of(AutoTokenizer.from_pretrained(path), vocab_size, eos)


@pytest.fixture(scope="module")
def grammars(tokenizer_dir: Path) -> Iterator[Grammars]:
    grammars = Grammars(lambda: vocabulary(tokenizer_dir), VOCAB_SIZE)
    yield grammars
    grammars.close()


@pytest.fixture
def grammars_of_short_turns(tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Grammars]:
    monkeypatch.setattr(store, "TURNS_S", (0.05, 0.5))
    grammars = Grammars(lambda: vocabulary(tokenizer_dir), VOCAB_SIZE)
    yield grammars
    grammars.close()


def allowed(grammars: Grammars, grammar: Grammar, output: str = "") -> set[int]:
    """The tokens that may follow an output."""
    matcher = grammars.matcher(grammar)
    assert matcher.consume_tokens(grammars.tokenizer.loaded().tokenize_str(output))
    bits = int.from_bytes(matcher.compute_bitmask(), "little")
    return {token_id for token_id in range(bits.bit_length()) if bits >> token_id & 1}


def token(grammars: Grammars, text: str) -> int:
    (token_id,) = grammars.tokenizer.loaded().tokenize_str(text)
    return int(token_id)


def test_a_grammar_is_compiled_once_and_its_requests_do_not_affect_each_other(grammars: Grammars) -> None:
    before = grammars.counts.num_compiled
    assert grammars.begin(DIGITS).result() is None
    assert grammars.begin(Grammar("regex", "[0-9]+")).result() is None
    assert grammars.counts.num_compiled == before + 1
    first, second = grammars.matcher(DIGITS), grammars.matcher(DIGITS)
    assert first.consume_tokens(grammars.tokenizer.loaded().tokenize_str("12"))
    assert first.is_accepting()
    assert not second.is_accepting()


def test_masks_hold_digits_and_the_end_and_no_special_token(grammars: Grammars) -> None:
    digits = {token(grammars, digit) for digit in "0123456789"}
    assert allowed(grammars, DIGITS) == digits
    assert allowed(grammars, DIGITS, "4") == digits | {EOS}
    text = allowed(grammars, Grammar("regex", "(?s:.)*"))
    assert EOS in text
    assert not {0, 1} & text


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        (Grammar("regex", "("), "unclosed group"),
        (Grammar("regex", "a(?=b)"), "look-around"),
        (Grammar("lark", 'start: "a" | other'), "other"),
        (Grammar("lark", "start: start"), ""),
        (Grammar("json_schema", '{"type": "integer", "minimum": 3, "maximum": 1}'), "Unsatisfiable"),
        (Grammar("json_schema", '{"not": {}}'), "not"),
        (Grammar("json_schema", "[]"), ""),
        (Grammar("json_schema", "\ud800"), ""),
    ],
)
def test_an_error_says_what_is_wrong(grammars: Grammars, grammar: Grammar, why: str) -> None:
    problem = grammars.begin(grammar).result()
    assert problem is not None
    assert why in problem.text
    assert not problem.is_costly


def test_a_grammar_that_kills_its_compiler_or_takes_too_long_fails_alone(
    grammars_of_short_turns: Grammars,
) -> None:
    """Several of both kinds, and the grammars after them do not wait for those that take long."""
    grammars = grammars_of_short_turns
    quick = [Grammar("regex", f"[a-{end}]+") for end in "bcdef"]
    deadly = [Grammar(DEEP.kind, DEEP.text + " " * i) for i in range(3)]
    slow = [Grammar(SLOW.kind, SLOW.text + " " * i) for i in range(2)]
    order: list[Grammar] = []
    futures = {each: grammars.begin(each) for each in (*deadly, *slow, *quick)}
    for each, future in futures.items():
        future.add_done_callback(lambda _, each=each: order.append(each))  # type: ignore[misc]
    found = {each: future.result() for each, future in futures.items()}
    for each in deadly:
        assert found[each] == Problem("it is too complex: its compiler ended (SIGSEGV)", is_costly=True)
    for each in slow:
        assert found[each] == Problem("it takes more than 0.5 s of processor time to compile", is_costly=True)
    assert [found[each] for each in quick] == [None] * len(quick)
    assert max(map(order.index, quick)) < min(map(order.index, slow))


def test_only_some_grammars_wait(tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without workers, which would take them."""
    monkeypatch.setattr(store, "NUM_WORKERS", 0)
    grammars = Grammars(lambda: vocabulary(tokenizer_dir), VOCAB_SIZE)
    for i in range(store.MAX_WAITING):
        grammars.begin(Grammar("regex", f"a{{{i}}}"))
    with pytest.raises(TooManyGrammars):
        grammars.begin(DIGITS)
    assert not grammars.begin(Grammar("regex", "a{3}")).done()
    grammars.close()


def test_only_some_grammars_that_take_long_wait_and_others_may_come_again(
    grammars_of_short_turns: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_UNFINISHED", 0)
    for _ in range(2):
        future = grammars_of_short_turns.begin(SLOW)
        with pytest.raises(TooManyGrammars):
            future.result()
    monkeypatch.undo()
    problem = grammars_of_short_turns.begin(SLOW).result()
    assert problem is not None
    assert problem.is_costly


def test_nobody_waits_for_all_slow_grammars_of_somebody_else(grammars_of_short_turns: Grammars) -> None:
    """One client sends 1,000 different ones. Another's that needs a long turn, too, is compiled next to the first."""
    grammars = grammars_of_short_turns
    many, one = Asker("many"), Asker("one")
    order: list[str] = []
    rejected = 0
    for i in range(1_000):
        try:
            future = grammars.begin(Grammar(SLOW.kind, SLOW.text + " " * i), many)
        except TooManyGrammars as error:
            assert f"{store.MAX_WAITING} other grammars of yours wait" in str(error)
            rejected += 1
        else:
            future.add_done_callback(lambda done: done.exception() or order.append("many"))
    assert rejected
    futures = [
        grammars.begin(Grammar(SLOW.kind, SLOW.text + "\n" * i), asker)
        for i, asker in enumerate((one, Asker("many", is_bulk=True), Asker("bulk", is_bulk=True)), start=1)
    ]
    for name, future in zip(("one", "bulk", "bulk"), futures, strict=True):
        future.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
    quick = grammars.begin(Grammar("regex", "q+"), one)
    quick.add_done_callback(lambda _: order.append("quick"))
    assert quick.result() is None
    problem = futures[0].result()
    assert problem is not None and "0.5 s" in problem.text
    assert order.index("quick") < order.index("one")
    assert order[: order.index("one")].count("many") < store.MAX_UNFINISHED / 2
    assert not futures[1].done() and not futures[2].done()


def test_who_asks_for_what_waits_for_somebody_else_has_it_in_turn(
    tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without workers, which would take them."""
    monkeypatch.setattr(store, "NUM_WORKERS", 0)
    grammars = Grammars(lambda: vocabulary(tokenizer_dir), VOCAB_SIZE)
    for i in range(10):
        grammars.begin(Grammar("regex", f"a{{{i}}}"), Asker("many", is_bulk=True))
    shared = Grammar("regex", "a{9}")
    assert grammars.begin(shared, Asker("one")) is grammars.begin(shared, Asker("many", is_bulk=True))
    assert grammars._waiting[0].pop() == shared
    rest = [grammars._waiting[0].pop() for _ in range(9)]
    assert rest == [Grammar("regex", f"a{{{i}}}") for i in range(9)]
    assert not grammars._waiting[0]
    grammars.close()


def test_a_judge_whose_processes_are_killed_starts_again(grammars: Grammars) -> None:
    assert grammars.begin(Grammar("regex", "x{2}")).result() is None
    for each in judge_of(grammars).children():
        each.kill()
    assert grammars.begin(Grammar("regex", "x{3}")).result() is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such a priority")
def test_compilation_takes_only_the_cpu_that_steps_leave(grammars: Grammars) -> None:
    """Its priority is the lowest, and counts: Linux compares priorities within a session only."""
    future = grammars.begin(Grammar(SLOW.kind, SLOW.text + "  "))  # which is not compiled in its first turn
    judge = judge_of(grammars)
    assert os.getsid(judge.pid) == os.getsid(0)
    assert os.getpgid(judge.pid) != os.getpgid(0)
    wait_for(lambda: os.SCHED_IDLE in map(policy, judge.children(recursive=True)))
    assert not future.done()


def judge_of(grammars: Grammars) -> psutil.Process:
    """Its judge, which other tests of this process have, too."""
    return wait_for(
        lambda: next(
            (
                psutil.Process(judge._process.pid)
                for judge in [grammars._judge]
                if judge is not None and judge._process is not None
            ),
            None,
        )
    )


def policy(process: psutil.Process) -> int | None:
    try:
        return os.sched_getscheduler(process.pid)
    except ProcessLookupError:
        return None


def test_compilation_takes_a_small_share_of_the_cpu_from_steps() -> None:
    now_s = 0.0
    allowance = Allowance(lambda: now_s)
    spent_s = 0.0
    for now_s in range(1_000):  # noqa: B007
        while allowance.is_left():
            allowance.spend(0.03)
            spent_s += 0.03
    assert MOST_S + 1_000 * SHARE - 0.1 <= spent_s <= MOST_S + 1_000 * SHARE + 0.1
    now_s += 1_000
    assert allowance.is_left()
    allowance.spend(MOST_S)
    assert not allowance.is_left()


def test_without_a_tokenizer_no_grammar_can_be_used(tokenizer_dir: Path) -> None:
    def broken() -> Vocabulary:
        raise ValueError("there is none")

    grammars = Grammars(broken, VOCAB_SIZE)
    assert grammars.begin(DIGITS).result() == Problem("there is none")
    grammars.close()


@pytest.mark.parametrize(("vocab_size", "mask_bits"), [(VOCAB_SIZE + 64, VOCAB_SIZE + 64), (300, VOCAB_SIZE)])
def test_logits_without_a_token_are_never_allowed(
    tokenizer_dir: Path, vocab_size: int, mask_bits: int
) -> None:
    """Models pad their vocabulary; some know fewer tokens than their tokenizer."""
    found = vocabulary(tokenizer_dir, vocab_size)
    assert found.mask_bits == mask_bits
    grammars = Grammars(lambda: found, vocab_size)
    text = allowed(grammars, Grammar("regex", "(?s:.)*"))
    assert text <= set(range(VOCAB_SIZE))
    assert 32 * grammars.tokenizer.num_mask_words >= vocab_size


def test_a_special_token_stands_for_the_end_of_a_model_without_an_end_token(tokenizer_dir: Path) -> None:
    grammars = Grammars(lambda: vocabulary(tokenizer_dir, eos=frozenset()), VOCAB_SIZE)
    assert grammars.tokenizer.loaded()
    assert grammars.tokenizer.end_token_ids == (0,)
    digits = {token(grammars, digit) for digit in "0123456789"}
    assert allowed(grammars, DIGITS, "4") == digits | {0}

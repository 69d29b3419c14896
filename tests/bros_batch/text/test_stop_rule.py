"""One rule for stop strings: the engine ends an output at the token at which its decoder cuts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bros_batch.text.message_form import finished_choice
from bros_batch.text.output_decoder import OutputDecoder
from bros_batch.text.tokenizer import ModelTokenizer
from engine.core.plan import RowStart
from engine.core.terms import SamplingParams
from engine.runner.sampling.stop import StopRule, StopTable
from engine.wire.item_messages import Choice
from engine.wire.request_terms import Sampling
from tests.factories_text import make_sentencepiece_model, make_text_model

STOPS = [
    ".",
    "e",
    "he",
    " he",
    " a",
    "ab",
    "a.b",
    "b.",
    "\u00e9",
    "\U0001f642",
    "\n\n",
    "</s>",
    "<|im_start|>",
]
NO_END: frozenset[int] = frozenset()


class Model:
    """A tokenizer as the engine and as the web process have it."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = ModelTokenizer(directory)
        self.is_byte_level = self.tokenizer.bytes_of(3) != b"\0"
        self._table = StopTable(1, NO_END, str(directory))

    def rule(self, prompt: list[int], output: list[int], asked: dict[str, Any]) -> StopRule:
        """The engine's rule for a request that has this output already, as after a preemption."""
        start = RowStart(0, "r", [*prompt, *output], len(prompt), [], SamplingParams(**asked))
        self._table.start(start)
        return self._table._rules[0]

    def engine_end(
        self, prompt: list[int], ids: list[int], asked: dict[str, Any], preempted: int
    ) -> int | None:
        """Number of tokens after which the engine ends the output; it is preempted once on the way."""
        rule = self.rule(prompt, [], asked)
        for number, token_id in enumerate(ids, 1):
            if number == preempted:
                rule = self.rule(prompt, ids[: number - 1], asked)
            if rule.ends(token_id, number):
                return number
        return None


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp("model")
    make = make_text_model if request.param == "byte-level" else make_sentencepiece_model
    return Model(make(directory))


@given(
    words=st.text("abhe. \n\u00e9\U0001f642", max_size=25),
    noise=st.lists(st.tuples(st.integers(0, 25), st.integers(0, 270)), max_size=4),
    prompt=st.lists(st.integers(0, 270), min_size=1, max_size=12),
    stops=st.lists(st.sampled_from(STOPS), min_size=1, max_size=4, unique=True),
    min_tokens=st.integers(0, 12),
    preempted=st.integers(2, 20),
)
@settings(max_examples=600, deadline=None)
def test_engine_and_decoder_end_at_the_same_token(
    model: Model,
    words: str,
    noise: list[tuple[int, int]],
    prompt: list[int],
    stops: list[str],
    min_tokens: int,
    preempted: int,
) -> None:
    ids = model.tokenizer.encode_prompt(words)
    for position, token_id in noise:
        # A run of byte tokens with an invalid one is shown differently as a whole than one by one.
        around = [*ids[max(position - 1, 0) : position + 1], token_id]
        if model.is_byte_level or not any(2 < each < 259 for each in around):
            ids.insert(min(position, len(ids)), token_id)
    asked: dict[str, Any] = {
        "max_tokens": 100,
        "stop": tuple(stops),
        "min_tokens": min_tokens,
        "ignore_eos": True,
    }
    end = model.engine_end(prompt, ids, asked, preempted)
    sampling = Sampling(**asked)

    decoder, shown, seen = OutputDecoder(model.tokenizer, sampling, prompt), "", None
    for number, token_id in enumerate(ids, 1):
        shown += decoder.push([token_id]).text
        is_named = token_id in model.tokenizer.special_ids_of(stops) and number > min_tokens
        if decoder.stopped or is_named:
            seen = number
            break
    assert seen == end
    assert end is None or end > min_tokens

    # What is decoded at once, as bulk is, has the same text.
    output = ids if end is None else ids[:end]
    reason: Any = "length" if end is None else "stop"
    shown += decoder.finish(reason).text
    whole = finished_choice(model.tokenizer, 0, Choice(output, reason), sampling, prompt)
    assert (whole.text, whole.finish_reason) == (shown, reason)
    # Text that counts is cut before a stop string, and the text of the first min_tokens tokens is kept.
    kept = finished_choice(
        model.tokenizer, 0, Choice(ids[:min_tokens], "length"), Sampling(max_tokens=100), prompt
    )
    everything = finished_choice(
        model.tokenizer, 0, Choice(output, "length"), Sampling(max_tokens=100), prompt
    )
    assert everything.text.startswith(whole.text)
    if end is None:
        assert whole.text == everything.text
    assert not any(whole.text.find(stop, len(kept.text)) >= 0 for stop in stops)


def test_a_stop_string_within_min_tokens_is_text(model: Model) -> None:
    """The answer is "a b. a. b."; a stop string that ends in the sixth token is shown if six tokens are asked for."""
    ids = model.tokenizer.encode_prompt("abe.ab.e")
    dots = [number for number, token_id in enumerate(ids, 1) if model.tokenizer.decode([token_id]) == "."]
    assert len(dots) == 2
    for min_tokens, end in ((0, dots[0]), (dots[0] - 1, dots[0]), (dots[0], dots[1]), (dots[1], None)):
        asked: dict[str, Any] = {
            "max_tokens": 100,
            "stop": (".",),
            "min_tokens": min_tokens,
            "ignore_eos": True,
        }
        assert model.engine_end([5], ids, asked, 0) == end
        choice = Choice(ids[:end], "length" if end is None else "stop")
        text = finished_choice(model.tokenizer, 0, choice, Sampling(**asked)).text
        assert text == {dots[0]: "abe", dots[1]: "abe.ab", None: "abe.ab.e"}[end]

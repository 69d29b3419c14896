"""Errors of regular expressions and Lark grammars say what is wrong, where, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from llguidance import LLTokenizer

from bros_batch.settings import DEMO_MODEL_DIR
from engine.core.terms import Grammar
from engine.grammars.compiling import UnusableGrammar, compile_grammar


@pytest.fixture(scope="module")
def tokenizer() -> LLTokenizer:
    return LLTokenizer((Path(DEMO_MODEL_DIR) / "tokenizer.json").read_text())


def error_of(grammar: Grammar, tokenizer: LLTokenizer) -> str:
    with pytest.raises(UnusableGrammar) as caught:
        compile_grammar(grammar, tokenizer)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "what", "advice"),
    [
        ("ab(c", 'unclosed group, at character 3 of the expression ("(c")', "Close it"),
        ("a|b)", 'unopened group, at character 4 of the expression (")")', "backslash"),
        ("x(?=y)", 'at character 2 of the expression ("(?=y)")', "Leave it out"),
        (r"\bword", r"word boundaries such as \b", "Leave it out"),
        (
            r"(a)\1",
            r'backreferences are not supported, at character 4 of the expression ("\1")',
            "Leave it out",
        ),
        ("a{,3}", 'at character 3 of the expression (",3}")', "{0,3}"),
        ("[^\\x00-\\x{10FFFF}]", "no output matches it", ""),
    ],
)
def test_a_regular_expression(tokenizer: LLTokenizer, text: str, what: str, advice: str) -> None:
    error = error_of(Grammar("regex", text), tokenizer)
    assert what in error
    assert advice in error


@pytest.mark.parametrize(
    ("text", "what", "advice"),
    [
        (
            "start: words\nwords: other",
            'line 2, column 8 ("words: other"): unknown name: "other"',
            "Define it",
        ),
        ('start: "a', 'line 1, column 10 ("start: "a"): ', "double quotes"),
        (
            "start: WORD\nWORD: /a(/",
            'line 2, column 7 ("WORD: /a(/"): unclosed group, at character 2',
            "Close it",
        ),
        ('answer: "a"', "no start rule", "Add a rule named 'start'"),
        ("start: start", "no output matches it", "alternative"),
        (f'start: "a" {"b" * 99}', f'("start: "a" {"b" * 29}...")', "Define it"),
    ],
)
def test_a_lark_grammar(tokenizer: LLTokenizer, text: str, what: str, advice: str) -> None:
    error = error_of(Grammar("lark", text), tokenizer)
    assert what in error
    assert advice in error

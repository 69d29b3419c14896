"""What is wrong with a regular expression or a Lark grammar, where, and what to do about it."""

from __future__ import annotations

import re

from engine.core.terms import Grammar

MAX_QUOTED_CHARS = 40
MAX_MESSAGE_CHARS = 300
NOTHING_MATCHES = "no output matches it"

# Line and column of a grammar, and what is said about it.
_PLACED = re.compile(r"(?:at )?(\d+)\((\d+)\): (.*)", re.DOTALL)
# The regular expression, the mark below the part that is wrong, and what is said about it.
_REGEX_ERROR = re.compile(r"regex parse error:\n {4}(.*)\n {4}( *)\^+ *\n(?:.*\n)*?error: (.*)")
_NO_SUCH_ASSERTION = re.compile(r"lookarounds not supported yet; (\w+) in regex")

# What to do, by words of an error.
_ADVICE = (
    ("look-around", "Leave it out, and write what may stand there instead."),
    ("backreferences", "Leave it out, and write what may stand there instead."),
    ("unclosed", "Close it, or put a backslash before a character that stands for itself."),
    ("unopened", "Put a backslash before a character that stands for itself."),
    ("missing expression", "Put a backslash before a character that stands for itself."),
    ("valid decimal", "Write a number of repetitions, as in {0,3}, or a backslash before the brace."),
    ("escape sequence", "Leave out the backslash before a character that has no other meaning."),
    ("unknown name", "Define it, or correct the name."),
    (
        "lexer error",
        "Strings are in double quotes, and regular expressions in slashes; each ends in its line.",
    ),
    ("no start rule", "Add a rule named 'start': outputs follow it."),
    ("Empty grammar", "Add a rule named 'start': outputs follow it."),
    (NOTHING_MATCHES, "Every rule needs an alternative that does not contain the rule itself."),
)


def explained(grammar: Grammar, error: str) -> str:
    """What the compiler's error says of a grammar of this kind."""
    if "NoExtensionBias" in error:
        error = NOTHING_MATCHES
    place = ""
    placed = _PLACED.match(error)
    if placed is not None:
        error = placed[3]
        if grammar.kind == "lark":
            place = f"line {placed[1]}, column {placed[2]} ({_quoted(_line(grammar.text, int(placed[1])))}): "
    if grammar.kind == "regex" and error == NOTHING_MATCHES:
        return error
    what = _of_regex(error) or error.strip().splitlines()[0][:MAX_MESSAGE_CHARS]
    advice = next((advice for words, advice in _ADVICE if words in what), None)
    return f"{place}{what}" if advice is None else f"{place}{what}. {advice}"


def _of_regex(error: str) -> str | None:
    found = _REGEX_ERROR.search(error)
    if found is not None:
        pattern, before, what = found[1], len(found[2]), found[3].strip()
        return f"{what}, at character {before + 1} of the expression ({_quoted(pattern[before:])})"
    assertion = _NO_SUCH_ASSERTION.search(error)
    if assertion is not None:
        return "look-around, including word boundaries such as \\b, is not supported"
    return None


def _line(text: str, number: int) -> str:
    lines = text.splitlines()
    return lines[number - 1].strip() if 0 < number <= len(lines) else ""


def _quoted(text: str) -> str:
    return f'"{text}"' if len(text) <= MAX_QUOTED_CHARS else f'"{text[:MAX_QUOTED_CHARS]}..."'

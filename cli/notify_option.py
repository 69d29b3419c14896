"""Options that name the URL of a webhook."""

from __future__ import annotations

from typing import Any

import click

from bros_batch.webhook_url import check_webhook_url


class WebhookUrl(click.ParamType):  # type: ignore[type-arg]
    """The URL of a webhook; where `may_be_none`, also `none` to remove it."""

    name = "url"

    def __init__(self, *, may_be_none: bool = False) -> None:
        self._may_be_none = may_be_none

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "URL|none" if self._may_be_none else "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "none" and self._may_be_none:
            return value
        try:
            check_webhook_url(str(value))
        except ValueError as error:
            self.fail(f"{value!r} {error}.", param, ctx)
        return value


notify_option = click.option(
    "--notify",
    type=WebhookUrl(),
    help="Webhook that is told when the job has ended, with OpenAI's events (batch.completed, ...).",
)

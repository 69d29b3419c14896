"""HTML of the Markdown that models write. It contains only tags of Markdown: HTML in the text is shown as text."""

from __future__ import annotations

import asyncio

import msgspec
from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from starlette.requests import Request
from starlette.responses import Response

from bros_batch.web.app_state import app_state
from bros_batch.web.errors import ApiError, JSONResponse

MAX_CHARS = 100_000
# Brackets that are never closed take time by the square of their paragraph: each is looked for up to its end.
MAX_BRACKET_CHARS = 300_000
LINKS = ("http://", "https://", "mailto:")

# The parser lets no other thread run for milliseconds at a time, so only one text is formatted at once.
_formatting = asyncio.Semaphore(1)


class Text(msgspec.Struct):
    """Body of `POST /chat/markdown`."""

    text: str


async def format_markdown(request: Request) -> Response:
    """Respond with the HTML of a text."""
    body = await app_state(request).parsed(request, _text_in)
    if len(body.text) > MAX_CHARS:
        message = f"The text has {len(body.text)} characters; at most {MAX_CHARS} are formatted."
        raise ApiError(413, message, code="too_large")
    async with _formatting:
        html = await asyncio.to_thread(markdown_html, body.text)
    return JSONResponse({"html": html})


def markdown_html(text: str) -> str:
    """The HTML of `text`. Images become links, and links to anything but web and mail addresses stay text."""
    return str(_PARSER.render(text))


def _text_in(raw: bytes) -> Text:
    try:
        return msgspec.json.decode(raw, type=Text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"Not a text: {error}.", code="invalid_request") from None


def _keep_costly_text(state: StateCore) -> None:
    """Leave paragraphs as they are if looking for their links takes too long."""
    left = MAX_BRACKET_CHARS
    for token in state.tokens:
        if token.type == "inline":
            cost = token.content.count("[") * len(token.content)
            if cost > left:
                token.type = "text"
            else:
                left -= cost


def _suit_page(state: StateCore) -> None:
    """Make links open in another tab, to which this page is unknown, and name the alignment of cells by a class: the
    page's policy allows no styles in the text."""
    for token in state.tokens:
        if "style" in token.attrs:
            token.attrs = {"class": str(token.attrs["style"]).removeprefix("text-align:")}
        children = token.children or []
        for place in range(len(children) - 1, -1, -1):
            link = children[place]
            if link.type != "link_open":
                continue
            if (
                children[place + 1].type == "link_close"
            ):  # it has no text, as that of an image without a description
                children.insert(place + 1, Token("text", "", 0, content=str(link.attrs["href"])))
            link.attrs.update(target="_blank", rel="noopener noreferrer")


def _parser() -> MarkdownIt:
    parser = MarkdownIt("js-default", {"html": False}).disable("image")
    parser.validateLink = lambda url: url.lower().startswith(LINKS)  # type: ignore[method-assign]
    parser.core.ruler.before("inline", "keep_costly_text", _keep_costly_text)
    parser.core.ruler.push("suit_page", _suit_page)
    return parser


_PARSER = _parser()

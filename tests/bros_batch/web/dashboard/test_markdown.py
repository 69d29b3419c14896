"""Markdown of a model becomes HTML that holds nothing but Markdown's own tags."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from bros_batch.web.dashboard.markdown import MAX_CHARS, markdown_html
from tests.bros_batch.web.serving import serving, web_settings

NAMES = "a blockquote br code em h1 h2 h3 h4 h5 h6 hr li ol p pre s strong table tbody td th thead tr ul"
TAGS = frozenset(NAMES.split())
ATTRIBUTES = {
    "a": {"href", "title", "target", "rel"},
    "ol": {"start"},
    **{tag: {"class"} for tag in ("code", "td", "th")},
}
TEXTS = """<script> <img/src=x onerror=alert(1)> ![a]( [a]( ) ] javascript: data:text/html, https://a.b " ' < > & ` ```
~~~ | |:-: - * ** _ # 1. \\ &lt; &#106; <!-- --> <a href="""
PIECES = st.sampled_from([*TEXTS.split(), " ", "\n", "\n\n", "\t", "\x00"])


class Checker(HTMLParser):
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        for name, value in attrs:
            assert name in ATTRIBUTES[tag]
            if name == "href":
                assert value is not None
                assert value.lower().startswith(("http://", "https://", "mailto:"))

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


@given(st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=30).map("".join))
@example("[a](javascript:alert(1)) [b](JaVaScRiPt&#58;alert(1)) <javascript:alert(1)> [c]: data:x\n\n[c]")
@example('```"><script>\nx\n```\n\n| a |\n|:-:|\n| <b onclick=x> |')
def test_any_text_becomes_harmless_html(text: str) -> None:
    checker = Checker()
    checker.feed(markdown_html(text))
    checker.close()


def test_brackets_that_never_close_stay_text_and_links_have_a_text() -> None:
    """Each of them would be searched for up to the end: that would take minutes."""
    text = "[" * (MAX_CHARS - 20)
    assert markdown_html(f"{text}\n\n**after**").endswith("[</p>\n<p><strong>after</strong></p>\n")
    assert ">https://a.b/i.png</a>" in markdown_html("![](https://a.b/i.png)")
    assert '<a href="https://a.b"' in markdown_html("[x](https://a.b) [y]\n\n" * 100)


def test_the_route_takes_a_text_of_limited_length(tmp_path: Path, text_model: Path) -> None:
    with serving(web_settings(tmp_path, text_model)) as web, web.http() as http:
        answer = http.post("/chat/markdown", json={"text": "*a*"})
        assert answer.json() == {"html": "<p><em>a</em></p>\n"}
        for body, status in ((b"", 400), (b"[]", 400), (b'{"text": "\xff"}', 400), (b'{"text": 1}', 400)):
            assert http.post("/chat/markdown", content=body).status_code == status
        long = http.post("/chat/markdown", json={"text": "a" * (MAX_CHARS + 1)})
        assert (long.status_code, long.json()["error"]["code"]) == (413, "too_large")
        foreign = http.post("/chat/markdown", json={"text": "a"}, headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403

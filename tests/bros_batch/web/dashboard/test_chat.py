"""The chat page in a real browser, with an engine that repeats what it is asked, slowly if a test wants that."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from bros_batch.text.tokenizer import ModelTokenizer
from engine.__main__ import make_runner
from engine.config import EngineConfig
from engine.runner.simulated import SimulatedCost, SimulatedRunner
from tests.bros_batch.web.browser import browser
from tests.bros_batch.web.dashboard.test_accessibility import RUN
from tests.bros_batch.web.dashboard.test_accessibility import axe as axe_source  # noqa: F401
from tests.bros_batch.web.dashboard.test_site import FAINT_TEXTS
from tests.bros_batch.web.repeating_engine import RepeatingRunner
from tests.bros_batch.web.serving import MODEL_NAME, serving, web_settings
from tests.engines import RunningEngine, running_engine
from tests.services import wait_for

MARKDOWN = """# Invoice 17

The **total** is `12.50`, from [ACME](https://acme.example), [not this](javascript:alert(1)).

| item | price |
|:--|--:|
| tea | 4.50 |

```python
if x < 1:
    print("a line of code that is far wider than the screen of any phone, so it is scrolled", x)
```

<script>document.title = "pwned"</script> <img src=x onerror="document.title='pwned'"> ![](https://evil.example/x.png)
"""
STORY = "Once upon a time " + "there was a king, " * 60 + "and he lived happily."
LONG_WAIT_S = 60.0


class PacedRunner(RepeatingRunner):
    """The repeating runner, with a pause after each step."""

    def __init__(self, runner: SimulatedRunner, tokenizer: ModelTokenizer) -> None:
        super().__init__(runner, tokenizer)
        self.pause_s = 0.0
        self._cost = SimulatedCost(step_s=1.0)
        self._wait = lambda _step_s: time.sleep(self.pause_s)


@dataclass(frozen=True)
class Service:
    url: str
    engine: RunningEngine
    runner: PacedRunner


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, text_model: Path) -> Iterator[Service]:
    """A server whose engine takes one chat at a time."""
    directory = tmp_path_factory.mktemp("chat")
    options: Any = {"model": str(text_model), "served_model_name": MODEL_NAME, "max_model_len": 2048}
    plain = make_runner(EngineConfig(listen="unused", runner="simulated", **options))
    assert isinstance(plain, SimulatedRunner)
    runner = PacedRunner(plain, ModelTokenizer(text_model))
    with (
        running_engine(directory, runner, max_waiting_rt=1, **options) as engine,
        serving(web_settings(directory / "web", text_model, engine_url=engine.url)) as web,
    ):
        yield Service(web.url, engine, runner)


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    with browser() as chrome:
        yield chrome


@dataclass(frozen=True)
class ChatPage:
    """What a person sees and does on the page."""

    chrome: Chrome
    url: str

    def run(self, script: str, *arguments: Any) -> Any:
        return self.chrome.execute_script(script, *arguments)  # type: ignore[no-untyped-call]

    def all(self, css: str) -> list[WebElement]:
        return [each for each in self.chrome.find_elements(By.CSS_SELECTOR, css) if each.is_displayed()]

    def texts(self, css: str) -> list[str]:
        return [str(text) for text in self.run(
            "return [...document.querySelectorAll(arguments[0])].filter((each) => each.checkVisibility())"
            ".map((each) => each.innerText.trim())", css
        )]  # fmt: skip

    @property
    def field(self) -> WebElement:
        return self.chrome.find_element(By.NAME, "question")

    @property
    def typed(self) -> str:
        return str(self.field.get_attribute("value"))

    def type(self, text: str) -> None:
        self.run(
            "const field = arguments[0]; field.value = arguments[1]; field.dispatchEvent(new Event('input'));",
            self.field,
            text,
        )

    def press(self, label: str) -> None:
        def found() -> WebElement | None:
            buttons = [each for each in self.all("button") if each.text == label]
            return buttons[-1] if buttons else None

        wait_for(found, f"the button {label}").click()

    def until(self, condition: Callable[[], object], what: str) -> None:
        try:
            wait_for(condition, what, timeout_s=LONG_WAIT_S)
        except AssertionError as error:
            error.add_note(str(self.run("return document.body.innerText")))
            raise

    def is_idle(self) -> bool:
        return self.texts("#send") == ["Send"]

    def ask(self, text: str) -> None:
        """Ask, and wait for the end of the answer."""
        count = len(self.all(".turn"))
        self.type(text)
        self.field.send_keys(Keys.ENTER)
        self.until(lambda: len(self.all(".turn")) == count + 2 and self.is_idle(), "the answer")

    def setting(self, name: str, value: str) -> None:
        self.run("document.querySelector('.shape').open = true")
        self.chrome.find_element(By.NAME, name).send_keys(value)


@pytest.fixture
def page(service: Service, chrome: Chrome) -> ChatPage:
    """A new page in a browser that remembers no conversation."""
    service.runner.pause_s = 0.0
    chrome.get(f"{service.url}/chat")
    chrome.execute_script("localStorage.clear(); sessionStorage.clear();")  # type: ignore[no-untyped-call]
    chrome.get(f"{service.url}/chat?fresh")
    chrome.get(f"{service.url}/chat")
    chrome.get_log("browser")  # type: ignore[no-untyped-call]
    return ChatPage(chrome, service.url)


def test_an_answer_is_streamed_stopped_regenerated_and_its_question_changed(
    service: Service, page: ChatPage
) -> None:
    service.runner.pause_s = 0.03
    page.type(STORY)
    page.press("Send")
    page.until(lambda: "Once upon" in "".join(page.texts(".theirs")), "the beginning")
    assert not page.is_idle()
    page.until(lambda: page.all(".theirs.formatted"), "a part of it as Markdown")
    page.chrome.find_element(By.ID, "new-chat").send_keys(Keys.ESCAPE)
    page.until(page.is_idle, "the stop")
    wait_for(lambda: not service.engine.scheduler.has_work, "the engine to be free")
    (part,) = page.texts(".theirs")
    (note,) = page.texts(".answered .tools .note")
    assert STORY.startswith(part.removesuffix("�"))
    assert len(part) < len(STORY)
    assert note.startswith("first token after ")
    assert note.endswith(" tokens/s · stopped")
    assert page.chrome.switch_to.active_element == page.field

    service.runner.pause_s = 0.0
    page.press("Regenerate")
    page.until(lambda: page.texts(".theirs") == [STORY] and page.is_idle(), "the whole answer")
    assert page.chrome.switch_to.active_element == page.field
    assert "stopped" not in page.texts(".answered .note")[0]

    page.press("Edit")
    field = page.chrome.switch_to.active_element
    assert field.get_attribute("value") == STORY
    field.clear()
    field.send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two", Keys.ENTER)
    page.until(lambda: page.texts(".theirs") == ["one two"], "the answer to it, as Markdown")
    assert page.texts(".mine") == ["one\ntwo"]
    page.press("Edit")
    page.chrome.switch_to.active_element.send_keys("three", Keys.ESCAPE)
    assert page.texts(".mine") == ["one\ntwo"]
    assert page.chrome.switch_to.active_element == page.field


def test_markdown_is_formatted_harmless_and_copied(
    service: Service,
    page: ChatPage,
    axe_source: str,  # noqa: F811
) -> None:
    page.ask(MARKDOWN)
    page.until(lambda: page.all(".theirs td.right"), "the table")
    assert page.texts(".theirs :is(h1, strong, p code)") == ["Invoice 17", "total", "12.50"]
    (link,) = page.all(".theirs a[href*=acme]")
    assert (link.get_attribute("target"), link.get_attribute("rel")) == ("_blank", "noopener noreferrer")
    assert "[not this](javascript:alert(1))" in page.texts(".theirs")[0]
    assert "<img src=x onerror" in page.texts(".theirs")[0]
    assert (
        page.run(
            "return document.querySelectorAll('main :is(script, img, iframe, [style], [onerror])').length"
        )
        == 0
    )
    assert page.chrome.title == "# Invoice 17 The **total** is `12.50`, from [ACME](https://a · bros-batch"

    page.chrome.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})

    def clipboard() -> str:
        script = (
            "const done = arguments[0]; navigator.clipboard.readText().then(done, (e) => done(String(e)));"
        )
        return str(page.chrome.execute_async_script(script))  # type: ignore[no-untyped-call]

    page.all(".copy-code")[0].click()
    page.until(lambda: page.texts(".copy-code") == ["Copied"], "the copy")
    assert clipboard() == MARKDOWN.split("```")[1].removeprefix("python\n")
    page.all(".answered .copy")[0].click()
    page.until(lambda: clipboard() == MARKDOWN.strip(), "the copy of the message")

    page.chrome.execute_script(axe_source)  # type: ignore[no-untyped-call]
    passed, found = page.chrome.execute_async_script(RUN)  # type: ignore[no-untyped-call]
    assert passed > 10
    assert found == []
    assert [each["message"] for each in page.chrome.get_log("browser")] == []  # type: ignore[no-untyped-call]
    for width, dark in ((390, True), (390, False)):
        with browser(width=width, height=844, dark=dark) as phone:
            phone.get(f"{service.url}/chat")
            small = ChatPage(phone, service.url)
            small.ask(MARKDOWN)
            small.until(lambda: small.all(".theirs td.right"), "the table")  # noqa: B023
            assert small.run("return document.documentElement.scrollWidth <= innerWidth")
            seen, faint = small.run(FAINT_TEXTS)
            assert seen > 20
            assert faint == []


def test_conversations_and_settings_survive_a_reload(page: ChatPage) -> None:
    bodies = "window.bodies = []; const real = window.fetch; window.fetch = (url, options) => {"
    bodies += (
        "if (url === '/chat') window.bodies.push(JSON.parse(options.body)); return real(url, options); };"
    )
    page.run(bodies)
    page.setting("system", "Be brief.")
    page.setting("temperature", "0.5")
    page.setting("max_tokens", "100")
    page.ask("First")
    page.ask("Second")
    settings = {"temperature": 0.5, "max_tokens": 100}
    said = [("system", "Be brief."), ("user", "First"), ("assistant", "First"), ("user", "Second")]
    messages = [{"role": role, "content": content} for role, content in said]
    assert page.run("return window.bodies.at(-1)") == {"messages": messages, **settings}
    page.press("New chat")
    assert page.texts(".turn") == []
    page.run("window.bodies.length = 0")
    page.ask("Third")
    assert page.run("return window.bodies.at(-1).temperature") == 0.5
    page.type("not sent yet")
    page.chrome.refresh()
    page.until(lambda: page.texts(".mine") == ["Third"], "the conversation after a reload")
    assert page.typed == "not sent yet"
    assert page.texts(".past a") == ["Third", "First"]
    page.all(".past a")[1].click()
    page.until(lambda: page.texts(".mine") == ["First", "Second"], "the other conversation")
    page.until(lambda: len(page.all(".theirs.formatted")) == 2, "its answers")
    page.chrome.back()
    page.until(lambda: page.texts(".mine") == ["Third"], "the one before")
    page.chrome.forward()
    page.until(lambda: page.texts(".mine") == ["First", "Second"], "the one after it")
    assert page.chrome.find_element(By.NAME, "system").get_attribute("value") == "Be brief."

    page.all('[aria-label="Delete “First”"]')[0].click()
    page.press("Keep")
    assert page.texts(".past a") == ["Third", "First"]
    page.all('[aria-label="Delete “First”"]')[0].click()
    page.press("Delete")
    page.until(lambda: page.texts(".past a") == ["Third"], "the list without it")
    assert page.texts(".turn") == []
    page.chrome.refresh()
    page.until(lambda: page.texts(".past a") == ["Third"], "the list after a reload")


def test_old_conversations_make_room(page: ChatPage) -> None:
    page.run(
        """
        const question = { role: "user", content: "x".repeat(400000) };
        const messages = [question, { role: "assistant", content: "", calls: [] }];
        for (let n = 1; n <= 12; n += 1) {
          const old = { id: `old${n}`, title: `Old ${n}`, updated: n, settings: {}, messages };
          localStorage.setItem(`bros-chat:old${n}`, JSON.stringify(old));
        }
        localStorage.setItem("bros-chat:broken", "{");
        """
    )
    page.chrome.refresh()
    page.ask("y" * 300 + " " + "word " * 300)
    kept = page.texts(".past a")
    assert kept[0].startswith("yyy")
    assert kept[1] == "Old 12"
    page.chrome.refresh()
    page.until(lambda: page.texts(".past a") == kept, "the same list")


def test_a_rejected_question_is_kept_and_asked_again(
    service: Service, page: ChatPage, tmp_path: Path
) -> None:
    service.runner.pause_s = 0.03
    page.type(STORY)
    page.field.send_keys(Keys.ENTER)
    page.until(lambda: "Once upon" in "".join(page.texts(".theirs")), "the first answer")
    page.press("New chat")
    notes = tmp_path / "notes.txt"
    notes.write_text("The king is called Otto.", encoding="utf-8")
    page.chrome.find_element(By.ID, "file-field").send_keys(str(notes))
    page.until(lambda: page.texts("#files li"), "the file")
    page.field.send_keys("Who?", Keys.ENTER)
    page.until(lambda: page.texts(".failed p"), "the rejection")
    assert page.texts(".failed p") == [
        "The server is too busy to answer in time, so it did not take this message. Try again in a few seconds."
    ]
    assert page.typed == "Who?"
    assert [each.split(" ·")[0] for each in page.texts("#files li")] == ["notes.txt"]
    assert page.texts(".turn") == []
    assert page.chrome.switch_to.active_element == page.field
    page.chrome.back()
    page.until(lambda: page.texts(".mine") == [STORY], "the first conversation")
    assert not page.is_idle(), "its answer has gone on"
    page.all(".past .delete")[0].click()
    page.press("Delete")
    wait_for(lambda: not service.engine.scheduler.has_work, "the engine to be free")
    page.until(lambda: page.texts(".turn") == [] and page.is_idle(), "a new conversation")
    assert page.texts(".past a") == []
    service.runner.pause_s = 0.0
    page.press("Send")
    page.until(
        lambda: page.texts(".theirs.formatted p") == ["File notes.txt:", "The king is called Otto.", "Who?"],
        "it",
    )
    assert page.texts(".asked summary")[0].startswith("notes.txt · 24 bytes")
    assert page.typed == ""
    page.type("x" * 100 + "word " * 3000)
    page.press("Send")
    page.until(lambda: "maximum context length" in "".join(page.texts(".failed p")), "the error")
    page.type("short")
    page.press("Retry")
    page.until(
        lambda: page.texts(".theirs")[-1:] == ["short"] and page.is_idle(), "the answer after the error"
    )
    assert page.texts(".failed") == []


def test_files_that_cannot_be_read_are_refused_by_name(page: ChatPage, tmp_path: Path) -> None:
    for name, content, words in (
        ("photo.png", b"\x89PNG\r\n\x1a\n\x00\x00", "photo.png is not a text file in UTF-8."),
        ("empty.txt", b" \n", "empty.txt is empty."),
        ("large.csv", b"a,b\n" * 150_000, "large.csv has 600 KB. At most 500 KB fit into a message"),
    ):
        (tmp_path / name).write_bytes(content)
        page.chrome.find_element(By.ID, "file-field").send_keys(str(tmp_path / name))
        page.until(lambda w=words: page.texts("#ask-note")[:1] and w in page.texts("#ask-note")[0], words)
        assert page.texts("#files li") == []
    page.run(
        """
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File(["\\ufefffrom a drop"], "dropped.md"));
        document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer }));
        """
    )
    page.until(lambda: page.texts("#files li"), "the dropped file")
    assert page.texts("#ask-note") == []
    page.all('[aria-label="Remove dropped.md"]')[0].click()
    assert page.texts("#files li") == []
    assert json.loads(page.run("return sessionStorage.getItem('bros-chat-draft')")) == {
        "text": "",
        "files": [],
    }

"""The dashboard in a real browser, over the real services."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select
from sqlalchemy import update

from bros_batch.db import jobs, tables
from bros_batch.db.connections import open_database, writing
from bros_batch.up.service_commands import web_command
from tests.bros_batch.web.browser import browser
from tests.bros_batch.web.repeating_engine import repeating_web
from tests.bros_batch.web.serving import MODEL_NAME, Web, serving, whole_service
from tests.factories_tools import make_tool_model
from tests.services import Process, Processes, RedisServer, wait_for

CHAT: Any = "/v1/chat/completions"
KEY = "sk-dashboard-key"


@pytest.fixture(scope="module")
def service(redis_of_session: RedisServer, text_model: Path) -> Iterator[tuple[Web, Processes]]:
    with whole_service(redis_of_session.url, text_model) as service:
        yield service


@pytest.fixture(scope="module")
def site(service: tuple[Web, Processes]) -> Web:
    return service[0]


@pytest.fixture(scope="module")
def chrome() -> Iterator[Chrome]:
    with browser() as chrome:
        yield chrome


def shown(chrome: Chrome) -> str:
    """Return the visible text of the page."""
    return str(chrome.execute_script("return document.body.innerText"))  # type: ignore[no-untyped-call]


def wait_text(chrome: Chrome, *words: str) -> str:
    def there() -> str | None:
        text = shown(chrome)
        return text if all(word in text for word in words) else None

    try:
        return str(wait_for(there, f"{words} on the page"))
    except AssertionError as error:
        error.add_note(shown(chrome))
        raise


def press(chrome: Chrome, label: str) -> None:
    """Press a button with the keyboard: a click would miss one that moves, because something appears above it."""

    def pressed() -> bool:
        for button in chrome.find_elements(By.CSS_SELECTOR, "button"):
            try:
                if button.is_displayed() and button.text.strip() == label:
                    button.send_keys(Keys.ENTER)
                    return True
            except StaleElementReferenceException:
                return False
        return False

    wait_for(pressed, f"the button {label!r}")


def lines(count: int, **body: Any) -> bytes:
    def line(number: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"Document {number}"}]
        request = {"model": MODEL_NAME, "messages": messages, "max_tokens": 4, **body}
        return {"custom_id": f"doc-{number}", "method": "POST", "url": CHAT, "body": request}

    return "".join(json.dumps(line(number)) + "\n" for number in range(count)).encode()


def submit(client: OpenAI, content: bytes, name: str) -> str:
    file = client.files.create(file=("in.jsonl", io.BytesIO(content)), purpose="batch")
    extra = {"name": name}
    return client.batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h", extra_body=extra
    ).id


def update_job(web: Web, job_id: str, **values: Any) -> None:
    database = open_database(web.settings.resolved_database_url)
    with writing(database) as connection:
        connection.execute(update(tables.jobs).where(tables.jobs.c.id == job_id).values(**values))
    database.dispose()


def unattended_job(web: Web, name: str, **values: Any) -> str:
    """Create a paused job, which no worker touches, so that the page shows exactly these values."""
    database = open_database(web.settings.resolved_database_url)
    with writing(database) as connection:
        job = jobs.create_job(
            connection, input_file_id="file-none", endpoint=CHAT, model=MODEL_NAME, name=name
        )
        connection.execute(
            update(tables.jobs).where(tables.jobs.c.id == job.id).values(status="paused", **values)
        )
    database.dispose()
    return job.id


def test_a_job_is_followed_to_its_end(site: Web, chrome: Chrome) -> None:
    chrome.get(site.url)
    wait_text(chrome, "No jobs yet", "engine up")
    with site.openai() as client:
        job_id = submit(client, lines(30) + b"no json\n", "my first job")
        wait_text(chrome, "my first job")
        wait_text(chrome, "completed", "30 / 31", "1 failed")
        chrome.find_element(By.CSS_SELECTOR, f'tr.job[id="{job_id}"] .name a').click()
        wait_text(chrome, "30 of 31", "invalid_request", "Results", "Errors", "What was wrong")
        assert chrome.current_url == f"{site.url}/jobs/{job_id}"
        links = {
            link.text: link.get_attribute("href")
            for link in chrome.find_elements(By.CSS_SELECTOR, "nav.downloads a")
        }
        batch = client.batches.retrieve(job_id)
        assert links["Results"] == f"{site.url}/v1/files/{batch.output_file_id}/content"
        assert links["Errors"] == f"{site.url}/v1/files/{batch.error_file_id}/content"


def test_counts_move_without_a_reload(site: Web, chrome: Chrome) -> None:
    job_id = unattended_job(site, "moving", total=1000, succeeded=10)
    chrome.get(f"{site.url}/jobs/{job_id}")
    wait_text(chrome, "moving", "10 of 1\u202f000")
    update_job(site, job_id, succeeded=700, failed=3)
    wait_text(chrome, "700 of 1\u202f000")
    bar = chrome.find_element(By.CSS_SELECTOR, '[role="progressbar"]')
    assert bar.get_attribute("aria-valuenow") == "703"
    chrome.get(site.url)
    wait_text(chrome, "700 / 1\u202f000", "3 failed")


def test_buttons_move_a_job(site: Web, chrome: Chrome) -> None:
    job_id = unattended_job(site, "buttons", total=5)

    def status() -> str:
        with site.openai() as client:
            return client.batches.retrieve(job_id).status

    chrome.get(f"{site.url}/jobs/{job_id}")
    wait_text(chrome, "buttons", "paused")
    press(chrome, "Cancel")
    wait_text(chrome, "Cancel this job?")
    press(chrome, "Keep it")
    assert status() == "paused"
    press(chrome, "Cancel")
    press(chrome, "Cancel the job")
    wait_text(chrome, "cancell")
    wait_for(lambda: status() in ("cancelling", "cancelled"), "the end of the job")


def test_pause_and_resume(site: Web, chrome: Chrome) -> None:
    job_id = unattended_job(site, "pausing", total=5)
    update_job(site, job_id, status="in_progress", total=10**6)
    chrome.get(f"{site.url}/jobs/{job_id}")
    press(chrome, "Pause")
    wait_text(chrome, "paused")
    press(chrome, "Resume")
    wait_text(chrome, "running")
    press(chrome, "Pause")
    wait_text(chrome, "paused")


def test_filters(site: Web, chrome: Chrome) -> None:
    unattended_job(site, "needle in the hay", total=5)
    unattended_job(site, "other thing", total=5)
    chrome.get(site.url)
    wait_text(chrome, "needle in the hay", "other thing")
    chrome.find_element(By.CSS_SELECTOR, '[aria-label="Search"]').send_keys("needle")
    wait_for(lambda: "other thing" not in shown(chrome), "the search")
    assert "needle in the hay" in shown(chrome)
    assert "all 1" in wait_text(chrome, "paused 1")
    Select(chrome.find_element(By.CSS_SELECTOR, '[aria-label="Order"]')).select_by_visible_text("By name")
    wait_for(lambda: chrome.current_url == f"{site.url}/?search=needle&sort=name", "the order in the URL")
    chrome.find_element(By.ID, "state-paused").click()
    wait_for(lambda: chrome.find_element(By.ID, "state-paused").get_attribute("aria-current"), "the filter")
    assert chrome.current_url == f"{site.url}/?search=needle&sort=name&status=paused"
    chrome.refresh()
    assert "needle in the hay" in shown(chrome)
    field = chrome.find_element(By.CSS_SELECTOR, '[aria-label="Search"]')
    assert field.get_attribute("value") == "needle"
    field.send_keys(" nowhere")
    wait_text(chrome, "No job matches")
    chrome.back()
    wait_text(chrome, "needle in the hay")
    assert chrome.find_element(By.CSS_SELECTOR, '[aria-label="Search"]').get_attribute("value") == "needle"
    chrome.back()
    chrome.back()
    wait_text(chrome, "needle in the hay")
    assert chrome.current_url == f"{site.url}/?search=needle"


def test_focus_and_selection_survive_refreshes(site: Web, chrome: Chrome) -> None:
    job_id = unattended_job(site, "focused", total=1000)
    chrome.get(f"{site.url}/?search=focused")
    wait_text(chrome, "focused", "0 / 1\u202f000")
    for _ in range(30):
        chrome.switch_to.active_element.send_keys(Keys.TAB)
        if (chrome.switch_to.active_element.get_attribute("href") or "").endswith(job_id):
            break
    unattended_job(site, "focused, newer", total=10)
    wait_text(chrome, "focused, newer")
    update_job(site, job_id, succeeded=400)
    wait_text(chrome, "400 / 1\u202f000")
    assert (chrome.switch_to.active_element.get_attribute("href") or "").endswith(job_id)
    chrome.switch_to.active_element.send_keys(Keys.ENTER)
    wait_text(chrome, "400 of 1\u202f000")
    assert chrome.current_url == f"{site.url}/jobs/{job_id}"

    chrome.execute_script(  # type: ignore[no-untyped-call]
        "document.getElementById('cancel').focus();"
        "getSelection().selectAllChildren(document.querySelector('.id span'))"
    )
    update_job(site, job_id, succeeded=500, failed=1)
    wait_text(chrome, "500 of 1\u202f000")
    assert chrome.execute_script("return getSelection().toString().trim()") == job_id  # type: ignore[no-untyped-call]
    assert chrome.switch_to.active_element.text == "Cancel"


def test_many_jobs_are_paged_selected_and_changed_together(site: Web, chrome: Chrome) -> None:
    database = open_database(site.settings.resolved_database_url)
    with writing(database) as connection:
        for number in range(60):
            job = jobs.create_job(
                connection, input_file_id="none", endpoint=CHAT, model=MODEL_NAME, name=f"many {number:02d}"
            )
            status = "completed" if number == 59 else "paused"
            connection.execute(
                update(tables.jobs).where(tables.jobs.c.id == job.id).values(status=status, total=5)
            )
    database.dispose()
    chrome.get(f"{site.url}/?search=many&sort=name")

    def names() -> list[str]:
        script = "return [...document.querySelectorAll('tr.job .name a')].map((each) => each.textContent)"
        return list(chrome.execute_script(script))  # type: ignore[no-untyped-call]

    assert names() == [f"many {number:02d}" for number in range(50)]
    chrome.find_element(By.ID, "next").click()
    wait_for(lambda: names() == [f"many {number:02d}" for number in range(50, 60)], "the second page")
    second = chrome.current_url
    chrome.find_element(By.ID, "previous").click()
    wait_for(lambda: len(names()) == 50, "the first page")
    chrome.back()
    wait_for(lambda: chrome.current_url == second and len(names()) == 10, "the second page again")
    chrome.get(f"{site.url}/?search=many&sort=name")
    chrome.find_element(By.ID, "pick-page").click()
    wait_text(chrome, "50 jobs selected")
    press(chrome, "Select all 60 jobs")
    wait_text(chrome, "60 jobs selected")
    press(chrome, "Cancel")
    wait_text(chrome, "Cancel 60 jobs?")
    press(chrome, "Keep as they are")
    assert "paused 59" in shown(chrome)
    press(chrome, "Cancel")
    press(chrome, "Cancel 60 jobs")
    text = wait_text(chrome, "59 jobs cancelled; 1 job left as they were")
    assert "jobs selected" not in text
    wait_for(lambda: "paused" not in chrome.find_element(By.ID, "states").text, "the new counts")


def test_a_name_is_only_a_name(site: Web, chrome: Chrome) -> None:
    name = "<img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>"
    job_id = unattended_job(site, name, errors=[{"code": "x", "line": 1, "message": name, "param": None}])
    for url in (site.url, f"{site.url}/jobs/{job_id}"):
        chrome.get(url)
        wait_text(chrome, name)
        assert chrome.title != "pwned"
        assert chrome.find_elements(By.CSS_SELECTOR, "main img, main script") == []


def test_no_such_job(site: Web, chrome: Chrome) -> None:
    chrome.get(f"{site.url}/jobs/batch_nothing")
    wait_text(chrome, "No such job")


def test_chat_streams(site: Web, chrome: Chrome) -> None:
    chrome.get(f"{site.url}/chat")
    for number in range(2):
        field = wait_for(lambda: chrome.find_elements(By.CSS_SELECTOR, '[aria-label="Your message"]'))[0]
        field.send_keys(f"Hello {number}")
        press(chrome, "Send")
        wait_text(chrome, f"Hello {number}", "first token after")
        wait_for(
            lambda n=number: len(chrome.find_elements(By.CSS_SELECTOR, ".theirs")) == n + 1, "the answer"
        )


def test_reasoning_is_folded_up(tmp_path_factory: pytest.TempPathFactory, chrome: Chrome) -> None:
    directory = tmp_path_factory.mktemp("reasoning")
    model = make_tool_model(directory / "model", "hermes", reasoning="prompt_opens")
    with repeating_web(directory, model) as web:
        chrome.get(f"{web.url}/chat")
        field = wait_for(lambda: chrome.find_elements(By.CSS_SELECTOR, '[aria-label="Your message"]'))[0]
        field.send_keys("Let me think.</think>Forty-two.", Keys.ENTER)
        wait_text(chrome, "Reasoning", "first token after")
        assert chrome.find_element(By.CSS_SELECTOR, ".theirs").text == "Forty-two."
        thought = chrome.find_element(By.CSS_SELECTOR, ".thought div")
        assert not thought.is_displayed()
        chrome.find_element(By.CSS_SELECTOR, ".thought summary").click()
        assert thought.text == "Let me think."


def test_answers_follow_the_schema_of_the_chat_page(site: Web, chrome: Chrome) -> None:
    chrome.get(f"{site.url}/chat")
    chrome.find_element(By.CSS_SELECTOR, ".shape summary").click()
    schema, question = (chrome.find_element(By.NAME, name) for name in ("schema", "question"))
    schema.send_keys("{")
    question.send_keys("Hello", Keys.ENTER)
    wait_text(chrome, "The schema is not JSON")
    schema.clear()
    schema.send_keys('{"properties": {"a": {"not": {}}}}')
    question.send_keys(Keys.ENTER)
    wait_text(chrome, "is not a usable JSON schema: 'not' is not supported (at #/properties/a).")
    schema.clear()
    schema.send_keys('{"type": "object"}')
    # What a model of random weights writes is not known: this answer is, and it comes in pieces.
    chrome.execute_script(  # type: ignore[no-untyped-call]
        """
        window.fetch = (url, options) => {
          window.asked = JSON.parse(options.body);
          const piece = (text) => `data: ${JSON.stringify({ choices: [{ delta: { content: text } }] })}\\n\\n`;
          const pieces = ['{"total": 12345678901234567890, "', 'tags":["a, b","\\\\"{"],"none":[ ]', ', "last": {"x"'];
          return Promise.resolve(new Response(pieces.map(piece).join("") + "data: [DONE]\\n\\n"));
        };
        """
    )
    question.send_keys(Keys.ENTER)
    wait_text(chrome, "first token after")
    answer = chrome.execute_script("return document.querySelector('.message.json').textContent")  # type: ignore[no-untyped-call]
    assert answer.split("\n") == [
        "{",
        '  "total": 12345678901234567890,',
        '  "tags": [',
        '    "a, b",',
        '    "\\"{"',
        "  ],",
        '  "none": [],',
        '  "last": {',
        '    "x"',
    ]
    asked = chrome.execute_script("return window.asked")  # type: ignore[no-untyped-call]
    assert asked == {"messages": [{"role": "user", "content": "Hello"}], "schema": {"type": "object"}}


def test_an_answer_can_be_stopped_and_a_failed_question_comes_back(site: Web, chrome: Chrome) -> None:
    chrome.get(f"{site.url}/chat")
    field = chrome.find_element(By.CSS_SELECTOR, "textarea")
    field.send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two")
    assert field.get_attribute("value") == "one\ntwo"
    too_long = "word " * 20_000
    chrome.execute_script("arguments[0].value = arguments[1]", field, too_long)  # type: ignore[no-untyped-call]
    press(chrome, "Send")
    wait_for(lambda: chrome.find_elements(By.CSS_SELECTOR, ".note.wrong"), "the error")
    assert field.get_attribute("value").strip() == too_long.strip()
    assert chrome.find_elements(By.CSS_SELECTOR, ".message") == []
    assert chrome.switch_to.active_element == field
    field.clear()
    # The answers of this model are short: one that does not end is made of a stream that stays open.
    chrome.execute_script(  # type: ignore[no-untyped-call]
        """
        const real = window.fetch;
        window.fetch = (url, options) => {
          window.fetch = real;
          const piece = 'data: {"choices": [{"delta": {"content": "Once upon a time"}}]}\\n\\n';
          const body = new ReadableStream({ start(controller) {
            controller.enqueue(new TextEncoder().encode(piece));
            options.signal.addEventListener("abort", () => controller.error(options.signal.reason));
          } });
          return Promise.resolve(new Response(body));
        };
        """
    )
    field.send_keys("Tell me a story", Keys.ENTER)
    wait_text(chrome, "Once upon a time", "Stop")
    press(chrome, "Stop")
    wait_text(chrome, "stopped", "Send")
    assert "Once upon a time" in shown(chrome)


def test_the_engine_page(site: Web, chrome: Chrome) -> None:
    chrome.get(f"{site.url}/engine")
    words = (
        "KV memory",
        "Chat",
        "Bulk",
        "First token p99",
        "engine-0",
        "Step time",
        "cap 167 ms",
    )
    wait_text(chrome, *words)
    with site.openai() as client:
        client.completions.create(
            model=MODEL_NAME, prompt="x", max_tokens=20, extra_body={"ignore_eos": True}
        )
    wait_text(chrome, "latest 512 100 %", "prefix cache")
    cells = chrome.find_elements(By.CSS_SELECTOR, ".cells i")
    assert 200 < len(cells) <= 256
    drawn = chrome.execute_script(  # type: ignore[no-untyped-call]
        "return getComputedStyle(document.querySelector('.cells i[class^=c]')).getPropertyValue('--c')"
    )
    assert drawn != "0%"
    wait_for(lambda: len(chrome.find_elements(By.CSS_SELECTOR, ".plot polyline")) >= 6, "the lines")


@pytest.mark.parametrize("path", ["/", "/engine", "/chat"])
@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_offline_light_and_dark(site: Web, path: str, dark: bool) -> None:
    unattended_job(
        site, "a rather long name of a job that has to wrap on a narrow screen", total=10, succeeded=5
    )
    with browser(width=390, height=844, dark=dark) as phone:
        phone.get(site.url + path)
        wait_text(phone, "engine up")
        width = phone.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")  # type: ignore[no-untyped-call]
        assert width[0] <= width[1], "the page is wider than the screen"
        background = phone.execute_script("return getComputedStyle(document.body).backgroundColor")  # type: ignore[no-untyped-call]
        assert (sum(int(each) for each in background.strip("rgb()").split(",")) < 200) is dark
        fetched = phone.execute_script(
            "return performance.getEntriesByType('resource').map(each => each.name)"
        )  # type: ignore[no-untyped-call]
        assert [url for url in fetched if not url.startswith(site.url)] == []
        assert phone.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_it_asks_for_the_key(site: Web, chrome: Chrome) -> None:
    with serving(site.settings.model_copy(update={"api_key": KEY, "port": 0})) as web:
        chrome.get(f"{web.url}/engine")
        assert chrome.current_url.startswith(f"{web.url}/login")
        chrome.find_element(By.ID, "key").send_keys("wrong")
        chrome.find_element(By.CSS_SELECTOR, "button").click()
        wait_text(chrome, "This key is not valid")
        chrome.find_element(By.ID, "key").send_keys(KEY)
        chrome.find_element(By.CSS_SELECTOR, "button").click()
        wait_text(chrome, "KV memory")
        assert chrome.current_url == f"{web.url}/engine"
        chrome.delete_all_cookies()
        # The open stream goes on; the next one needs a session.
        chrome.execute_script("document.dispatchEvent(new Event('visibilitychange'))")  # type: ignore[no-untyped-call]
        wait_text(chrome, "Your session has ended", "What you see is from", "KV memory")
        chrome.get_log("browser")  # type: ignore[no-untyped-call]  # the rejected requests


def test_stale_data_say_so(service: tuple[Web, Processes], chrome: Chrome) -> None:
    """Near the end of this file, because it stops the engine."""
    site, group = service
    chrome.get(f"{site.url}/engine")
    wait_text(chrome, "KV memory", "engine up")
    engine = process_of(group, lambda process: "engine: serving" in process.output())
    engine.kill()
    wait_text(chrome, "engine away", "The engine is not reachable", "What you see is from")
    assert "KV memory" in shown(chrome)
    group.engine(Path(site.settings.model), MODEL_NAME, site.settings.redis_url)
    wait_text(chrome, "engine up")
    wait_for(lambda: "What you see is from" not in shown(chrome), "fresh data")


def test_a_web_process_that_stops_is_noticed(service: tuple[Web, Processes], chrome: Chrome) -> None:
    site, group = service
    job_id = unattended_job(site, "still there", total=10)
    for path in ("/chat", f"/jobs/{job_id}"):
        chrome.get(site.url + path)
        wait_text(chrome, "engine up")
    web = process_of(group, lambda process: process is group.started[3])
    web.stop()
    wait_text(chrome, "no connection", "The server is not reachable", "What you see is from", "still there")
    assert "engine up" not in shown(chrome)
    press(chrome, "Cancel")
    press(chrome, "Cancel the job")
    wait_for(lambda: chrome.find_element(By.ID, "toast").is_displayed(), "the message")
    group.start([*web_command()])
    text = wait_text(chrome, "engine up", "still there")
    assert "What you see is from" not in text
    chrome.get_log("browser")  # type: ignore[no-untyped-call]  # the failed connections


def test_no_warnings_were_logged(service: tuple[Web, Processes]) -> None:
    """After all the pages above, the log of the web process only says that the engine went away and what changed."""
    web = process_of(service[1], lambda process: process is service[1].started[3])
    words = [line for line in web.output().splitlines() if "engine" not in line.lower()]
    words = [line for line in words if "INFO bros.audit" not in line]
    assert words == []


def process_of(group: Processes, fits: Callable[[Process], bool]) -> Process:
    return next(process for process in group.started if fits(process))

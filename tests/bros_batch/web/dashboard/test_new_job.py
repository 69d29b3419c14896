"""A new job in a real browser: from the file of a table to the answers of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import xlsxwriter
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from tests.bros_batch.documents.readers.factories import write_documents
from tests.bros_batch.web.browser import browser
from tests.bros_batch.web.dashboard.test_pages import press, shown, wait_text
from tests.bros_batch.web.dashboard.test_rows import wait_row
from tests.bros_batch.web.serving import Web, whole_service
from tests.services import RedisServer, wait_for

# Semicolons, Windows-1252, and names with braces and quotes, with two spaces, and of HTML.
TABLE = (
    'Nr;Käufer  Name;"Text {raw} ""x""";<b>Total</b>\n'
    + "".join(f'R-{row};Müller {row};"Bill; no. {row}";{row},50\n' for row in range(1, 41))
).encode("cp1252")


@pytest.fixture(scope="module")
def site(redis_of_session: RedisServer, text_model: Path) -> Iterator[Web]:
    with whole_service(redis_of_session.url, text_model, BROS_WEBHOOK_HOSTS="127.0.0.2") as service:
        yield service[0]


@pytest.fixture
def chrome() -> Iterator[Chrome]:
    with browser() as chrome:
        yield chrome


def field(chrome: Chrome, selector: str) -> WebElement:
    return chrome.find_element(By.CSS_SELECTOR, selector)


def choose(chrome: Chrome, path: Path) -> None:
    field(chrome, "#file").send_keys(str(path))


def previews(chrome: Chrome) -> list[str]:
    texts: Any = chrome.execute_script(  # type: ignore[no-untyped-call]
        "return [...document.querySelectorAll('#preview article p')].map((each) => each.textContent)"
    )
    return list(texts)


def test_a_table_becomes_a_job(site: Web, chrome: Chrome, tmp_path: Path) -> None:
    table = tmp_path / "Rechnungen März.csv"
    table.write_bytes(TABLE)
    chrome.get(site.url)
    chrome.find_element(By.LINK_TEXT, "New job").click()
    choose(chrome, table)
    wait_text(
        chrome, "Rechnungen März.csv", "40 rows", "4 columns", "WINDOWS-1252", "Bill; no. 5", "<b>Total</b>"
    )

    prompt = field(chrome, "#prompt")
    prompt.send_keys("Who is ")
    press(chrome, "Käufer Name")
    prompt.send_keys(", and what is ")
    press(chrome, "Text raw x")
    prompt.send_keys("?")
    assert prompt.get_attribute("value") == "Who is {Käufer Name}, and what is {Text raw x}?"
    wait_for(
        lambda: previews(chrome)[2:] == ["Who is Müller 3, and what is Bill; no. 3?"], "the third prompt"
    )

    prompt.send_keys(" {Käufer Nam}")
    wait_text(chrome, "uses the field 'Käufer Nam'", "Did you mean 'Käufer Name'?")
    prompt.send_keys("\b" * len(" {Käufer Nam}"))
    wait_for(lambda: "Did you mean" not in shown(chrome), "no problem")

    field(chrome, "#wanted .name").send_keys("paid")
    Select(field(chrome, "#wanted .kind")).select_by_visible_text("boolean")
    field(chrome, "#wanted .about").send_keys("if {it} is")
    press(chrome, "Add a column")
    kind = field(chrome, "#wanted li:nth-child(2)")
    kind.find_element(By.CSS_SELECTOR, ".name").send_keys("kind")
    Select(kind.find_element(By.CSS_SELECTOR, ".kind")).select_by_visible_text("one of")
    wait_text(chrome, "'kind' needs at least two options")
    kind.find_element(By.CSS_SELECTOR, ".options").send_keys("bill, letter")
    wait_for(
        lambda: previews(chrome)[0].endswith("- paid (boolean): if {it} is\n- kind (one of: bill, letter)"),
        "the columns in the prompt",
    )
    press(chrome, "Add a column")
    amounts = field(chrome, "#wanted li:nth-child(3)")
    amounts.find_element(By.CSS_SELECTOR, ".name").send_keys("amounts")
    Select(amounts.find_element(By.CSS_SELECTOR, ".kind")).select_by_visible_text("list of number")
    amounts.find_element(By.CSS_SELECTOR, ".optional input").click()
    wait_for(
        lambda: previews(chrome)[0].endswith("- amounts (list of number, or null if there is none)"),
        "the third column in the prompt",
    )
    wait_text(chrome, "40 rows: ", "tokens in, about ")
    field(chrome, "#options summary").click()
    Select(field(chrome, "[name=id_field]")).select_by_visible_text("Nr")
    tokens = field(chrome, "[name=max_tokens]")
    tokens.send_keys("2.5")
    wait_text(chrome, "Write a whole number here.")
    tokens.clear()
    tokens.send_keys("-3")
    press(chrome, "Start")
    wait_text(chrome, "max_tokens")
    assert tokens.get_attribute("aria-invalid") == "true"

    chrome.refresh()
    tokens = wait_for(lambda: field(chrome, "[name=max_tokens]"), "the page")
    assert tokens is not None
    assert tokens.get_attribute("value") == "-3"
    assert field(chrome, "#wanted li:nth-child(2) .options").get_attribute("value") == "bill, letter"
    assert [each.is_selected() for each in chrome.find_elements(By.CSS_SELECTOR, ".optional input")] == [
        False, False, True,
    ]  # fmt: skip
    chrome.execute_script("arguments[0].value = '1000'", tokens)  # type: ignore[no-untyped-call]
    press(chrome, "Try 3 rows")
    wait_for(lambda: len(chrome.find_elements(By.CSS_SELECTOR, "#tried-rows .count")) == 9, "three answers")

    field(chrome, "#options summary").click()
    webhook = field(chrome, "[name=notify]")
    webhook.send_keys("http://127.0.0.1:9/hook")
    press(chrome, "Start")
    wait_for(lambda: "webhooks may not call" in field(chrome, "#problem-notify").text, "the URL is refused")
    webhook.clear()
    webhook.send_keys("http://127.0.0.2:9/end?token=hidden")
    press(chrome, "Start")
    wait_for(lambda: "/jobs/batch_" in chrome.current_url, "the page of the job")
    wait_text(chrome, "Rechnungen März.csv", "completed", "40 of 40")
    shown_row = ["done", "R-5", "Müller 5", "Bill; no. 5", "5,50"]
    wait_for(lambda: wait_row(chrome, 5)[:5] == shown_row, "the fifth row")
    wait_text(chrome, "Webhook\nhttp://127.0.0.2:9/end\n", "Webhook call failed")
    assert field(chrome, ".log .webhook").get_attribute("class") == "webhook failed"
    with site.http() as http:
        batch = http.get(f"/v1/batches/{chrome.current_url.rpartition('/')[2]}").json()
        row = http.get(f"/v1/batches/{batch['id']}/rows/5").json()
    columns = ["Nr", "Käufer  Name", 'Text {raw} "x"', "<b>Total</b>"]
    assert batch["source"] == {"name": table.name, "format": "csv", "columns": columns, "id_field": "Nr"}
    assert row["document"]["<b>Total</b>"] == "5,50"
    assert row["raw_answer"], "this engine knows no grammars"
    assert row["prompt"].startswith("Who is Müller 5, and what is Bill; no. 5?\n\nAnswer with a JSON object")
    assert row["request"]["max_tokens"] == 1000
    assert row["request"]["response_format"]["json_schema"]["schema"]["properties"] == {
        "paid": {"type": "boolean", "description": "if {it} is"},
        "kind": {"type": "string", "enum": ["bill", "letter"]},
        "amounts": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}]},
    }
    # A browser notes each request that is rejected, as those with -3 and 2.5 tokens were.
    log = [each["message"] for each in chrome.get_log("browser")]  # type: ignore[no-untyped-call]
    assert [
        each
        for each in log
        if "Failed to load resource: the server responded with a status of 400" not in each
    ] == []


# Answers to previews are held back until `held` is called; everything else is answered as ever.
HOLD_PREVIEWS = """
window.held = [];
const send = window.fetch;
window.fetch = async (...request) => {
  const answer = await send(...request);
  if (String(request[0]).endsWith("/new/preview")) await new Promise((go) => window.held.push(go));
  return answer;
};
"""
START_WITH = """
const [tokens, start] = arguments;
tokens.value = "-3";
tokens.dispatchEvent(new Event("input", { bubbles: true }));
start.click();
"""


def test_what_the_start_said_outlives_a_preview_that_is_under_way(
    site: Web, chrome: Chrome, tmp_path: Path
) -> None:
    table = tmp_path / "short.csv"
    table.write_bytes(b"a\none\n")
    chrome.get(f"{site.url}/new")
    choose(chrome, table)
    wait_text(chrome, "short.csv", "1 row ")
    field(chrome, "#options summary").click()
    chrome.execute_script(HOLD_PREVIEWS)  # type: ignore[no-untyped-call]
    field(chrome, "#wanted .name").send_keys("is_so")
    field(chrome, "#prompt").send_keys("Is {a} so?")
    wait_for(lambda: chrome.execute_script("return window.held.length"), "a preview under way")  # type: ignore[no-untyped-call]
    start = chrome.find_element(By.CSS_SELECTOR, "#start")
    chrome.execute_script(START_WITH, field(chrome, "[name=max_tokens]"), start)  # type: ignore[no-untyped-call]
    wait_for(lambda: field(chrome, "#problem-max_tokens").text, "the problem")
    wait_for(lambda: chrome.execute_script("return window.held.length > 1"), "the next preview")  # type: ignore[no-untyped-call]
    chrome.execute_script("window.held.forEach((go) => go())")  # type: ignore[no-untyped-call]
    wait_for(lambda: "".join(previews(chrome)).startswith("Is one so?"), "the preview")
    assert field(chrome, "#problem-max_tokens").text


def test_what_cannot_be_read_is_said_in_a_sentence(site: Web, chrome: Chrome, tmp_path: Path) -> None:
    chrome.get(f"{site.url}/new")
    for name, content, sentence in (
        (
            "scan.png",
            b"\x89PNG\r\n\x1a\n" + bytes(64),
            "scan.png is an image; a table, PDF or text is needed.",
        ),
        ("empty.csv", b"a,b\n", "empty.csv has no rows."),
        ("broken.xlsx", b"PK\x03\x04" + bytes(300), "broken.xlsx is a damaged zip file"),
        ("a.pdf", b"%PDF-1.4 junk", "No row of a.pdf can be read. Row 1, a.pdf: the PDF is damaged"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        choose(chrome, path)
        wait_for(lambda sentence=sentence: sentence in field(chrome, "#problem-file").text, sentence)
        assert "Traceback" not in shown(chrome)
    good = tmp_path / "good.jsonl"
    good.write_text('{"text": "one"}\n')
    choose(chrome, good)
    wait_text(chrome, "good.jsonl", "1 row ")
    assert not field(chrome, "#problem-file").is_displayed()
    press(chrome, "Start")
    wait_text(chrome, "Write what the model should do with each row.")
    assert list(site.settings.files_dir.glob("*.upload")) == []


def first_cells(chrome: Chrome) -> list[list[str]]:
    rows: Any = chrome.execute_script(  # type: ignore[no-untyped-call]
        "return [...document.querySelectorAll('#first-rows tr')].map((row) => "
        "[...row.cells].map((each) => each.textContent))"
    )
    return list(rows)


def test_several_documents_are_a_table(site: Web, chrome: Chrome, tmp_path: Path) -> None:
    write_documents(tmp_path)
    chrome.get(f"{site.url}/new")
    (tmp_path / "größe.txt").write_bytes(b"x" * 70_000)
    names = ["b.md", "sub/d.pdf", "a.txt", "größe.txt", "sub/broken.pdf"]
    field(chrome, "#file").send_keys("\n".join(str(tmp_path / name) for name in names))
    wait_text(chrome, "5 documents.zip", "5 rows", "1 row cannot be read", "broken.pdf: the PDF is damaged")
    cells = first_cells(chrome)
    assert cells[0] == ["Row", "path", "text", "pages"]
    assert [row[:3] for row in cells[1:4]] == [
        ["1", "b.md", "# Title\n\nText"],
        ["2", "d.pdf", "First page\n\nSecond page"],
        ["3", "a.txt", "Grüße"],
    ]
    assert cells[4][1] == "größe.txt"
    (tmp_path / "other.csv").write_bytes(b"a\n1\n")
    field(chrome, "#file").send_keys(f"{tmp_path / 'table.csv'}\n{tmp_path / 'other.csv'}")
    wait_text(chrome, "submit a zip file with one table, or with documents only")


def test_another_sheet_of_a_workbook(site: Web, chrome: Chrome, tmp_path: Path) -> None:
    path = tmp_path / "book.xlsx"
    with xlsxwriter.Workbook(path) as book:
        for name, number in (("March", 3), ("April", 4)):
            sheet = book.add_worksheet(name)
            sheet.write_column(0, 0, ["text", *(f"{name} {row}" for row in range(number))])
    chrome.get(f"{site.url}/new")
    choose(chrome, path)
    wait_text(chrome, "book.xlsx", "3 rows")
    assert "is read" not in field(chrome, "#table").text, "the choice of the sheet says it"
    sheets = Select(field(chrome, "#sheet"))
    assert [each.text for each in sheets.options] == ["April", "March"]
    assert sheets.first_selected_option.text == "March"
    sheets.select_by_visible_text("April")
    wait_text(chrome, "4 rows")
    assert first_cells(chrome)[1] == ["1", "April 0"]
    chrome.refresh()
    wait_text(chrome, "4 rows")
    assert Select(field(chrome, "#sheet")).first_selected_option.text == "April"
    assert not field(chrome, "#sheet").is_enabled(), "the file is no longer there"


def test_the_forecast_says_which_rows_are_reused_and_what_chats_notice(
    site: Web, chrome: Chrome, tmp_path: Path
) -> None:
    table = tmp_path / "same.csv"
    table.write_text("text\n" + "The same.\n" * 30 + "Another.\n")
    chrome.get(f"{site.url}/new")
    choose(chrome, table)
    wait_text(chrome, "same.csv", "31 rows")
    field(chrome, "#prompt").send_keys("Say {text}")
    field(chrome, "#wanted .name").send_keys("said")
    field(chrome, "#options summary").click()
    temperature = field(chrome, "[name=temperature]")
    temperature.send_keys("0")
    wait_text(chrome, "31 rows: ", "Reused: about 29 rows have the answers of equal ones")
    temperature.clear()
    temperature.send_keys("1")
    wait_for(lambda: "Reused:" not in shown(chrome), "nothing is reused")

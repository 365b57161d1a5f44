"""The report in a real browser: nothing but tables and drawings is wider than the page, and readers may sort and
print. Skips without Chromium."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import chromium, open_page, said
from test_report import RECIPE

from pipeinfer.report.write import conclude
from pipeinfer.results.records import Store
from pipeinfer.study.run import run

WIDER = """
return [...document.querySelectorAll("body *")].filter(one => !one.closest(".wide, .sheet, pre, svg")
    && one.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(one => one.outerHTML)
"""
FIRST_BOXES = """
const box = name => document.querySelector(name).getBoundingClientRect();
return [".answer", ".first figure", ".first ul"].map(name => [box(name).left, box(name).top, box(name).bottom]);
"""
CUT_OFF = """
return [...document.querySelectorAll(".wide:has(.sortable)")].filter(one => one.scrollHeight > one.clientHeight + 1)
    .map(one => [one.previousElementSibling?.textContent ?? "", one.querySelectorAll("tbody tr").length])
"""
COLUMN = "return [...arguments[0].querySelectorAll('tbody tr')].map(row => row.cells[2].textContent)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("page")
    store = Store(folder)
    run(RECIPE, store, 1, lambda *_: None)
    conclude([RECIPE], store, folder)
    return (folder / "report.html").as_uri()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_a_reader_finds_answer_figure_and_losses_at_once(browser: Any, report: str, width: int, dark: bool) -> None:
    open_page(browser, report, width, dark=dark)
    assert not browser.execute_script(WIDER)
    answer, figure, losses = browser.execute_script(FIRST_BOXES)
    if width > 1000:
        assert figure[0] > answer[0], "beside the answer"
        assert losses[2] < 900, "without scrolling"
    else:
        assert answer[2] <= figure[1] <= figure[2] <= losses[1], "one below the other, the figure before the losses"
    drawing = browser.find_element("css selector", ".first svg")
    assert ("invert" in drawing.value_of_css_property("filter")) == dark
    assert not said(browser)


def test_a_table_that_goes_on_below_its_frame_says_how_many_rows_it_has(browser: Any, report: str) -> None:
    open_page(browser, report, 400, dark=False)
    assert browser.execute_script(CUT_OFF)
    for said_above, rows in browser.execute_script(CUT_OFF):
        assert f"{rows} rows" in said_above


def test_a_reader_sorts_a_table_and_prints_the_evidence(browser: Any, report: str) -> None:
    open_page(browser, report, 1400, dark=False)
    table = browser.find_element("css selector", "#width table")
    speeds = [float(cell) for cell in browser.execute_script(COLUMN, table)]
    head = table.find_elements("css selector", "th")[2]
    assert head.text == "tokens/s"
    for order in (sorted(speeds), sorted(speeds, reverse=True)):
        head.click()
        assert [float(cell) for cell in browser.execute_script(COLUMN, table)] == order
    assert not browser.find_elements("css selector", "details[open]")
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    assert base64.b64decode(printed).startswith(b"%PDF")
    assert len(browser.find_elements("css selector", "details[open]")) == 11, "of ten claims, and the words"

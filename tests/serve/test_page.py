"""The page in a real browser: somebody types, reads the answer and sees the pipe move. Skips without Chromium."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from browsers import chromium, open_page, said
from web_client import PATIENCE_S, Served, WebClient, web_server

from pipeinfer.serve.page import PAGE

KEY = "a key of a page"

DRAWN = "return arguments[0].toDataURL()"
"""The picture of the lanes."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def element(browser: Any, name: str) -> Any:
    return browser.find_element("id", name)


def until(browser: Any, holds: Any) -> Any:
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, PATIENCE_S, poll_frequency=0.05).until(holds)


def look(browser: Any, url: str, width: int, *, dark: bool) -> None:
    open_page(browser, url, width, dark=dark)
    until(browser, lambda _: element(browser, "status").text == "ready")


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1400, True)])
def test_somebody_asks_by_keyboard_and_sees_the_pipe_move(browser: Any, web: WebClient, width: int, dark: bool) -> None:
    from selenium.webdriver.common.keys import Keys

    look(browser, web.url, width, dark=dark)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 300) is dark
    empty = browser.execute_script(DRAWN, element(browser, "lanes"))
    browser.switch_to.active_element.send_keys("def read_lines(path):", Keys.ENTER)
    until(browser, lambda _: int(element(browser, "runs").text) > 0)
    moving = {browser.execute_script(DRAWN, element(browser, "lanes"))}
    until(browser, lambda _: moving.add(browser.execute_script(DRAWN, element(browser, "lanes"))) or len(moving) > 2)
    assert len(moving - {empty}) > 1
    until(browser, lambda _: element(browser, "status").text == "done")
    alone = web.complete(prompt="def read_lines(path):", max_tokens=128, temperature=0, seed=0)
    answers = browser.find_elements("css selector", ".turn.theirs")
    shown = browser.execute_script("return arguments[0].firstChild.data", answers[-1])
    assert shown == alone["choices"][0]["text"]
    assert "128 tokens, ended by length" in answers[-1].text
    until(browser, lambda _: int(element(browser, "committed").text) >= 128)
    assert int(element(browser, "drafted").text) > 0
    assert "runs sent" in element(browser, "lanes").get_attribute("aria-label")
    assert said(browser) == []


def test_escape_stops_and_everything_is_reached_by_tab(browser: Any, web: WebClient) -> None:
    from selenium.webdriver.common.keys import Keys

    look(browser, web.url, 1400, dark=False)
    reached = []
    for _ in range(9):
        active = browser.switch_to.active_element
        reached.append(active.get_attribute("id") or active.tag_name)
        active.send_keys(Keys.TAB)
    assert [name for name in dict.fromkeys(reached) if name != "body"][:4] == ["prompt", "send", "clear", "summary"]
    assert reached.count("summary") > 1
    browser.execute_script("arguments[0].value = 1900", element(browser, "tokens"))
    before = web.service.snapshot().done.get("cancelled", 0)
    element(browser, "prompt").send_keys("import os\n".replace("\n", Keys.SHIFT + Keys.ENTER + Keys.SHIFT), Keys.ENTER)
    until(browser, lambda _: element(browser, "status").text == "answering")
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    until(browser, lambda _: element(browser, "status").text == "stopped")
    web.wait_until(lambda snapshot: snapshot.done.get("cancelled", 0) == before + 1)
    assert said(browser) == []


def test_a_conversation_has_turns(browser: Any, chat: WebClient) -> None:
    from selenium.webdriver.common.keys import Keys

    look(browser, chat.url, 400, dark=True)
    assert element(browser, "prompt-label").text == "Message"
    browser.execute_script("arguments[0].value = 8", element(browser, "tokens"))
    turns: list[dict[str, str]] = []
    for said_now in ("Hi", "And now?"):
        element(browser, "prompt").send_keys(said_now, Keys.ENTER)
        until(browser, lambda _: len(browser.find_elements("css selector", ".turn footer")) > len(turns) // 2)
        until(browser, lambda _: element(browser, "status").text == "done")
        turns.append({"role": "user", "content": said_now})
        expected = chat.post("/v1/chat/completions", messages=turns, max_tokens=8, temperature=0)
        turns.append(expected["choices"][0]["message"])
    shown = browser.find_elements("css selector", ".turn")
    texts = browser.execute_script("return arguments[0].map(turn => turn.firstChild.data)", shown)
    assert texts == [turn["content"] for turn in turns]
    assert said(browser) == []


def test_a_page_without_the_key_asks_for_it(browser: Any, served: Served) -> None:
    from selenium.webdriver.common.keys import Keys

    with web_server(*served, key=KEY) as keyed:
        browser.get(keyed.url)
        until(browser, lambda _: element(browser, "key").is_displayed())
        element(browser, "key").send_keys(KEY, Keys.TAB)
        until(browser, lambda _: "stages" in element(browser, "model").text)
        browser.get("about:blank")


def test_the_page_is_one_file_that_loads_nothing(web: WebClient) -> None:
    status, page, headers = web.ask("GET", "/")
    assert (status, page) == (200, PAGE.read_text())
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.findall(r"(?:src|href)=\"(?!data:)|url\(|@import|https?://", page)

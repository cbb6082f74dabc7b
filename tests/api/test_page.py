"""The page at /, in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.api.asking import SETTINGS, ask
from tests.servers import GUNICORN, PATIENCE_SECONDS, Server, serving

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
in_a_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver: apt install chromium chromium-driver"
)


def test_it_is_there_only_if_it_is_asked_for() -> None:
    assert ask("/").status == 404
    reply = ask("/", settings=SETTINGS._replace(playground=True))
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'; connect-src 'self'" in reply.headers["Content-Security-Policy"]


def test_it_asks_nobody_else() -> None:
    page = ask("/", settings=SETTINGS._replace(playground=True)).body.decode()
    assert "//" not in page.replace("  // ", "")  # no address; what is left of it are comments
    assert 'rel="icon" href="data:,"' in page  # or the browser asks for /favicon.ico


@pytest.fixture(scope="module")
def server(model_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("page")
    with serving(GUNICORN, directory, MODEL=model_path, PLAYGROUND="1", API_KEYS="a-key") as running:
        yield running


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[WebDriver]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    quiet = "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync", "disable-quic"
    for name in ("headless", "no-sandbox", "disable-gpu", *quiet):
        options.add_argument(f"--{name}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.add_argument("--window-size=1200,800")
    options.add_argument("--lang=en")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, Service(DRIVER))
    yield browser
    browser.quit()


@in_a_browser
def test_a_conversation(server: Server, browser: WebDriver, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def all_of(selector: str) -> list[str]:
        return [element.text for element in browser.find_elements(By.CSS_SELECTOR, selector)]

    def fill(name: str, text: str) -> None:
        field = browser.find_element(By.ID, name)
        field.clear()
        field.send_keys(text)

    def send(text: str) -> None:
        fill("question", text)
        browser.find_element(By.ID, "send").click()

    wait = WebDriverWait(browser, PATIENCE_SECONDS, 0.02)
    browser.get(f"http://127.0.0.1:{server.port}/")
    wait.until(lambda _: any("the first message wakes the model" in said for said in all_of("#waterfall p")))

    send("Hello")
    wait.until(lambda _: all_of(".error"))
    assert all_of(".error")[0].startswith("This needs a key.")
    wait.until(lambda _: browser.find_element(By.ID, "key").is_displayed())
    fill("key", "a-key")

    fill("system", "You are an agronomist.")
    fill("tokens", "60")
    fill("temperature", "0")
    send("When should I water maize?")
    # It grows: what is there at first is a part of what is there at last.
    wait.until(lambda _: all_of(".answer.writing .text") != [""] and all_of(".answer.writing .text"))
    early = all_of(".answer .text")[-1].rstrip("▍")
    wait.until(lambda _: all_of(".bill"))
    whole = all_of(".answer .text")[-1]
    assert whole.startswith(early)
    assert len(whole) > len(early)
    assert "60 tokens" in all_of(".bill")[-1]
    wait.until(lambda _: "first token" in "".join(all_of("#waterfall span")))

    fill("schema", '{"type": "object", "properties": {"litres": {"type": "integer"}}, "required": ["litres"]}')
    send("How much water?")
    wait.until(lambda _: len(all_of(".bill")) == 2)
    assert isinstance(json.loads(all_of(".text.json")[-1])["litres"], int)
    fill("schema", "")

    # Stopping ends the generation, too.
    fill("tokens", "400")
    send("Write a very long story.")
    wait.until(lambda _: all_of(".answer.writing .text") != [""] and all_of(".answer.writing .text"))
    browser.find_element(By.ID, "send").click()
    wait.until(lambda _: not all_of(".answer.writing"))
    wait.until(lambda _: server.get("/health").json()["model"]["answering"] == 0)

    browser.find_element(By.ID, "language").click()
    assert browser.find_element(By.ID, "send").text == "Enviar"
    browser.save_screenshot(str(tmp_path / "page.png"))
    log = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert [one for one in log if one["level"] in ("WARNING", "SEVERE") and "401" not in one["message"]] == []

"""The main path of the app, walked in a real browser over a small real workspace."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrec.feedback import Feedback

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--no-first-run"]
FLAGS += ["--disable-component-update", "--disable-sync"]
WAIT = 90_000  # milliseconds; a busy machine is slow, not wrong

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install mmrec[dev]")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.fixture
def served(tiny_workspace: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of the running app, started as a person starts it, and the workspace it serves."""
    root = tmp_path / "workspace"
    root.mkdir()
    for entry in tiny_workspace.iterdir():
        if not entry.name.startswith(("feedback", ".lock")):
            (root / entry.name).symlink_to(entry.resolve())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from mmrec.cli import main; main()", "app", "-w", str(root), "--port", str(port)]
    with (tmp_path / "app.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "app.log").read_text()
                time.sleep(0.1)
        else:
            pytest.fail("the app did not answer: " + (tmp_path / "app.log").read_text())
        yield address, root
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def page(served: tuple[str, Path]) -> Iterator[playwright.Page]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(WAIT)
        abroad: list[str] = []
        page.on("request", lambda request: abroad.append(request.url) if not _local(request.url) else None)
        yield page
        browser.close()
        assert not abroad, "the app asks nobody but its own server"


def _local(url: str) -> bool:
    return url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))


DECODED = "all => Promise.all(all.map(image => image.decode().then(() => image.naturalWidth, () => 0)))"


def cards(page: playwright.Page, origin: str) -> list[str]:
    """The classes of the cards under `origin` once the page is drawn to its end."""
    page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()
    shown = page.locator(f'[class*="st-key-card-{origin}-"]')
    shown.first.wait_for()
    return [
        next(name for name in (element.get_attribute("class") or "").split() if name.startswith("st-key-card-"))
        for element in shown.all()
    ]


def press(page: playwright.Page, word: str, card: str) -> None:
    page.locator(f".{card}").get_by_role("button", name=word, exact=True).click()


@pytest.mark.timeout(600)
def test_the_main_path(page: playwright.Page, served: tuple[str, Path]) -> None:
    address, root = served
    expect = playwright.expect
    expect.set_options(timeout=WAIT)
    page.goto(address)
    expect(page.get_by_role("heading", name="What do you like?")).to_be_visible()
    person = page.url.partition("person=")[2]
    assert person.startswith("guest-")

    start = cards(page, "start")[:3]
    for n, card in enumerate(start, 1):
        press(page, "Like", card)
        expect(page.get_by_text(f"{n} liked")).to_be_visible()

    expect(page.get_by_role("heading", name="For you")).to_be_visible()
    shown = cards(page, "recommend")
    assert len(shown) == 10
    reasons = page.locator('[class*="st-key-card-recommend-"] .reason')
    assert all(re.search("because you liked|a taste like yours", reason) for reason in reasons.all_inner_texts())
    covers = page.locator('[class*="st-key-card-recommend-"] .cover img')
    assert min(covers.evaluate_all(DECODED)) > 0

    press(page, "Dislike", shown[0])
    expect(page.locator(f".{shown[0]}")).to_have_count(0)
    expect(page.get_by_text("1 disliked")).to_be_visible()
    after = cards(page, "recommend")
    assert after != shown[1:]
    assert len(after) == 10

    page.get_by_role("link", name="Dream").click()
    dream = page.locator('img[alt="dream 1"]')
    expect(dream).to_be_visible()
    assert min(dream.evaluate_all(DECODED)) >= 32
    nearest = page.locator('[class*="st-key-card-dream-0"] .near img')
    assert nearest.count() == 5

    page.get_by_role("link", name="Map").click()
    expect(page.locator(".js-plotly-plot .scatterlayer .point").first).to_be_visible()
    for name in ("Liked", "Recommended", "Dreamt, at its nearest item"):
        expect(page.locator(".js-plotly-plot .legendtext", has_text=name).first).to_be_visible()

    page.get_by_role("link", name="Evaluation").click()
    expect(page.get_by_role("heading", name="Evaluation", exact=True)).to_be_visible()
    expect(page.locator(".js-plotly-plot .barlayer .point").first).to_be_visible()
    assert "person=" + person in page.url, "the address still says who this is for"

    page.reload()
    expect(page.get_by_text("3 liked · 1 disliked")).to_be_visible()
    opinions = Feedback(root / "feedback.sqlite").of(person)
    assert sorted(opinions.values()) == [-1.0, 1.0, 1.0, 1.0]

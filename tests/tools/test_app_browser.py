"""The web page in headless Chromium: upload, prompts, opacity, errors, keyboard, a phone's width.

Needs Playwright's Python package and a Chromium of the system (Debian's package `chromium`).
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
pytest.importorskip("uvicorn", reason="needs the extra app")

ROOT = Path(__file__).parents[2]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The page of `gem-lite app`, started as a user starts it."""
    command = [sys.executable, "-m", "gem_lite", "app", "--port", "0", "--max-upload", "0.5"]
    command += ["--model", "tiny-emoji", "--pretrained", "v1", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        yield line.split()[0]
        process.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # The sandbox needs rights that root in a container does not have.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page after its start; it must ask nobody else for anything, and log no error."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.asked, page.faults = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".card canvas")
    yield page
    assert page.faults == []
    for url in page.asked:
        assert url.startswith((address, "data:", "blob:")), url
    page.close()


def forward_passes(page: Any) -> int:
    return sum(url.endswith("/api/maps") for url in page.asked)


def pixels(page: Any, selector: str = ".card canvas") -> list[str]:
    """What every canvas shows."""
    return page.eval_on_selector_all(selector, "all => all.map(each => each.toDataURL())")


@contextmanager
def answered(page: Any) -> Iterator[None]:
    """What the block does asks for maps; goes on when the page has shown the answer."""
    with page.expect_response(lambda response: response.url.endswith("/api/maps")):
        yield
    page.wait_for_selector("#run:not([aria-busy])")


def alert(page: Any) -> str:
    """What the page tells of a mistake, once it does."""
    told = page.get_by_role("alert")
    told.wait_for()
    return told.inner_text()


def titles(page: Any) -> list[str]:
    return page.eval_on_selector_all(".card h2", "all => all.map(each => each.textContent)")


def test_upload_and_words(page: Any, tmp_path: Path) -> None:
    assert titles(page) == ["fish", "hamburger", "drum", "elephant"]
    before = pixels(page)
    assert len(before) == 8 == len(set(before))  # GEM's and plain CLIP's, all different
    picture = np.zeros((120, 200, 3), dtype=np.uint8)
    picture[:, :80] = 255, 200, 0
    Image.fromarray(picture).save(tmp_path / "mine.png")
    with answered(page):
        page.set_input_files("#file", tmp_path / "mine.png")
    assert "200 × 120 pixels" in page.inner_text("#status")
    uploaded = pixels(page)
    assert len(uploaded) == 8 and not set(uploaded) & set(before)
    page.fill("#prompts", "sun, remote control")
    with answered(page):
        page.press("#prompts", "Enter")
    assert titles(page) == ["sun", "remote control"]
    assert not set(pixels(page)) & set(uploaded)


def test_opacity_needs_no_forward_pass(page: Any) -> None:
    passes, shown = forward_passes(page), []
    for value in ("0", "50", "100"):
        page.evaluate(
            "value => { const slider = document.getElementById('opacity');"
            " slider.value = value; slider.dispatchEvent(new Event('input')); }",
            value,
        )
        # All of it: "0 %" also stands in "60 %", which is shown before.
        page.locator("#opacity-value", has_text=re.compile(f"^{value} %$")).wait_for()
        shown.append(pixels(page))
    assert len({each[0] for each in shown}) == 3
    assert len(set(shown[0])) == 1  # only the picture, eight times
    page.uncheck("#compare")
    assert len(pixels(page)) == 4
    page.check("input[value=labels]", force=True)
    assert titles(page) == ["Segmentation"]
    assert page.locator(".legend li").count() == 4
    assert forward_passes(page) == passes


def test_a_text_called_png_is_told(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("These are notes.")
    page.set_input_files("#file", tmp_path / "notes.png")
    assert "is no picture that Pillow can read" in alert(page)
    with answered(page):
        page.click(".examples button")  # and the page goes on
    assert not page.get_by_role("alert").is_visible() and len(pixels(page)) >= 6


def test_a_large_file_is_told_without_sending_it(page: Any, tmp_path: Path) -> None:
    passes = forward_passes(page)
    (tmp_path / "large.png").write_bytes(b"\x89PNG" + bytes(600_000))
    page.set_input_files("#file", tmp_path / "large.png")
    assert "0.6 MB; at most 0.5 MB" in alert(page)
    assert forward_passes(page) == passes


def test_settings(page: Any) -> None:
    before = pixels(page)
    page.click("summary")
    assert page.get_attribute("#depth", "placeholder").isdecimal()
    page.fill("#depth", "1")
    with answered(page):
        page.press("#depth", "Enter")
    after = pixels(page)
    assert after[0] == after[1] == before[1] != before[0]  # depth 1 is plain CLIP
    page.fill("#depth", "")
    page.fill("#temperature", "cold")
    page.press("#temperature", "Enter")
    assert "temperature is a number" in alert(page)


def test_by_keyboard(page: Any) -> None:
    """Every control is reached with Tab; the view and the opacity change with the arrows."""
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
    for name in ("file", "prompts", "model", "run", "view", "opacity", "compare", "download"):
        assert name in reached, name
    page.focus("#opacity")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#opacity") == "61"
    page.focus("input[name=view]")
    page.keyboard.press("ArrowRight")
    assert titles(page) == ["Segmentation"]


def test_paste(page: Any) -> None:
    before = pixels(page)
    page.evaluate(
        """async () => {
            const canvas = document.createElement("canvas");
            canvas.width = 30; canvas.height = 20;
            canvas.getContext("2d").fillRect(0, 0, 10, 10);
            const blob = await new Promise((resolve) => canvas.toBlob(resolve));
            const data = new DataTransfer();
            data.items.add(new File([blob], "pasted.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data }));
        }"""
    )
    page.locator("#status", has_text="30 × 20").wait_for()
    page.wait_for_selector("#run:not([aria-busy])")
    assert not set(pixels(page)) & set(before)


def test_download(page: Any, tmp_path: Path) -> None:
    for view, name in (("maps", "heatmaps.png"), ("labels", "segmentation.png")):
        page.check(f"input[value={view}]", force=True)
        with page.expect_download() as started:
            page.click("#download")
        assert started.value.suggested_filename == name
        started.value.save_as(tmp_path / name)
        with Image.open(tmp_path / name) as sheet:
            assert sheet.width > 2 * 256 and sheet.height > 256
            assert len(sheet.convert("RGB").getcolors(1 << 24)) > 1000


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_sticks_out(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.fill("#prompts", "fish, " + "a very long name for a thing " * 4 + ", " + "x" * 90)
    with answered(page):
        page.press("#prompts", "Enter")
    assert len(titles(page)) == 3
    for view in ("maps", "labels"):
        page.check(f"input[value={view}]", force=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_words_are_no_markup(page: Any) -> None:
    page.fill("#prompts", "<img src=x onerror=alert(1)>, <b>fish</b>")
    with answered(page):
        page.press("#prompts", "Enter")
    assert titles(page) == ["<img src=x onerror=alert(1)>", "<b>fish</b>"]
    assert page.locator("#cards b, #cards img").count() == 0

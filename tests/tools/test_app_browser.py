"""The web page in headless Chromium: words, views, points, downloads, links, errors, a phone.

Needs Playwright's Python package and a Chromium of the system (Debian's package `chromium`).
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gem_lite as gem
from gem_lite.inference import maps_and_presence
from gem_lite.tools.demo import demo_picture

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


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Any]:
    context = browser.new_context()
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    context.set_default_timeout(120_000)  # milliseconds; the machine may be busy
    tab = context.new_page()
    tab.on("request", lambda request: tab.asked.append(request.url))
    tab.on("pageerror", lambda error: tab.faults.append(str(error)))
    yield tab
    context.close()


@pytest.fixture
def page(tab: Any, address: str) -> Iterator[Any]:
    """The page after its start; it must ask nobody else for anything, and log no error."""
    tab.asked, tab.faults = [], []
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.mouse.move(0, 0)
    open_page(tab, address)
    yield tab
    tab.unroute_all()
    tab.goto("about:blank")
    assert tab.faults == []
    for url in tab.asked:
        assert url.startswith((address, "data:", "blob:")), url


def open_page(page: Any, address: str) -> None:
    page.goto("about:blank")  # another fragment alone would load nothing
    page.goto(address)
    page.wait_for_selector("#cards:not([hidden])")
    page.wait_for_selector("#run:not([aria-busy])")


def forward_passes(page: Any) -> int:
    return sum(url.endswith("/api/maps") for url in page.asked)


def pixels(page: Any, selector: str = "#view") -> np.ndarray:
    """What a canvas shows: [h, w, 3]."""
    url = page.eval_on_selector(selector, "canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))[..., :3]


@contextmanager
def answered(page: Any) -> Iterator[None]:
    """What the block does asks for maps; goes on when the page has shown the answer."""
    with page.expect_response(lambda response: response.url.endswith("/api/maps")):
        yield
    page.wait_for_selector("#run:not([aria-busy])")


@contextmanager
def unasked(page: Any) -> Iterator[None]:
    """What the block does changes what is shown, without asking the server."""
    passes, before = forward_passes(page), pixels(page)
    yield
    drawn(page)
    assert forward_passes(page) == passes
    assert not np.array_equal(before, pixels(page))


def drawn(page: Any) -> None:
    """Goes on when the page has drawn what was asked of it, in the next frame."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")


def slide(page: Any, name: str, value: int) -> None:
    page.evaluate(
        "([name, value]) => { const slider = document.getElementById(name);"
        " slider.value = value; slider.dispatchEvent(new Event('input')); }",
        [name, value],
    )


def ask(page: Any, words: str) -> None:
    with answered(page):
        page.fill("#prompts", words)
        page.press("#prompts", "Enter")


def texts(page: Any, selector: str) -> list[str]:
    return page.eval_on_selector_all(selector, "all => all.map(each => each.textContent)")


def chips(page: Any) -> list[str]:
    return texts(page, "#words .name span")


def thumbs(page: Any) -> list[str]:
    return texts(page, "#thumbs b")


def alert(page: Any) -> str:
    """What the page says of a mistake, once it does."""
    shown = page.get_by_role("alert")
    shown.wait_for()
    return shown.inner_text()


def point(page: Any, x: float, y: float) -> tuple[float, float]:
    """A point of the large picture, from 0 to 1, in the window."""
    page.locator("#view").scroll_into_view_if_needed()
    box = page.locator("#view").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


@cache
def tiny() -> tuple[Any, Any]:
    return gem.create_model_and_transforms("tiny-emoji", "v1")


def example() -> tuple[Any, torch.Tensor, list[str], Image.Image]:
    """What the page shows first, by the library: the model, its image, the words."""
    picture, words = demo_picture()
    model, transform = tiny()
    return model, transform(picture)[None], words, picture


WORDS = ["fish", "hamburger", "drum", "elephant"]


# ---- words


def test_words_are_switched_added_moved_and_removed(page: Any) -> None:
    assert chips(page) == thumbs(page) == WORDS
    model, image, words, _ = example()
    with torch.no_grad():
        present = maps_and_presence(model, image, words)[1][0]
    likeliest = words[int(present.argmax())]
    assert page.inner_text("#title") == likeliest != words[0]  # looked at first
    with unasked(page):
        page.click(".chip:nth-child(1) .name")  # fish, off
    assert chips(page) == WORDS and thumbs(page) == WORDS[1:]
    assert page.inner_text("#title") == likeliest
    with unasked(page):
        page.click(".chip:nth-child(1) .name")
        page.click("#thumbs button:nth-child(4)")
    assert thumbs(page) == WORDS and page.inner_text("#title") == "elephant"
    page.focus(".chip:nth-child(1) .name")
    page.keyboard.press("Alt+ArrowRight")
    assert chips(page) == thumbs(page) == ["hamburger", "fish", "drum", "elephant"]
    assert page.evaluate("document.activeElement.textContent") == "fish"
    boxes = [page.locator(f".chip:nth-child({k}) .name").bounding_box() for k in (1, 4)]
    (x, y), (to_x, to_y) = ((box["x"] + 20, box["y"] + 10) for box in boxes)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to_x, to_y, steps=8)
    page.mouse.up()
    assert chips(page) == thumbs(page) == ["fish", "drum", "elephant", "hamburger"]
    page.click("[aria-label='Remove drum']")
    assert chips(page) == thumbs(page) == ["fish", "elephant", "hamburger"]
    passes = forward_passes(page)
    ask(page, "sun,  remote   control, fish")
    assert chips(page) == thumbs(page) == ["fish", "elephant", "hamburger", "sun", "remote control"]
    assert forward_passes(page) == passes + 1 and page.input_value("#prompts") == ""
    assert page.inner_text("#title") == "sun"
    colours = page.eval_on_selector_all("#words i", "all => all.map(each => each.style.background)")
    assert len(set(colours)) == 5


def test_a_picture_of_ones_own_starts_with_no_words(page: Any, tmp_path: Path) -> None:
    """Those of the example go; those typed by hand stay."""
    for name, width in (("first", 200), ("second", 100)):
        picture = np.zeros((120, width, 3), dtype=np.uint8)
        picture[:, :80] = 255, 200, 0
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    passes = forward_passes(page)
    page.set_input_files("#file", tmp_path / "first.png")
    page.locator("#status", has_text="Type what to look for").wait_for()
    assert chips(page) == [] and forward_passes(page) == passes
    assert "old" in page.get_attribute("#cards", "class")
    assert page.evaluate("document.activeElement.id") == "prompts"
    ask(page, "sun")
    assert "200 × 120 pixels" in page.inner_text("#status") and thumbs(page) == ["sun"]
    assert "old" not in page.get_attribute("#cards", "class")
    with answered(page):
        page.set_input_files("#file", tmp_path / "second.png")
    assert "100 × 120 pixels" in page.inner_text("#status") and thumbs(page) == ["sun"]


def test_words_are_no_markup(page: Any) -> None:
    ask(page, "<img src=x onerror=alert(1)>, <b>fish</b>")
    assert thumbs(page)[4:] == ["<img src=x onerror=alert(1)>", "<b>fish</b>"]
    assert page.locator("#cards img, #words img, #words b, #thumbs b b").count() == 0
    page.hover("#view")
    assert "<b>fish</b>" in page.inner_text("#tip") and page.locator("#tip b").count() == 1


# ---- what is shown


def test_a_point_has_the_cosine_of_every_word(page: Any) -> None:
    """Hovered and clicked, left and right of the divider, against the library's maps."""
    model, image, words, _ = example()
    for x, y, plain in ((0.3, 0.4, True), (0.8, 0.7, False)):
        with torch.no_grad():
            maps = model(image, words, False, size=(1000, 1000), return_ori=plain)[0]
        expected = maps[:, int(1000 * y), int(1000 * x)]
        page.mouse.move(*point(page, x, y))
        assert page.inner_text("#tip b") == ("Plain CLIP" if plain else "GEM")
        order = expected.argsort(descending=True).tolist()
        assert texts(page, "#tip span > span") == [words[k] for k in order]
        shown = [float(value) for value in texts(page, "#tip output")]
        assert shown == pytest.approx(expected[order].tolist(), abs=0.006)
        page.mouse.click(*point(page, x, y))
        readout = page.inner_text("#readout")
        first, second = words[order[0]], words[order[1]]
        assert readout.startswith(f"{first} wins here with {shown[0]:.3f}") and second in readout
        above = float(re.search(r"([\d.]+) above", readout)[1])  # type: ignore[index]
        assert above == pytest.approx(shown[0] - shown[1], abs=0.0015)
    page.mouse.move(5, 5)
    assert not page.locator("#tip").is_visible()
    page.focus("#view")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#readout") != readout


def test_the_divider_shows_two_methods(page: Any) -> None:
    with unasked(page):
        slide(page, "place", 0)
    right = pixels(page)
    with unasked(page):
        slide(page, "place", 100)
    left = pixels(page)
    with unasked(page):
        slide(page, "place", 50)
    both, middle = pixels(page), left.shape[1] // 2
    assert np.array_equal(both[:, : middle - 40], left[:, : middle - 40])
    assert np.array_equal(both[:, middle + 40 :], right[:, middle + 40 :])
    assert not np.array_equal(left[:, : middle - 40], right[:, : middle - 40])
    with unasked(page):  # and by hand
        page.mouse.move(*point(page, 0.5, 0.5))
        page.mouse.down()
        page.mouse.move(*point(page, 0.25, 0.5), steps=5)
        page.mouse.up()
    assert page.input_value("#place") in ("24", "25", "26")
    with unasked(page):
        page.uncheck("#compare")
    assert np.array_equal(pixels(page)[:, middle + 40 :], right[:, middle + 40 :])
    with answered(page):
        page.check("#compare")
        page.select_option("#left", "sclip")
    slide(page, "place", 100)
    drawn(page)
    assert page.inner_text("#left-name") == "SCLIP"
    assert not np.array_equal(pixels(page), left)


def test_the_segmentation_is_live(page: Any) -> None:
    """Background words and threshold act at once, and give the labels of the library."""
    model, image, words, _ = example()
    page.uncheck("#compare")
    with unasked(page):
        page.check("input[value=labels]", force=True)
    for background, threshold in (
        (["background"], None),
        ([], None),
        ([], 0.6),
        (["background"], 0.5),
    ):
        if page.is_checked("#rivals") != bool(background):
            with unasked(page):
                page.click("#rivals")
        if threshold is not None:
            with unasked(page):
                slide(page, "threshold", round(100 * threshold))
            assert page.inner_text("#threshold-value") == f"{100 * threshold:.0f} %"
        expected = model.segment(
            image, words, background=background, threshold=threshold, size=(512, 512)
        )
        shares = [float(text.rstrip(" %")) for text in texts(page, "#thumbs small")]
        counts = expected.labels.flatten().bincount(minlength=5)[1:]
        assert shares == pytest.approx((100 * counts / 512**2).tolist(), abs=0.3)


def test_opacity_and_scale(page: Any) -> None:
    for value in (0, 100):
        with unasked(page):
            slide(page, "opacity", value)
        assert page.inner_text("#opacity-value") == f"{value} %"
    assert page.is_checked("#common")
    with unasked(page):
        page.click("#thumbs button:nth-child(4)")  # elephant, not the hottest
        page.uncheck("#common")
    ends = page.inner_text("#low"), page.inner_text("#high")
    with unasked(page):
        page.check("#common")
    common = page.inner_text("#low"), page.inner_text("#high")
    assert float(common[0]) <= float(ends[0]) and float(common[1]) > float(ends[1])
    model, image, words, _ = example()
    with torch.no_grad():
        maps = model(image, words, False, size=(512, 512))
    assert float(common[1]) == pytest.approx(float(maps.max()), abs=0.002)


def test_an_absent_word_fades(page: Any) -> None:
    """Its number says so, and on one scale its map is dark where another word's glows."""
    model, image, words, _ = example()
    ask(page, "umbrella")
    with torch.no_grad():
        present = model.presence(image, [*words, "umbrella"])[0].tolist()
    notes = texts(page, "#thumbs small")
    numbers = [int(note.split(" %")[0]) for note in notes]
    assert numbers == [min(max(round(100 * each), 1), 99) for each in present]
    assert all(" here, highest " in note for note in notes)
    thumb = page.locator("#thumbs button[data-word=umbrella]")
    thumb.click()
    slide(page, "opacity", 100)
    page.uncheck("#compare")
    faded = pixels(page).astype(int)
    with unasked(page):
        page.uncheck("#common")
    stretched = pixels(page).astype(int)
    assert faded[..., 1].max() < 120 < stretched[..., 1].max()


def test_settings(page: Any) -> None:
    before = pixels(page)
    page.click("summary")
    assert page.get_attribute("#depth", "placeholder").isdecimal()
    page.fill("#depth", "1")
    with answered(page):
        page.press("#depth", "Enter")
    slide(page, "place", 0)
    drawn(page)
    right, middle = pixels(page), before.shape[1] // 2
    assert np.array_equal(right[:, 40 : middle - 40], before[:, 40 : middle - 40])  # plain CLIP
    page.fill("#depth", "")
    page.fill("#temperature", "cold")
    page.press("#temperature", "Enter")
    assert "temperature is a number" in alert(page)


def test_the_link_holds_the_settings(page: Any, address: str) -> None:
    page.click(".examples button:nth-child(2)")
    page.wait_for_selector("#run:not([aria-busy])")
    page.locator(".chip", has_text="penguin").wait_for()
    ask(page, "odd & even = 1, 50 %")
    page.click(".chip:nth-child(2) .name")
    page.check("input[value=labels]", force=True)
    slide(page, "threshold", 30)
    page.uncheck("#rivals")
    page.locator("#threshold-value", has_text="30 %").wait_for()
    page.click("#link")
    page.locator("#link", has_text="Copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    words, shown, hidden = chips(page), pixels(page), thumbs(page)
    assert link.startswith(address + "#") and len(words) == len(hidden) + 1
    open_page(page, link)
    assert chips(page) == words and thumbs(page) == hidden
    assert page.input_value("#threshold") == "30" and not page.is_checked("#rivals")
    assert page.is_checked("input[value=labels]") and np.array_equal(pixels(page), shown)
    page.goto("about:blank")
    page.goto(address + "#word=sun&opacity=20")  # from a picture of somebody's own
    page.locator("#status", has_text="Choose one").wait_for()
    assert chips(page) == ["sun"] and page.input_value("#opacity") == "20"


# ---- files to take along


def downloaded(page: Any, button: str, folder: Path) -> Path:
    with page.expect_download() as started:
        page.click(button)
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    return path


def test_download_of_overlays(page: Any, tmp_path: Path) -> None:
    for view, name in (("maps", "heatmaps.png"), ("labels", "segmentation.png")):
        page.check(f"input[value={view}]", force=True)
        path = downloaded(page, "#download", tmp_path)
        assert path.name == name
        with Image.open(path) as sheet:
            assert sheet.width > 2 * 256 and sheet.height > 256
            assert len(sheet.convert("RGB").getcolors(1 << 24)) > 1000


def test_download_of_masks(page: Any, tmp_path: Path) -> None:
    """Labels at the picture's own size, equal to the library's, in both files."""
    model, image, words, picture = example()
    page.click(".chip:nth-child(3) .name")  # without the drum
    words.remove("drum")
    expected = model.segment(
        image, words, background=["background"], size=(picture.height, picture.width)
    ).labels[0]
    with Image.open(downloaded(page, "#masks", tmp_path)) as masks:
        assert masks.mode == "P" and len(set(masks.getpalette()[:12])) > 3
        labels = np.asarray(masks)
    assert labels.shape == expected.shape and (labels == expected.numpy()).mean() > 0.999
    content = json.loads(downloaded(page, "#coco", tmp_path).read_text(encoding="utf-8"))
    assert [each["name"] for each in content["categories"]] == words
    assert content["images"][0] | {"file_name": ""} == {
        "id": 1, "file_name": "", "width": picture.width, "height": picture.height,
    }  # fmt: skip
    for each in content["annotations"]:
        counts = each["segmentation"]["counts"]
        assert each["segmentation"]["size"] == list(labels.shape)
        inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        mask = inside.reshape(labels.shape, order="F")
        assert (mask == (labels == each["category_id"])).all() and each["area"] == mask.sum()
        rows, columns = np.nonzero(mask)
        x, y, w, h = each["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + w - 1, y + h - 1) == (columns.max(), rows.max())
    assert {each["category_id"] for each in content["annotations"]} == set(np.unique(labels)) - {0}


# ---- what goes wrong


def test_a_text_called_png(page: Any, tmp_path: Path) -> None:
    ask(page, "sun")
    (tmp_path / "notes.png").write_text("These are notes.")
    page.set_input_files("#file", tmp_path / "notes.png")
    assert "the file" in alert(page).lower()
    assert "old" in page.get_attribute("#cards", "class")  # what is shown is not about it
    assert "from before" in page.inner_text("#status")
    with answered(page):
        page.click(".examples button")  # and the page goes on
    assert not page.get_by_role("alert").is_visible()
    assert "old" not in page.get_attribute("#cards", "class")


def test_a_large_file_is_not_sent(page: Any, tmp_path: Path) -> None:
    ask(page, "sun")
    passes = forward_passes(page)
    (tmp_path / "large.png").write_bytes(b"\x89PNG" + bytes(600_000))
    page.set_input_files("#file", tmp_path / "large.png")
    assert "0.6 MB; at most 0.5 MB" in alert(page)
    assert forward_passes(page) == passes


def test_a_full_line_is_waited_for(page: Any) -> None:
    """Two refusals for lack of a place, then the answer, without a word of an error.

    The seconds between them pass ten times as quickly, and are noted.
    """
    refused: list[int] = []
    page.evaluate(
        """() => {
            const wait = window.setTimeout;
            window.waits = [];
            window.setTimeout = (work, milliseconds) => {
                window.waits.push(milliseconds);
                return wait(work, milliseconds / 10);
            };
        }"""
    )

    def route(route: Any) -> None:
        if len(refused) < 2:
            refused.append(1)
            route.fulfill(status=503, content_type="application/json", body='{"error": "full"}')
        else:
            route.continue_()

    page.route("**/api/maps", route)
    page.fill("#prompts", "sun")
    page.press("#prompts", "Enter")
    page.locator("#status", has_text="Waiting for a place").wait_for()
    page.locator("#thumbs", has_text="sun").wait_for()
    assert len(refused) == 2 and not page.get_by_role("alert").is_visible()
    assert page.evaluate("waits.filter((wait) => wait >= 1000)") == [1000, 2000]


def test_no_server(page: Any) -> None:
    page.route("**/api/maps", lambda route: route.abort())
    page.fill("#prompts", "sun")
    page.press("#prompts", "Enter")
    assert "Is gem-lite app still running?" in alert(page)


def test_drawings_only(page: Any) -> None:
    """The notice, with the command that fetches another model; gone where there is one."""
    about = page.evaluate("fetch('api/about').then((answer) => answer.json())")
    command = "gem-lite models --fetch ViT-B/16"
    if all(model["drawings"] for model in about["models"]):
        assert page.inner_text("#fetch") == command and page.locator("#notice").is_visible()
        page.click("#copy-fetch")
        page.locator("#copy-fetch", has_text="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == command
    other = {**about["models"][0], "name": "ViT-B/16 openai", "drawings": False}
    about["models"].insert(0, other)
    photograph = {**about["examples"][0], "name": "demo-photo.jpg", "drawing": False}
    about["examples"].append({**photograph, "prompts": ["spoon"]})
    page.route(
        "**/api/maps",
        lambda route: route.continue_(
            post_data=route.request.post_data.replace("ViT-B/16 openai", "tiny-emoji v1")
        ),
    )
    page.route("**/api/about", lambda route: route.fulfill(json=about))
    open_page(page, page.url.partition("#")[0])
    assert not page.locator("#notice").is_visible()
    assert chips(page) == ["spoon"]  # a photograph is the first example of a model that knows them


# ---- hands


def test_by_keyboard(page: Any) -> None:
    """Every control is reached with Tab; the view and the opacity change with the arrows."""
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(50):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
    for name in (
        *("file", "prompts", "model", "run", "view", "opacity", "compare", "left", "right"),
        *("common", "place", "download", "masks", "coco", "link"),
    ):
        assert name in reached, name
    page.focus("#opacity")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#opacity") == "61"
    page.focus("input[name=view]")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#title") == "Segmentation"


def test_paste(page: Any) -> None:
    ask(page, "sun")
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
    assert thumbs(page) == ["sun"]


def test_nothing_sticks_out(page: Any) -> None:
    ask(page, "a very long name for a thing " * 4 + ", " + "x" * 90)
    assert len(thumbs(page)) == 6
    for width in (320, 390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        for view in ("maps", "labels"):
            page.check(f"input[value={view}]", force=True)
            page.mouse.move(*point(page, 0.9, 0.9))
            assert page.locator("#tip").is_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (width, view)
            page.mouse.move(0, 0)


def test_on_a_phone_results_come_into_view(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.evaluate("scrollTo(0, 0)")
    assert page.locator("#results").bounding_box()["y"] > 400
    ask(page, "sun")
    deadline = time.monotonic() + 60
    while page.locator("#results").bounding_box()["y"] >= 100:  # the way there is smooth
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)
    page.locator("#view").click(position={"x": 60, "y": 60})
    assert "wins here" in page.inner_text("#readout")

"""The painting page in chromium: strokes by mouse, touch and keys, maps, files, widths and colours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.painting import fields as scene
from tests.unit.painting.fields import CLASSES, COLS, PATCH_PX, ROWS, class_map, document, stroke

from dinoneck.painting import Photo, Strokes, fit_strokes, painting_page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@dataclass
class Opened:
    """A page in the browser, with what it asked for and complained about."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def value(self, script: str) -> Any:
        return self.page.evaluate(script)

    def map_of(self, photo: int) -> np.ndarray:
        """The class whose colour each patch of a photo's thumbnail has; -1 for other colours."""
        script = """(photo) => {
            const canvas = document.querySelector(`[data-photo="${photo}"] canvas`);
            const copy = new OffscreenCanvas(canvas.width, canvas.height);
            copy.getContext("2d").drawImage(canvas, 0, 0);
            const pixels = copy.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return {width: canvas.width, height: canvas.height, data: [...pixels.data]};
        }"""
        shown = self.page.evaluate(script, photo)
        pixels = np.array(shown["data"]).reshape(shown["height"], shown["width"], 4)
        rows = (np.arange(ROWS) * 2 + 1) * shown["height"] // (2 * ROWS)
        cols = (np.arange(COLS) * 2 + 1) * shown["width"] // (2 * COLS)
        at_centres = pixels[rows][:, cols, :3]
        classes = np.full((ROWS, COLS), -1)
        for number, colour in enumerate(self.value("data.colours")):
            classes[(at_centres == colour).all(axis=-1)] = number
        return classes

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the photo on the easel is in the window."""
        box = self.page.locator("#surface").bounding_box()
        width, height = COLS * PATCH_PX, ROWS * PATCH_PX
        return box["x"] + x / width * box["width"], box["y"] + y / height * box["height"]

    def drag(self, *points: tuple[float, float]) -> None:
        """Paint a line through pixels of the photo with the mouse."""
        self.page.locator("#surface").scroll_into_view_if_needed()
        self.page.mouse.move(*self.place(*points[0]))
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*self.place(*point), steps=4)
        self.page.mouse.up()

    def choose(self, tool: str) -> None:
        self.page.locator(f'label:has(input[value="{tool}"])').click()

    def paint_each_class(self) -> None:
        """One line of each class on photo 0."""
        self.choose("0")
        self.drag((20, 30), (120, 30))
        self.choose("1")
        self.drag((200, 30), (300, 30))
        self.choose("2")
        self.drag((30, 220), (290, 220))

    def status(self) -> str:
        return self.page.locator("#status").inner_text()

    def save(self, path: Path) -> dict[str, Any]:
        with self.page.expect_download() as download:
            self.page.locator("#save").click()
        assert download.value.suggested_filename == "strokes.json"
        download.value.save_as(path)
        return json.loads(path.read_text("utf-8"))


Open = Callable[..., Opened]


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Open a page of photos; at the end nothing may have been asked for but the page, nor complained of."""
    pages = []
    contexts = []

    def opened(photos: list[Photo], *, strokes: Any = None, **options: Any) -> Opened:
        file = tmp_path / f"page_{len(pages)}.html"
        file.write_text(painting_page(photos, CLASSES, strokes=strokes), "utf-8")
        context = browser.new_context(**({"viewport": DESKTOP} | options))
        contexts.append(context)
        page = context.new_page()
        shown = Opened(page)
        page.on("request", lambda request: shown.requests.append(request.url))
        page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        page.on("console", lambda message: shown.complaints.append(message.text))
        page.goto(file.as_uri())
        pages.append((file, shown))
        return shown

    yield opened
    for file, shown in pages:
        outside = [url for url in shown.requests if not url.startswith(("data:", "blob:"))]
        assert outside == [file.as_uri()]
        assert shown.complaints == []
    for context in contexts:
        context.close()


def test_strokes_on_one_photo_give_the_right_map_of_the_others(open_page: Open) -> None:
    opened = open_page(scene.fields(4))
    opened.paint_each_class()
    for number in range(4):
        assert np.array_equal(opened.map_of(number), class_map(number)), number
    assert "4 photos mapped from 3 strokes" in opened.status()


def test_one_class_gives_no_map_and_a_second_one_gives_it(open_page: Open) -> None:
    opened = open_page(scene.fields(2))
    opened.choose("0")
    opened.drag((20, 30), (120, 30))
    assert (opened.map_of(1) == -1).all()
    assert "second class" in opened.status()
    opened.choose("2")
    opened.drag((30, 220), (290, 220))
    shown = opened.map_of(1)
    assert (shown[ROWS - 2 :] == 2).all()
    assert set(shown.ravel()) == {0, 2}  # weed has no stroke yet


def test_the_map_changes_with_the_strokes_and_undo_brings_it_back(open_page: Open) -> None:
    opened = open_page(scene.fields(2))
    opened.paint_each_class()
    before = opened.value("Array.from(photos[1].probabilities)")
    opened.choose("0")
    opened.drag((200, 100), (300, 100))  # where weed is
    assert opened.value("Array.from(photos[1].probabilities)") != before
    opened.page.locator("#undo").click()
    assert opened.value("Array.from(photos[1].probabilities)") == before
    assert opened.value("photos[0].strokes.length") == 3


def test_the_head_is_that_of_scikit_learn(open_page: Open) -> None:
    """The same objective on the same features; probabilities within 1e-5."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    opened = open_page(scene.fields(3))
    opened.paint_each_class()
    opened.choose("1")
    opened.drag((100, 100), (180, 100))  # contradicts: no clean separation
    examples = opened.value(
        "gatherExamples().map(({features, ...rest}) => ({...rest, features: [...features]}))"
    )
    weights = np.array([example["weight"] for example in examples])
    penalty = opened.value("data.penalty")
    # loss / sum(weights) + penalty |W|^2 is minimal where C * loss + |W|^2 / 2 is
    reference = linear_model.LogisticRegression(
        C=1 / (2 * penalty * weights.sum()), tol=1e-10, max_iter=10_000
    )
    reference.fit(
        [example["features"] for example in examples],
        [example["classIndex"] for example in examples],
        sample_weight=weights,
    )
    features = opened.value(
        "Array.from({length: 48}, (_, i) => [...featuresOfPatch(photos[1].codes, scales, i)])"
    )
    probabilities = opened.value("Array.from(photos[1].probabilities)")
    expected = reference.predict_proba(features)
    assert np.abs(np.reshape(probabilities, (48, 3)) - expected).max() < 1e-5


def test_the_head_of_the_saved_strokes_gives_the_same_map_in_python(
    open_page: Open, tmp_path: Path
) -> None:
    """24 channels are all kept: only the rounding to 8 bits is between the page and Python."""
    photos = scene.fields(3)
    opened = open_page(photos)
    opened.paint_each_class()
    opened.save(tmp_path / "strokes.json")
    head = fit_strokes(photos, Strokes.read(tmp_path / "strokes.json"))
    for number, photo in enumerate(photos):
        patches = photo.patches.reshape(1, ROWS * COLS, -1)
        logits = head(patches, grid=(ROWS, COLS), num_prefix_tokens=0)["segmentation"]
        expected = logits.softmax(dim=1)[0].flatten(1).T.detach().numpy()
        shown = np.reshape(opened.value(f"Array.from(photos[{number}].probabilities)"), (-1, 3))
        assert np.abs(shown - expected).max() < 0.02
        assert np.array_equal(opened.map_of(number).ravel(), expected.argmax(axis=1))


def test_pixels_are_painted_as_the_format_says_and_later_strokes_win(open_page: Open) -> None:
    photos = scene.fields(2)
    strokes = [
        stroke("crop", 9.25, (20.5, 30.25), (100.75, 77.5), (140.0, 20.0)),
        stroke("weed", 5.5, (90.0, 60.0)),
        stroke(None, 4.0, (60.0, 40.0), (100.0, 90.0)),
        stroke("soil", 30.0, (-5.0, 230.0), (330.0, 250.0)),
    ]
    opened = open_page(photos, strokes=document(photos[0], strokes))
    x = np.arange(COLS * PATCH_PX)[None, :] + 0.5
    y = np.arange(ROWS * PATCH_PX)[:, None] + 0.5
    mask = np.full((ROWS * PATCH_PX, COLS * PATCH_PX), 255)
    for number, one in enumerate(strokes):
        points = np.array(one["points"])
        ends = zip(points, points[1:] if len(points) > 1 else points, strict=False)
        for (x0, y0), (x1, y1) in ends:
            length = (x1 - x0) ** 2 + (y1 - y0) ** 2
            along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / max(length, 1e-9)
            share = np.clip(along, 0, 1)
            distance = np.hypot(x - x0 - share * (x1 - x0), y - y0 - share * (y1 - y0))
            mask[distance <= one["radius"]] = [0, 1, 255, 2][number]
    painted = opened.value("[...photos[0].painted.classOfPixel]")
    assert np.array_equal(np.reshape(painted, mask.shape), mask)
    [image] = Strokes.from_document(document(photos[0], strokes)).images
    assert np.array_equal(image.mask(CLASSES), mask)  # the masks that Python writes
    shares = np.zeros((ROWS, COLS, 3))
    for example in opened.value("photos[0].painted.examples()"):
        row, col = divmod(example["patch"], COLS)
        shares[row, col, example["classIndex"]] = example["weight"]
    cells = mask.reshape(ROWS, PATCH_PX, COLS, PATCH_PX)
    for number in range(3):
        expected = (cells == number).mean(axis=(1, 3))
        assert shares[..., number] == pytest.approx(expected)


def test_the_photo_that_the_head_doubts_most_is_marked(open_page: Open) -> None:
    photos = scene.fields(4)
    between = (photos[2].patches + photos[2].patches.flip(1)) / 2  # crop and weed at once
    photos[2] = scene.field(2, class_map(2))
    photos[2] = Photo(**{**vars(photos[2]), "patches": between})
    opened = open_page(photos)
    opened.paint_each_class()
    marked = opened.page.locator(".photo.next")
    assert marked.count() == 1
    assert marked.get_attribute("data-photo") == "2"
    assert "paint next" in marked.inner_text()
    assert opened.status().endswith("Paint next: field/2.jpg.")
    probabilities = np.reshape(opened.value("Array.from(photos[2].probabilities)"), (-1, 3))
    entropy = -(probabilities * np.log(probabilities)).sum(axis=1).mean() / np.log(3)
    assert opened.value("photos[2].doubt") == pytest.approx(entropy, rel=1e-4)
    opened.page.locator("#next").click()
    assert opened.page.locator("#photo-name").inner_text() == "field/2.jpg"
    opened.choose("0")
    opened.drag((20, 30), (60, 30))
    assert marked.get_attribute("data-photo") != "2"  # it has strokes now


def test_strokes_are_saved_and_a_page_made_with_them_shows_them(
    open_page: Open, tmp_path: Path
) -> None:
    photos = scene.fields(3)
    opened = open_page(photos)
    opened.paint_each_class()
    saved = opened.save(tmp_path / "strokes.json")
    assert "3 strokes saved" in opened.status()
    assert saved["format"] == "dinoneck strokes"
    assert (saved["version"], saved["classes"]) == (1, list(CLASSES))
    [image] = saved["images"]
    strokes = image["strokes"]
    about = {"name": "field/0.jpg", "sha256": photos[0].sha256, "width": 320, "height": 240}
    assert image == about | {"strokes": strokes}
    assert [one["class"] for one in strokes] == list(CLASSES)
    assert np.allclose(strokes[0]["points"][0], (20, 30), atol=1.0)
    assert np.allclose(strokes[0]["points"][-1], (120, 30), atol=1.0)
    reopened = open_page(photos, strokes=saved)
    assert reopened.value("Array.from(photos[1].probabilities)") == opened.value(
        "Array.from(photos[1].probabilities)"
    )
    assert np.array_equal(reopened.map_of(2), class_map(2))
    colours = reopened.value(
        "[...elements.strokes.getContext('2d').getImageData(60, 30, 1, 1).data.slice(0, 3)]"
    )
    assert colours == reopened.value("data.colours[0]")  # the stroke is drawn on the easel
    assert reopened.save(tmp_path / "again.json") == saved


def test_leaving_with_unsaved_strokes_asks(open_page: Open, tmp_path: Path) -> None:
    opened = open_page(scene.fields(2))
    asked: list[str] = []

    def stay(dialog: Any) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    opened.page.on("dialog", stay)
    opened.paint_each_class()
    assert opened.page.title().startswith("* ")
    opened.page.close(run_before_unload=True)
    opened.page.wait_for_timeout(300)
    assert asked == ["beforeunload"]
    opened.save(tmp_path / "strokes.json")
    assert not opened.page.title().startswith("* ")
    with opened.page.expect_event("close"):
        opened.page.close(run_before_unload=True)
    assert asked == ["beforeunload"]


def test_the_eraser_takes_paint_away(open_page: Open) -> None:
    opened = open_page(scene.fields(2))
    opened.paint_each_class()
    before = opened.value("photos[0].painted.examples().filter((e) => e.classIndex === 2).length")
    opened.page.keyboard.press("0")
    opened.drag((30, 220), (160, 220))
    after = opened.value("photos[0].painted.examples().filter((e) => e.classIndex === 2).length")
    assert 0 < after < before
    assert opened.value("photos[0].strokes.at(-1).class") is None


def test_everything_works_by_keys_alone(open_page: Open, tmp_path: Path) -> None:
    opened = open_page(scene.fields(3))
    press = opened.page.keyboard.press
    for _ in range(20):
        press("Tab")
        if opened.value("document.activeElement.id") == "surface":
            break
    assert opened.value("document.activeElement.id") == "surface"
    outline = opened.value("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"

    press("3")
    assert opened.value("state.tool") == 2
    radius = opened.value("brushRadius()")
    press("]")
    assert opened.value("brushRadius()") > radius
    press("[")
    assert opened.value("brushRadius()") == radius
    move(opened, 160, 220)
    press("Space")  # a dot
    assert len(opened.value("photos[0].strokes[0].points")) == 1
    press("2")
    move(opened, 260, 60)
    opened.page.keyboard.down("Space")  # a line, as long as it is held
    press("ArrowRight")
    press("ArrowRight")
    opened.page.keyboard.up("Space")
    assert len(opened.value("photos[0].strokes[1].points")) == 3
    press("1")
    move(opened, 60, 60)
    press("Enter")  # a line until the next Enter
    press("ArrowDown")
    press("Enter")
    assert len(opened.value("photos[0].strokes[2].points")) == 2
    for number in range(3):
        assert np.array_equal(opened.map_of(number), class_map(number)), number

    press("z")
    assert opened.value("photos[0].strokes.length") == 2
    assert "2 strokes" in opened.status()
    press("n")
    assert opened.value("state.photo") == opened.value("state.next") != 0
    assert opened.value("document.activeElement.id") == "surface"
    with opened.page.expect_download() as download:
        press("s")
    assert download.value.suggested_filename == "strokes.json"


def move(opened: Opened, x: float, y: float) -> None:
    """Move the brush near a pixel with the arrow keys."""
    for axis, target, forth, back in (("x", x, "Right", "Left"), ("y", y, "Down", "Up")):
        for _ in range(200):
            distance = target - opened.value(f"state.cursor.{axis}")
            if abs(distance) <= opened.value("brushRadius()"):
                break
            opened.page.keyboard.press(f"Arrow{forth if distance > 0 else back}")


def test_touch_paints_and_the_photo_does_not_scroll_away(open_page: Open) -> None:
    opened = open_page(scene.fields(3), viewport=PHONE, has_touch=True, is_mobile=True)
    devtools = opened.page.context.new_cdp_session(opened.page)

    def swipe(*points: tuple[float, float]) -> None:
        places = [opened.place(*point) for point in points]
        kinds = ["touchStart"] + ["touchMove"] * (len(points) - 1)
        for kind, (x, y) in zip(kinds, places, strict=True):
            devtools.send(
                "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]}
            )
        devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    for tool, points in (
        ("0", [(20, 30), (70, 60), (120, 140)]),
        ("1", [(200, 30), (250, 60), (300, 140)]),
        ("2", [(30, 220), (160, 215), (290, 220)]),
    ):
        opened.page.locator(f'label:has(input[value="{tool}"])').tap()
        sync_api.expect(opened.page.locator(f'input[value="{tool}"]')).to_be_checked()
        opened.page.locator("#surface").scroll_into_view_if_needed()
        before = opened.value("scrollY")
        swipe(*points)
        assert opened.value("scrollY") == before
    assert opened.value("photos[0].strokes.map((stroke) => stroke.points.length)") == [3, 3, 3]
    for number in range(3):
        assert np.array_equal(opened.map_of(number), class_map(number)), number
    opened.page.locator('[data-photo="1"]').tap()
    sync_api.expect(opened.page.locator("#photo-name")).to_have_text("field/1.jpg")


def test_a_second_finger_paints_nothing(open_page: Open) -> None:
    opened = open_page(scene.fields(2), viewport=PHONE, has_touch=True, is_mobile=True)
    opened.page.locator('label:has(input[value="0"])').tap()
    sync_api.expect(opened.page.locator('input[value="0"]')).to_be_checked()
    devtools = opened.page.context.new_cdp_session(opened.page)
    first = dict(zip("xy", opened.place(50, 50), strict=True), id=0)
    second = dict(zip("xy", opened.place(200, 50), strict=True), id=1)
    for kind, points in (
        ("touchStart", [first]),
        ("touchStart", [first, second]),
        ("touchMove", [first, second | {"x": second["x"] + 20}]),
        ("touchEnd", []),
    ):
        devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    xs = opened.value("photos[0].strokes.flatMap((stroke) => stroke.points.map((p) => p[0]))")
    assert max(xs, default=0) < 100


def test_at_the_start_the_page_shows_what_is_alike_a_patch(open_page: Open) -> None:
    photos = scene.fields(3)
    opened = open_page(photos)
    tokens = torch.stack([photo.patches for photo in photos]).double()
    standard = (tokens - tokens.mean(dim=(0, 1, 2))) / tokens.std(dim=(0, 1, 2), correction=0)
    unit = standard / standard.norm(dim=-1, keepdim=True)
    middle = unit[0, ROWS // 2, COLS // 2]
    alike = opened.value(
        "photos.map((photo) => [...cosines("
        "featuresOfPatch(photos[0].codes, scales, state.alike.patch), photo.codes, scales)])"
    )
    expected = (unit @ middle).flatten(1).numpy()
    assert np.abs(np.array(alike) - expected).max() < 0.03
    assert opened.page.locator("#scale").is_visible()
    assert opened.page.locator("#cursor").is_visible()
    expected[0, ROWS // 2 * COLS + COLS // 2] = -1  # itself
    photo, patch = divmod(int(expected.argmax()), ROWS * COLS)
    row, col = divmod(patch, COLS)
    assert f"Most alike: row {row + 1}, column {col + 1} of field/{photo}.jpg" in opened.status()

    opened.drag((20, 30))  # another patch
    assert opened.value("state.alike") == {"photo": 0, "patch": 0}
    opened.page.keyboard.press("ArrowRight")
    opened.page.keyboard.press("ArrowDown")
    assert opened.value("state.alike.patch") == COLS + 1
    opened.page.keyboard.press("1")
    assert not opened.page.locator("#scale").is_visible()
    assert (opened.map_of(1) == -1).all()
    opened.page.keyboard.press("a")
    assert opened.page.locator("#scale").is_visible()


def test_the_opacity_of_maps_can_be_changed(open_page: Open) -> None:
    opened = open_page(scene.fields(2))
    opened.paint_each_class()
    opened.page.locator("#opacity").fill("20")
    shown = opened.value("getComputedStyle(document.querySelector('.thumb canvas')).opacity")
    assert float(shown) == pytest.approx(0.2)
    assert opened.page.locator("#opacity-size").inner_text() == "20 %"


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP, {"width": 768, "height": 1024}])
def test_nothing_is_wider_than_the_window(open_page: Open, viewport: dict[str, int]) -> None:
    opened = open_page(scene.fields(9), viewport=viewport)
    for _ in range(2):
        assert opened.value("document.documentElement.scrollWidth") <= viewport["width"]
        box = opened.page.locator("#surface").bounding_box()
        assert box["width"] >= 0.5 * min(viewport["width"], 1000)
        assert box["height"] <= viewport["height"]
        assert box["width"] / box["height"] == pytest.approx(COLS / ROWS, rel=0.01)
        opened.paint_each_class()


CONTRASTS = """() => {
    const channels = (text) => text.match(/[\\d.]+/g).map(Number);
    const luminance = (colour) => {
        const [r, g, b] = colour.map((value) => {
            const share = value / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        for (let e = element; e !== null; e = e.parentElement) {
            const colour = channels(getComputedStyle(e).backgroundColor);
            if (colour.length === 3 || colour[3] > 0) return colour.slice(0, 3);
        }
        return [255, 255, 255];
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const text = walker.currentNode.textContent.trim();
        if (text === "" || !element.checkVisibility() || element.tagName === "SCRIPT") continue;
        const style = getComputedStyle(element);
        const a = luminance(channels(style.color).slice(0, 3));
        const b = luminance(ground(element));
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        found.push([text, ratio]);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_colour_schemes(open_page: Open, scheme: str) -> None:
    opened = open_page(scene.fields(3), color_scheme=scheme)
    paper = opened.value("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)")
    opened.page.locator("summary").click()
    contrasts = opened.value(CONTRASTS)
    opened.paint_each_class()
    contrasts += opened.value(CONTRASTS)
    assert len(contrasts) > 60
    assert [text for text, ratio in contrasts if ratio < 4.5] == []


def test_every_control_has_a_name_and_the_state_is_announced(open_page: Open) -> None:
    opened = open_page(scene.fields(2))
    page = opened.page
    for name in ("Alike", "crop", "weed", "soil", "Eraser"):
        assert page.get_by_role("radio", name=name).count() == 1
    for name in ("Undo", "Save strokes", "Photo to paint next"):
        assert page.get_by_role("button", name=name).count() == 1
    for name in ("Brush", "Map opacity"):
        assert page.get_by_role("slider", name=name).count() == 1
    assert page.get_by_role("button", name="field/1.jpg").count() == 1
    assert page.get_by_role("application", name="photo field/0.jpg").count() == 1
    assert page.locator("#status").get_attribute("aria-live") == "polite"
    page.keyboard.press("2")
    assert opened.status().startswith("Class weed chosen.")

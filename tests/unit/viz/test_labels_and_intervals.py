"""Labels of images as chips and intervals of numbers as bars, in overlays and in reports."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from PIL import ImageDraw

from dinoneck import DataError, Task
from dinoneck.data import Preprocessing
from dinoneck.viz import ReportEntry, html_report, overlay_panel, style
from dinoneck.viz.legends import texts_and_intervals
from dinoneck.viz.scales import PlacedInterval, interval_axes, outputs, place_interval

RECIPE = Preprocessing(16)
GREY = np.full((32, 64, 3), 100, np.uint8)
PORTRAIT = np.full((64, 32, 3), 100, np.uint8)
TAGS = Task("tags", kind="multilabel", labels=("crack", "moss", "rust"))
CRACK, MOSS, RUST = style.class_colours(TAGS.labels)
PHOTO_HEIGHT = 600  # of GREY in an overlay
LINE = 2 * style.CAPTION_PX

Corners = tuple[float, float, float, float]


class Drawn:
    """What was drawn into pictures: texts with their corners, and rounded frames."""

    def __init__(self) -> None:
        self.texts: dict[str, Corners] = {}
        self.frames: list[Corners] = []


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What the test draws from now on; later strips of a picture begin at 0 again."""
    seen = Drawn()
    write = ImageDraw.ImageDraw.text
    frame = ImageDraw.ImageDraw.rounded_rectangle

    def keep_text(self: Any, corner: Any, text: str, *more: Any, **options: Any) -> None:
        seen.texts[text] = self.textbbox(corner, text, font=style.font(style.CAPTION_PX))
        write(self, corner, text, *more, **options)

    def keep_frame(self: Any, corners: Any, **options: Any) -> None:
        seen.frames.append(corners)
        frame(self, corners, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", keep_text)
    monkeypatch.setattr(ImageDraw.ImageDraw, "rounded_rectangle", keep_frame)
    return seen


def labels_strip(values: list[float], known: dict[str, float], task: Task = TAGS) -> np.ndarray:
    """What an overlay has below the photo."""
    panel = overlay_panel(GREY, {task.name: np.array(values)}, [task], RECIPE, known=known)
    return np.asarray(panel)[PHOTO_HEIGHT:]


def num_pixels(picture: np.ndarray, colour: tuple[int, ...] | None) -> int:
    return int((picture == np.array(colour)).all(axis=-1).sum())


# -- labels
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_known_present", "has_tick", "has_cross"),
    [
        pytest.param(1.0, True, False, id="right"),
        pytest.param(0.0, False, True, id="wrong"),
        pytest.param(None, False, False, id="not known"),
        pytest.param(math.nan, False, False, id="an empty cell"),
    ],
)
def test_a_predicted_label_is_filled_and_marked_where_it_is_known(
    is_known_present: float | None, has_tick: bool, has_cross: bool
) -> None:
    known = {} if is_known_present is None else {"tags:rust": is_known_present}

    strip = labels_strip([0.1, 0.1, 0.9], known)

    assert num_pixels(strip, style.tint(RUST)) > 1000
    assert (num_pixels(strip, style.RIGHT) > 30) == has_tick
    assert (num_pixels(strip, style.WRONG) > 30) == has_cross


def test_a_missed_label_is_an_outline_in_its_colour(drawn: Drawn) -> None:
    strip = labels_strip([0.9, 0.1, 0.25], {"tags:rust": 1.0})

    assert [*drawn.texts] == ["tags:", "crack 90 %", "rust 25 %, missed"]
    assert num_pixels(strip, RUST) > 300
    assert num_pixels(strip, style.tint(RUST)) == 0
    assert num_pixels(strip, style.tint(CRACK)) > 1000


@pytest.mark.parametrize(
    ("known", "has_tick"),
    [
        pytest.param({}, False, id="not known"),
        pytest.param({"tags:rust": 0.0}, False, id="one of three is known"),
        pytest.param(dict.fromkeys(TAGS.columns, 0.0), True, id="known to have none"),
    ],
)
def test_an_image_without_a_predicted_label_has_none(
    drawn: Drawn, known: dict[str, float], has_tick: bool
) -> None:
    strip = labels_strip([0.1, 0.1, 0.1], known)

    assert [*drawn.texts] == ["tags: none"]
    assert len(strip) == LINE
    assert (num_pixels(strip, style.RIGHT) > 30) == has_tick


def check_apart_and_whole(drawn: Drawn, width: int, height: int) -> None:
    """No frame is cut off or lies on another, and each holds one text."""
    texts = [*drawn.texts.values()][1:]
    assert len(texts) == len(drawn.frames)
    for (x0, y0, x1, y1), frame in zip(texts, drawn.frames, strict=True):
        left, top, right, bottom = frame
        assert 0 <= left < x0 and x1 < right < width
        assert 0 <= top < y0 and y1 < bottom < height
    for i, first in enumerate(drawn.frames):
        for second in drawn.frames[i + 1 :]:
            is_beside = first[2] < second[0] or second[2] < first[0]
            is_below = first[3] < second[1] or second[3] < first[1]
            assert is_beside or is_below


@pytest.mark.parametrize(
    ("image", "width"),
    [pytest.param(GREY, 1200, id="wide"), pytest.param(PORTRAIT, 600, id="tall")],
)
def test_many_labels_wrap_and_none_is_cut_off(drawn: Drawn, image: np.ndarray, width: int) -> None:
    names = tuple(f"label number {i}" for i in range(24))
    task = Task("tags", kind="multilabel", labels=names)
    known = {f"tags:{name}": float(i % 3 > 0) for i, name in enumerate(names)}
    result = {"tags": np.linspace(0.3, 0.99, 24)}

    panel = overlay_panel(image, result, [task], RECIPE, known=known)

    assert panel.width == width
    photo_height = width * image.shape[0] // image.shape[1]
    assert (panel.height - photo_height) % LINE == 0
    assert panel.height > photo_height + 2 * LINE
    check_apart_and_whole(drawn, width, panel.height - photo_height)


def test_a_long_label_ends_in_an_ellipsis_before_its_probability(drawn: Drawn) -> None:
    names = ("stripe rust " * 9).strip(), ("yellow " * 20).strip(), "moss"
    task = Task("tags", kind="multilabel", labels=names)
    known = {f"tags:{names[0]}": 1.0, f"tags:{names[1]}": 1.0}

    panel = overlay_panel(
        PORTRAIT, {"tags": np.array([0.9, 0.25, 0.1])}, [task], RECIPE, known=known
    )

    assert any(re.fullmatch(r"stripe.*… 90 %", text) for text in drawn.texts)
    assert any(re.fullmatch(r"yellow.*… 25 %, missed", text) for text in drawn.texts)
    check_apart_and_whole(drawn, panel.width, panel.height - 1200)


# -- intervals
# -----------------------------------------------------------------------------------------------


MASS = Task("mass", unit="g")


def placed(
    truth: float | None, bounds: tuple[float, float] = (2.0, 4.0), task: Task = MASS
) -> PlacedInterval:
    """The interval of 3 on the axis of its picture."""
    [output] = outputs([task])
    result = {task.name: 3.0, "interval": {task.name: bounds}}
    known = {} if truth is None else {task.name: truth}
    axes = interval_axes([output], [result], [known])
    interval = place_interval(output, result, known, axes[task.name])
    assert interval is not None
    return interval


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        pytest.param(3.5, (0.0, 1.0, 0.5, 0.75, True), id="inside"),
        pytest.param(4.0, (0.0, 1.0, 0.5, 1.0, True), id="at a bound"),
        pytest.param(6.0, (0.0, 0.5, 0.25, 1.0, False), id="outside"),
        pytest.param(None, (0.0, 1.0, 0.5, None, None), id="not known"),
        pytest.param(math.nan, (0.0, 1.0, 0.5, None, None), id="an empty cell"),
    ],
)
def test_an_interval_lies_on_an_axis_that_holds_the_true_number(
    truth: float | None, expected: tuple[Any, ...]
) -> None:
    assert placed(truth) == expected


def test_the_axis_of_a_number_that_cannot_be_negative_begins_at_0() -> None:
    mass = Task("mass", unit="g", minimum=0)
    assert placed(None, task=mass) == (0.5, 1.0, 0.75, None, None)


def test_an_endless_bound_is_at_the_end_of_the_axis() -> None:
    interval = placed(3.5, bounds=(2.0, math.inf))
    assert interval.high == 1.0
    assert interval.is_inside is True


def test_a_predicted_number_outside_the_axis_is_at_its_end() -> None:
    [output] = outputs([MASS])
    result = {"mass": 3.0, "interval": {"mass": (2.0, 4.0)}}
    axes = interval_axes([output], [result], [{}])

    beyond = {"mass": 7.0, "interval": {"mass": (6.0, 8.0)}}
    interval = place_interval(output, beyond, {"mass": 1.0}, axes["mass"])

    assert interval == (1.0, 1.0, 1.0, 0.0, False)


def test_a_constant_number_is_in_the_middle_of_its_axis() -> None:
    assert placed(3.0, bounds=(3.0, 3.0)) == (0.5, 0.5, 0.5, 0.5, True)


def test_numbers_that_are_all_0_are_at_the_beginning_of_their_axis() -> None:
    [output] = outputs([Task("mass", unit="g", minimum=0)])
    result = {"mass": 0.0, "interval": {"mass": (0.0, 0.0)}}

    axes = interval_axes([output], [result], [{"mass": 0.0}])

    assert place_interval(output, result, {}, axes["mass"]) == (0.0, 0.0, 0.0, None, None)


@pytest.mark.parametrize("bounds", [(math.nan, 4.0), (2.0, math.nan)], ids=["low", "high"])
def test_bounds_that_are_not_known_are_no_interval(bounds: tuple[float, float]) -> None:
    [output] = outputs([MASS])
    result = {"mass": 3.0, "interval": {"mass": bounds}}

    assert output.bounds(result) is None


def test_a_known_number_may_be_none() -> None:
    [output] = outputs([MASS])
    assert output.truth({"mass": None}) is None


@pytest.mark.parametrize("value", ["", "much", [1.0]], ids=str)
def test_a_known_value_that_is_no_number_is_refused(value: Any) -> None:
    [output] = outputs([MASS])
    with pytest.raises(DataError, match="the known value of 'mass' is .*; expected a number"):
        output.truth({"mass": value})


def test_a_picture_that_is_narrower_than_the_margins_of_a_bar_has_a_bar() -> None:
    tall = np.full((1200, 16, 3), 100, np.uint8)
    result = {"mass": 3.0, "interval": {"mass": (2.0, 4.0)}}

    panel = overlay_panel(tall, result, [MASS], RECIPE)

    assert panel.height > 1200


def test_numbers_of_one_unit_have_one_axis_and_others_have_their_own() -> None:
    tasks = [
        MASS,
        Task("green", unit="g"),
        Task("height", unit="m"),
        Task("index"),
        Task("parts", dim=2, labels=("a", "b")),
    ]
    values = {"mass": 3.0, "green": 1.0, "height": 9.0, "index": 20.0}
    bounds: dict[str, Any] = {name: (value - 1, value + 1) for name, value in values.items()}
    bounds["parts"] = (np.array([1.0, 3.0]), np.array([2.0, 4.0]))
    result = values | {"parts": np.array([1.5, 3.5]), "interval": bounds}

    axes = interval_axes(outputs(tasks), [result], [{}])

    assert axes["mass"] == axes["green"] == (0.0, 4.0)
    assert axes["height"] == (8.0, 10.0)
    assert axes["index"] == (19.0, 21.0)
    assert axes["parts:a"] == axes["parts:b"] == (1.0, 4.0)


def test_an_axis_spans_all_images_and_numbers_without_intervals_have_none() -> None:
    with_interval = {"mass": 3.0, "cover": 0.5, "interval": {"mass": (2.0, 4.0)}}
    without = {"mass": 90.0, "cover": 0.5}
    other = {"mass": 8.0, "cover": 0.5, "interval": {"mass": (7.0, 9.0)}}

    axes = interval_axes(
        outputs([MASS, Task("cover")]), [with_interval, without, other], [{}, {}, {"mass": 11.0}]
    )

    assert axes == {"mass": (2.0, 11.0)}


INSIDE = PlacedInterval(low=0.25, high=0.75, point=0.5, truth=0.6, is_inside=True)


@pytest.mark.parametrize(
    ("interval", "colour"),
    [
        pytest.param(INSIDE, style.RIGHT, id="inside"),
        pytest.param(INSIDE._replace(truth=0.9, is_inside=False), style.WRONG, id="outside"),
        pytest.param(INSIDE._replace(truth=None, is_inside=None), style.UNKNOWN, id="not known"),
    ],
)
def test_a_bar_has_the_colour_of_its_verdict(
    interval: PlacedInterval, colour: tuple[int, ...]
) -> None:
    strip = np.asarray(texts_and_intervals(["mass 3 g"], [interval], 1200))

    others = {style.RIGHT, style.WRONG, style.UNKNOWN} - {colour}
    assert num_pixels(strip, style.tint(colour)) > 1000
    assert [num_pixels(strip, other) for other in others] == [0, 0]


def test_a_bar_spans_its_interval_with_a_dot_at_the_number_and_a_line_at_the_true_one() -> None:
    strip = np.asarray(texts_and_intervals(["mass 3 g"], [INSIDE], 1200))

    assert len(strip) == LINE
    first = 600 + style.CAPTION_PX // 2
    length = 600 - 2 * (style.CAPTION_PX // 2)
    axis = strip[LINE // 2]
    for position, colour in (
        (0.1, style.AXIS),
        (0.3, style.tint(style.RIGHT)),
        (0.5, style.RIGHT),
        (0.6, style.INK),
        (0.7, style.tint(style.RIGHT)),
        (0.9, style.AXIS),
    ):
        assert tuple(axis[first + round(position * length)]) == colour, position


def test_all_bars_are_below_their_texts_where_one_text_is_long() -> None:
    """So that their axes begin and end below each other."""
    long = "mass of all plants that grow on the plot 3 (2 ... 4) g (true 3.5 g)"

    strip = np.asarray(texts_and_intervals(["mass 3 g", long], [INSIDE, INSIDE], 1200))

    assert len(strip) == 4 * LINE
    for line in (0, 2):
        assert num_pixels(strip[line * LINE : (line + 1) * LINE], style.tint(style.RIGHT)) == 0
    for line in (1, 3):
        bar = strip[line * LINE : (line + 1) * LINE]
        assert (bar[LINE // 2] != 255).any(axis=1).mean() > 0.95
    assert (strip[LINE : 2 * LINE] == strip[3 * LINE :]).all()


def test_the_legend_of_a_map_has_the_number_and_its_bar_has_the_name(drawn: Drawn) -> None:
    task = Task("mass", kind="density", unit="g")
    result = {
        "mass": 8.0,
        "maps": {"mass": np.ones((1, 2, 4))},
        "interval": {"mass": (7.5, 8.5)},
    }

    overlay_panel(GREY, result, [task], RECIPE, known={"mass": 8.25})

    assert "mass 8 (7.5 ... 8.5) g (true 8.25 g)" in drawn.texts
    assert "mass" in drawn.texts


def test_an_empty_cell_is_no_true_number_or_class(drawn: Drawn) -> None:
    kind = Task("kind", dim=2, kind="classification", labels=("bare", "crop"))
    result = {"mass": 3.0, "kind": np.array([0.75, 0.25])}

    panel = overlay_panel(
        GREY, result, [MASS, kind], RECIPE, known={"mass": math.nan, "kind": math.nan}
    )

    assert [*drawn.texts] == ["kind: bare 75 %", "mass 3 g"]
    assert num_pixels(np.asarray(panel)[PHOTO_HEIGHT:], style.WRONG) == 0


def test_the_true_class_may_be_a_number_that_pandas_read(drawn: Drawn) -> None:
    kind = Task("kind", dim=2, kind="classification", labels=("1", "2"))
    result = {"kind": np.array([0.75, 0.25])}

    panel = overlay_panel(GREY, result, [kind], RECIPE, known={"kind": 1.0})

    assert [*drawn.texts] == ["kind: 1 75 %", "true 1"]
    assert num_pixels(np.asarray(panel)[PHOTO_HEIGHT:], style.WRONG) == 0


# -- the report
# -----------------------------------------------------------------------------------------------


def page_of(result: dict[str, Any], known: dict[str, Any], *tasks: Task, image: Any = GREY) -> str:
    return html_report([ReportEntry("a.jpg", result, image, known=known)], tasks)


def chips_of(page: str) -> list[str]:
    """Class and text of each chip of a page."""
    chips = re.findall(r'<span class="(chip[^"]*)" style="--colour:(\S+)">(.*?)</span>', page)
    texts = []
    for kind, colour, text in chips:
        texts.append(f"{kind} {colour} {re.sub('<[^>]*>', '', text)}")
    return texts


def test_the_labels_of_an_image_are_chips_in_a_report() -> None:
    result = {"tags": np.array([0.9, 0.8, 0.25]), "maps": {}}
    known = {"tags:crack": 1.0, "tags:moss": 0.0, "tags:rust": 1.0}

    page = page_of(result, known, TAGS)

    assert chips_of(page) == [
        "chip #009e73 crack 90 % ✓ right",
        "chip #d55e00 moss 80 % ✗ wrong",
        "chip missed #0072b2 rust 25 % ✗ missed",
    ]
    assert "Labels that reach their thresholds are filled, and missed ones have an outline." in page


def test_labels_that_are_not_known_have_no_verdict_in_a_report() -> None:
    page = page_of({"tags": np.array([0.9, 0.8, 0.25]), "maps": {}}, {}, TAGS)

    assert chips_of(page) == ["chip #009e73 crack 90 %", "chip #d55e00 moss 80 %"]
    assert "Labels that reach their thresholds are filled." in page
    assert "missed ones" not in page


def test_an_image_known_to_have_no_label_is_right_without_one_in_a_report() -> None:
    result = {"tags": np.array([0.1, 0.2, 0.25]), "maps": {}}
    known = dict.fromkeys(TAGS.columns, 0.0)

    page = page_of(result, known, TAGS)

    assert chips_of(page) == []
    [line] = re.findall(r'<li class="chips">(.*?)</li>', page)
    assert re.sub("<[^>]*>", "", line) == "tags: none✓ right"


@pytest.mark.parametrize(
    ("known", "verdict", "place", "truth"),
    [
        pytest.param({"mass": 3.5}, "✓ inside", " inside", ["0.75"], id="inside"),
        pytest.param({"mass": 1.0}, "✗ outside", " outside", ["0.0"], id="outside"),
        pytest.param({}, "", "", [], id="not known"),
    ],
)
def test_the_interval_of_a_number_is_a_bar_in_a_report(
    known: dict[str, float], verdict: str, place: str, truth: list[str]
) -> None:
    result = {"mass": 3.0, "interval": {"mass": (2.0, 4.0)}, "maps": {}}

    page = page_of(result, known, MASS)

    [line] = re.findall(r'<li class="interval">(.*?)</li>', page, re.DOTALL)
    assert "mass 3 (2 ... 4) g" in line
    assert re.findall(r"<b>(.*)</b>", line) == [verdict]
    assert f'<i class="range{place}"' in line and f'<i class="point{place}"' in line
    assert re.findall(r'class="truth" style="--at:(.*?)"', line) == truth
    assert ("a line at the true one" in page) == bool(known)
    assert "A bar spans the interval of a number" in page


def test_a_report_without_labels_and_intervals_has_no_word_on_them() -> None:
    page = page_of({"mass": 3.0, "maps": {}}, {"mass": 2.0}, MASS)

    assert "interval" not in page.partition("</style>")[2].lower()
    assert "threshold" not in page.partition("</style>")[2]


def test_bars_of_a_report_have_one_axis_for_all_images() -> None:
    entries = []
    for name, value in (("a.jpg", 3.0), ("b.jpg", 7.0)):
        result = {"mass": value, "interval": {"mass": (value - 1, value + 1)}, "maps": {}}
        entries.append(ReportEntry(name, result, GREY))

    page = html_report(entries, [MASS])

    ends = re.findall(r"--low:(.*?);--high:(.*?)\"", page)
    assert ends == [("0.0", "0.333"), ("0.667", "1.0")]

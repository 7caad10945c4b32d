"""The HTML report: sound, closed to the outside, escaped; its numbers, boxes and charts are the predictor's."""

from __future__ import annotations

import base64
import io
import math
import re
import sys
from html.parser import HTMLParser
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck import Backbone, CLSGatingHead, DenseHead, Predictor, Task
from dinoneck.data import Pasture, Preprocessing
from dinoneck.viz import ReportEntry, drawing, html_report, report
from dinoneck.viz.checked import minus
from dinoneck.viz.drawing import scores
from dinoneck.viz.overlay import map_pictures
from dinoneck.viz.report import agreement, worst_and_typical, worst_first
from dinoneck.viz.scales import outputs, scales

pytest.importorskip("matplotlib", reason="the charts need matplotlib, the extra [viz]")

HOSTILE = (
    "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>{{ 7 * 7 "
    "}}\u202e\x1b[31m\x00\udcff--><!--"
)
MARKED = "<img src=x onerror=alert(1)>\"'&"  # what a task may be called
VOID = {"meta", "link", "img", "br"}
LOADING = ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background", "ping")


class Page(HTMLParser):
    """A page as a browser would take it apart; unbalanced tags are an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.by_tag: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.by_tag.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        for tag in set(self.open):
            self.by_tag[tag][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    def image(self, id_: str) -> Image.Image:
        [found] = [attrs for attrs in self.all("img") if attrs.get("id") == id_]
        kind, _, data = (found["src"] or "").partition(";base64,")
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        assert kind == f"data:image/{(image.format or '').lower()}"
        return image


def entries_of(predictor: Predictor, count: int, **more: Any) -> list[ReportEntry]:
    images = list(Pasture(size=(32, 64)).table(range(count))["images"])
    results = predictor(images, maps="patch")
    return [
        ReportEntry(f"field/{i}.jpg", result, predictor.picture(image), **more)
        for i, (image, result) in enumerate(zip(images, results, strict=True))
    ]


@pytest.fixture
def dense(tiny: Backbone) -> Predictor:
    tasks = [
        Task("mass", kind="density", unit="g"),
        Task("kind", kind="segmentation", dim=2, labels=("soil", "crop")),
    ]
    return Predictor(DenseHead(64, tasks, hidden_dim=8), tiny)


def test_every_image_has_its_bounds_and_the_set_of_its_class() -> None:
    kind = Task("kind", dim=2, kind="classification", labels=("bare", "crop"))
    share = Task("shares", dim=2, kind="ratio", labels=("leaf", "stem"))
    result = {
        "mass": 3.2,
        "shares": np.array([0.5, 0.5]),
        "kind": np.array([0.25, 0.75]),
        "interval": {"mass": (2.5, 4.1), "shares": (np.array([0.4, 0.3]), np.array([0.6, 0.7]))},
        "set": {"kind": ["crop", "bare"]},
        "maps": {},
    }
    plain = {name: result[name] for name in ("mass", "shares", "kind")} | {"maps": {}}
    image = np.zeros((32, 64, 3), np.uint8)
    entries = [ReportEntry("a.jpg", result, image), ReportEntry("b.jpg", plain, image)]

    page = Page(html_report(entries, [Task("mass", unit="g"), share, kind]))

    assert page.by_tag["td"][-12:-6] == [
        "crop (among crop, bare)",
        "3.2 (2.5 ... 4.1)",
        "0.5 (0.4 ... 0.6)",
        "0.5 (0.3 ... 0.7)",
        "0.25",
        "0.75",
    ]
    assert page.by_tag["td"][-6:] == ["crop", "3.2", "0.5", "0.5", "0.25", "0.75"]
    assert "mass 3.2 (2.5 ... 4.1) g" in page.text
    assert "shares:stem 50 (30 ... 70) %" in page.text
    assert "kind: crop 75 % (among crop, bare)" in page.text


@pytest.mark.slow
def test_a_page_is_sound_loads_nothing_and_forbids_it(dense: Predictor) -> None:
    entries = entries_of(
        dense, 3, tokens=np.random.default_rng(0).random((2, 4, 3)), known={"mass": 1.0}
    )
    text = html_report(entries, dense.tasks, title="Plot 7", facts={"The head": {"hash": "abc"}})
    page = Page(text)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert sorted(page.by_tag["h3"]) == ["field/0.jpg", "field/1.jpg", "field/2.jpg"]
    assert (page.by_tag["dt"][-1], page.by_tag["dd"][-1]) == ("hash", "abc")
    for tag, attrs in page.elements:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in LOADING:
                assert (value or "").startswith("data:") or (value or "")[1:] in ids, (
                    tag,
                    name,
                    value,
                )
    assert {f"#image-{i}" for i in range(3)} <= {attrs.get("href") for attrs in page.all("a")}
    assert not re.search(
        r"https?:|@import|url\((?!#)|file:",
        re.sub(r"base64,[^\"]*|xmlns[:\w]*=\"[^\"]*\"", "", text),
    )
    [policy] = [attrs["content"] or "" for attrs in page.all("meta") if "http-equiv" in attrs]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert text.index("Content-Security-Policy") < text.index("<style>")
    assert "script" not in page.by_tag
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in page.all("svg"))
    assert text == html_report(
        entries, dense.tasks, title="Plot 7", facts={"The head": {"hash": "abc"}}
    )


def report_of(name: str, labels: tuple[str, ...]) -> dict[str, Any]:
    """As ``training`` writes it to report.json, of a number, a classification and a segmentation."""
    score = {"pooled": 0.875, "interval": [0.75, 1.0], "folds": [1.0, None, 0.5]}
    shared = {"labels": [*labels], "confusion_matrix": [[6, 2], [0, 8]], "images": 16}
    values = {"r2": score, "mae": score | {"pooled": 1.25}, "images": 16}
    classes = {
        "accuracy": score,
        "macro_f1": score,
        "f1": dict(zip(labels, [0.8571, None], strict=True)),
        **shared,
    }
    masks = {
        "mean_iou": score,
        "pixel_accuracy": score,
        "iou": dict(zip(labels, [0.625, 0.8], strict=True)),
        **shared,
    }
    linear = classes | {"head_minus": {"accuracy": [0.1, 0.2], "macro_f1": None}}
    return {
        "scores": {
            name: {"head": values},
            f"{name} kind": {"head": classes, "linear": linear},
            f"{name} cover": {"head": masks},
            "overall": {"head": {"r2": score | {"folds": [None]}, "mae": score, "images": 16}},
        },
        "auxiliary": [],
        "target_weights": {},
        "held_out": {name: ([1.0, 2.0, 4.0], [1.5, 2.0, 3.0])},
    }


@pytest.mark.slow
def test_hostile_names_stay_text() -> None:
    def page(name: str, marked: str) -> str:
        tasks = [
            Task("mass", unit=marked),
            Task("kinds", kind="classification", dim=2, labels=(marked, "b")),
        ]
        tasks.append(Task("cover", kind="segmentation", dim=2, labels=(marked, "b")))
        result = {"mass": 2.0, "kinds": np.array([0.25, 0.75]), "cover": np.array([0.5, 0.5])}
        maps = {"mass": np.ones((1, 1, 2)), "cover": np.ones((2, 1, 2))}
        known = {"mass": 3.0, "kinds": marked}
        entry = ReportEntry(
            name, result | {"maps": maps}, np.zeros((16, 32, 3), np.uint8), known=known
        )
        facts, training = {name: {name: name}}, report_of(name, (marked, "b"))
        return html_report(
            [entry], tasks, title=name, facts=facts, training=training, unread={name: name}
        )

    hostile, harmless = page(HOSTILE, MARKED), page("x", "g")
    shown = Page(hostile)
    assert [tag for tag, _ in shown.elements if tag not in ("tspan", "text")] == [
        tag for tag, _ in Page(harmless).elements if tag not in ("tspan", "text")
    ]
    assert not re.search("[\u202e\x1b\x00\udcff]", hostile)
    visible = HOSTILE.replace("\u202e\x1b", "\\u202e\\x1b").replace("\x00\udcff", "\\x00\\udcff")
    for tag in ("title", "h1", "h3", "dd"):
        assert visible in shown.by_tag[tag]


def test_numbers_of_the_table_are_the_predictors(dense: Predictor) -> None:
    entries = entries_of(dense, 3)

    page = Page(html_report(entries, dense.tasks))

    assert page.by_tag["th"][:4] == ["image", "mass (g)", "soil", "crop"]
    for i, entry in enumerate(entries):
        values = [entry.result["mass"], *entry.result["kind"]]
        assert page.by_tag["td"][3 * i : 3 * i + 3] == [minus(f"{value:.3g}") for value in values]


def test_pictures_are_the_predictors(dense: Predictor) -> None:
    entries = entries_of(dense, 3)
    scale = scales(outputs(dense.tasks), [entry.result for entry in entries])

    page = Page(html_report(entries, dense.tasks))

    for i, entry in enumerate(entries):
        expected = map_pictures(
            entry.image, entry.result, dense.tasks, Preprocessing(16), scale=scale
        )
        for id_, (_, drawn) in zip(("over", "over-2"), expected, strict=True):
            shown = page.image(f"image-{i}-{id_}")
            assert (shown.format, shown.width) == ("WEBP", 700)
            resized = np.asarray(drawn.resize(shown.size), float)
            assert np.abs(np.asarray(shown, float) - resized).mean() < 6


def test_each_map_has_a_picture_of_its_own(dense: Predictor) -> None:
    page = Page(html_report(entries_of(dense, 1), dense.tasks))
    assert page.by_tag["figcaption"][:3] == ["photo", "predicted shares", "predicted mass"]


def test_photos_and_tokens_are_those_of_the_entries(dense: Predictor) -> None:
    colours = np.random.default_rng(1).random((2, 4, 3))
    entries = entries_of(dense, 1, tokens=colours)

    page = Page(html_report(entries, dense.tasks))

    assert (np.asarray(page.image("image-0-tokens")) == (colours * 255).round()).all()
    seen = (torch.as_tensor(entries[0].image).permute(1, 2, 0).numpy() * 255).round()
    # WebP smooths single pixels
    assert np.abs(np.asarray(page.image("image-0-image"), float) - seen).mean() < 12


def test_maps_of_one_scale_are_below_each_other_on_a_phone() -> None:
    maps = {"mass": np.ones((3, 1, 2))}
    entry = ReportEntry("a.jpg", {"mass": np.ones(3), "maps": maps}, PIXELS)
    task = Task("mass", kind="density", dim=3, unit="g")

    text = html_report([entry], [task])

    page = Page(text)
    shown = [attrs["id"] for attrs in page.all("img")]
    assert shown == ["image-0-image", "image-0-over", "image-0-over-2", "image-0-over-3"]
    assert any(attrs.get("style") == "--columns:4" for attrs in page.all("div"))
    assert "@media (max-width: 37.5rem) { .figures { grid-template-columns: 1fr } }" in text


def test_the_photo_the_true_and_the_predicted_classes_are_next_to_each_other(
    dense: Predictor,
) -> None:
    pixels = np.zeros((32, 64), int)
    [entry] = entries_of(dense, 1, known={"crop": 0.5}, classes=lambda: {"kind": pixels})
    del entry.result["maps"]["mass"]

    text = html_report([entry], dense.tasks)

    page = Page(text)
    shown = [attrs["id"] for attrs in page.all("img")]
    assert shown == ["image-0-image", "image-0-truth", "image-0-over"]
    assert page.by_tag["figcaption"][:3] == ["photo", "true", "predicted"]
    assert any(attrs.get("style") == "--columns:3" for attrs in page.all("div"))
    assert "(true 50 %)" in page.by_tag["ul"][-1], "the number is text beside its colour"
    assert 'style="--colour:#009e73"' in text, "the first colour of classes: crop, soil has none"


def test_images_with_a_class_alone_are_cards_with_its_bar() -> None:
    task = Task("kind", kind="classification", dim=2, labels=("bare", "crop"))
    pixels = np.zeros((16, 32, 3), np.uint8)
    maps = {"kind": np.full((2, 1, 2), 0.5)}
    entries = []
    for name, true in (("right.jpg", "crop"), ("wrong.jpg", "bare")):
        result = {"kind": np.array([0.25, 0.75]), "maps": maps}
        entries.append(ReportEntry(name, result, pixels, known={"kind": true}))

    text = html_report(entries, [task])

    page = Page(text)
    assert [attrs["id"] for attrs in page.all("img")] == ["image-1-image", "image-0-image"]
    assert 'class="cards"' in text
    bars = [attrs["style"] for attrs in page.all("li") if attrs.get("class") == "bar"]
    assert bars == ["--share:0.75;--colour:#d55e00"] * 2
    assert "kind: crop 75 % (true bare)✗ wrong" in page.text
    assert "kind: crop 75 % (true crop)✓ right" in page.text
    assert "The bar is as long as the class is probable." in page.text
    assert "colour bar" not in page.text and "share" not in page.by_tag["section"][0].lower()


@pytest.mark.slow
def test_a_hundred_images_with_24_drawn_take_two_megabytes_at_most(dense: Predictor) -> None:
    """Of noise, which takes more bytes than any photo."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (480, 640, 3), np.uint8)
    maps = {"mass": random.random((1, 30, 40)), "kind": np.full((2, 30, 40), 0.5)}
    result = {"mass": 3.0, "kind": np.array([0.5, 0.5]), "maps": maps}
    entries = []
    for i in range(100):
        image = noise if i < 24 else None
        entries.append(ReportEntry(f"{i}.jpg", result, image, known={"mass": 1.0 + i}))

    page = html_report(entries, dense.tasks)

    assert page.count("<article ") == 24
    assert len(page.encode()) < 2_000_000


PIXELS = np.zeros((16, 32, 3), np.uint8)


def test_every_number_is_listed_also_of_a_task_with_many() -> None:
    result = {"bands": np.arange(15.0), "maps": {}}

    page = Page(html_report([ReportEntry("a.jpg", result, PIXELS)], [Task("bands", dim=15)]))

    lines = [line.strip() for line in page.by_tag["ul"][-1].splitlines() if line.strip()]
    assert lines == [f"bands:{i} {i}" for i in range(15)]


def test_a_label_that_no_known_image_has_is_without_a_score() -> None:
    """Its average precision is not defined."""
    task = Task("tags", kind="multilabel", labels=("crack", "rust"))
    result = {"tags": np.array([0.1, 0.2]), "maps": {}}
    entry = ReportEntry("a.jpg", result, PIXELS, known={"tags:rust": 0.0})

    page = Page(html_report([entry], task))

    assert page.by_tag["td"][:5] == ["1", "0", "–", "–", "0.5"]


def test_shares_beyond_twelve_are_counted() -> None:
    shares = np.arange(15.0) / 105
    labels = tuple(f"c{i}" for i in range(15))
    task = Task("cover", kind="ratio", dim=15, labels=labels)

    page = Page(html_report([ReportEntry("a.jpg", {"cover": shares, "maps": {}}, PIXELS)], [task]))

    lines = [line.strip() for line in page.by_tag["ul"][-1].splitlines() if line.strip()]
    assert lines[0] == "cover:c14 13.3 %", "the largest comes first"
    assert len(lines) == 13
    assert lines[-1] == "and 3 more"


def test_an_index_without_a_map_is_written_as_in_the_tables() -> None:
    entries = [ReportEntry("a.jpg", {"ndvi": 0.8, "maps": {}}, PIXELS)]

    page = Page(html_report(entries, [Task("ndvi", minimum=0, maximum=1)]))

    assert page.by_tag["td"][-1] == "0.8"
    assert "ndvi 0.8" in page.by_tag["ul"][-1]
    assert "Numbers in original units." in page.text


def test_a_number_that_is_drawn_as_a_share_is_percent_and_in_tables_a_share() -> None:
    result = {"cover": 0.8, "maps": {"cover": np.full((1, 1, 2), 0.8)}}

    page = Page(
        html_report([ReportEntry("a.jpg", result, PIXELS)], [Task("cover", minimum=0, maximum=1)])
    )

    assert page.by_tag["td"][-1] == "0.8"
    assert "cover 80 %" in page.by_tag["ul"][-1]
    assert "Shares from 0 to 1." in page.text and "original units" not in page.text


def test_the_colour_bar_of_a_gate_alone_is_explained() -> None:
    result = {"mass": 3.0, "maps": {}, "gate": np.full((1, 2), 0.5)}

    page = Page(html_report([ReportEntry("a.jpg", result, PIXELS)], [Task("mass", unit="g")]))

    assert "The colour bar gives the range, which is the same in all images." in page.text


def test_facts_are_folded() -> None:
    entry = ReportEntry("a.jpg", {"mass": 1.0})
    page = Page(html_report([entry], [Task("mass")], facts={"The head": {"hash": "abc"}}))
    assert page.by_tag["details"] == ["The head\nhashabc"]


def test_gates_are_drawn_against_a_plain_mean(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(
        CLSGatingHead(64, [Task("mass", unit="g")], mode="query", hidden_dim=8), tiny
    )
    entries = entries_of(predictor, 2)
    drawn = mock.Mock(wraps=report.map_pictures)
    monkeypatch.setattr(report, "map_pictures", drawn)
    html_report(entries, predictor.tasks)
    gates = [entry.result["gate"] * 8 for entry in entries]
    for call, gate in zip(drawn.call_args_list, gates, strict=True):
        assert call.args[1]["maps"]["the gate"][0] == pytest.approx(gate)
        assert call.kwargs["scale"]["the gate"][:2] == pytest.approx(
            (0.0, max(own.max() for own in gates))
        )


def test_known_values_give_scores_and_the_worst_image_comes_first() -> None:
    tasks = [Task("mass", unit="g"), Task("cover")]
    predicted, known = [1.0, 2.0, 4.0, 9.0], [1.0, 2.5, 3.0, 4.0]
    pixels = np.zeros((16, 16, 3), np.uint8)
    entries = [
        ReportEntry(f"{i}.jpg", {"mass": a, "cover": 0.5}, pixels, known={"mass": b})
        for i, (a, b) in enumerate(zip(predicted, known, strict=True))
    ]
    entries.insert(2, ReportEntry("none.jpg", {"mass": 3.0, "cover": 0.1}, pixels))
    assert worst_first(entries, tasks) == [4, 3, 1, 0, 2]
    page = Page(html_report(entries, tasks))
    assert page.by_tag["h3"] == ["3.jpg", "2.jpg", "1.jpg", "0.jpg", "none.jpg"]
    [(key, found)] = agreement(entries, tasks).items()
    gap = np.subtract(predicted, known)
    assert (key, found["images"]) == ("mass", 4)
    assert found["r2"] == pytest.approx(1 - (gap**2).sum() / (4 * np.var(known)))
    assert [found[name] for name in ("mae", "bias", "rmse")] == pytest.approx(
        [np.abs(gap).mean(), gap.mean(), math.sqrt((gap**2).mean())]
    )
    assert page.by_tag["td"][:6] == [
        f"{value:.4g}".replace("-", "\N{MINUS SIGN}") for value in found.values()
    ]
    assert page.by_tag["td"][6:9] == ["1", "1", "0.5"]  # predicted, known, cover of the first image
    points = [attrs["xlink:href"] for attrs in page.all("a") if "xlink:href" in attrs]
    assert points == [f"#image-{i}" for i in (0, 1, 3, 4)] * 2, (
        "every point of both charts leads to its image"
    )
    assert math.isnan(scores([1.0, 3.0], [2.0, 2.0])["r2"])


def test_half_of_the_drawn_images_have_the_largest_errors_and_half_the_median_one() -> None:
    entries = [ReportEntry(f"{i}", {"mass": float(i)}, known={"mass": 0.0}) for i in range(21)]
    entries.insert(0, ReportEntry("unknown", {"mass": 99.0}))
    places = worst_and_typical(entries, [Task("mass")], 6)
    assert [entries[place].name for place in places] == ["20", "19", "18", "11", "10", "9"]
    assert worst_and_typical(entries, [Task("mass")], 30) == worst_first(entries, [Task("mass")])
    for most in range(4):
        assert len(worst_and_typical(entries, [Task("mass")], most)) == most


def test_known_classes_give_a_confusion_matrix() -> None:
    task = Task("kind", kind="classification", dim=2, labels=("soil", "crop"))
    chances, known = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]], ["soil", "soil", "crop"]
    entries = [
        ReportEntry(f"{i}", {"kind": np.array(p)}, known={"kind": k})
        for i, (p, k) in enumerate(zip(chances, known, strict=True))
    ]
    [found] = agreement(entries, [task]).values()
    assert found == {
        "images": 3,
        "accuracy": pytest.approx(2 / 3),
        "confusion_matrix": [[1, 1], [0, 1]],
    }
    assert worst_first(entries, [task]) == [1, 2, 0]
    page = Page(html_report(entries, [task]))
    assert page.by_tag["td"][:4] == ["50.0% (1)", "50.0% (1)", "0.0% (0)", "100.0% (1)"]
    assert page.by_tag["td"][4:8] == ["soil", "soil", "0.9", "0.1"]


@pytest.mark.parametrize(
    "missing",
    [
        pytest.param(None, id="None"),
        pytest.param(math.nan, id="NaN"),
        pytest.param(np.float32("nan"), id="NaN of numpy"),
    ],
)
def test_a_missing_known_value_is_none(missing: Any) -> None:
    known = ReportEntry("known", {"mass": 3.0}, known={"mass": 2.0})
    unknown = ReportEntry("unknown", {"mass": 1.0}, known={"mass": missing})

    compared = agreement([unknown, known], [Task("mass")])

    assert compared["mass"]["images"] == 1
    assert worst_first([unknown, known], [Task("mass")]) == [1, 0]


def test_the_missing_value_of_pandas_is_none() -> None:
    pandas = pytest.importorskip("pandas")

    entry = ReportEntry("a", {"mass": 1.0}, known={"mass": pandas.NA})

    assert entry.known == {}


def test_known_classes_may_be_the_numbers_that_pandas_read() -> None:
    task = Task("kind", kind="classification", dim=2, labels=("1", "2"))
    result = {"kind": np.array([0.9, 0.1])}
    integer = ReportEntry("integer", result, known={"kind": 1})
    with_gaps = ReportEntry("with gaps", result, known={"kind": 2.0})

    compared = agreement([integer, with_gaps], [task])

    assert compared["kind"]["confusion_matrix"] == [[1, 0], [1, 0]]
    assert worst_first([integer, with_gaps], [task]) == [1, 0]


def test_held_out_scores_of_the_training_run_are_a_section() -> None:
    entry, tasks = ReportEntry("a", {"mass": 1.0}), [Task("mass", unit="g")]
    page = Page(html_report([entry], tasks, training=report_of("mass", ("mixed", "weed only"))))
    cells = page.by_tag["td"]
    # of the number: R² with the error, its interval and worst fold; 16 images
    assert cells[:6] == ["0.875 (1.25)", "0.75 ... 1.00", "0.500", "16", "", ""]
    start = cells.index("0.875")  # of the classes
    assert cells[start : start + 6] == ["0.875", "0.75 ... 1.00", "0.500"] * 2
    assert ("head", "linear") in zip(page.by_tag["th"], page.by_tag["th"][1:], strict=False), (
        "the head comes first"
    )
    assert "75.0% (6) 25.0% (2) 0.0% (0) 100.0% (8)" in " ".join(cells)
    for none in (None, {}, {"scores": {}, "auxiliary": []}):
        assert "Held-out scores" not in html_report([entry], tasks, training=none)


# the IoU of A and B is 0.82
A, B, FAR = [10.0, 10.0, 30.0, 30.0], [12.0, 10.0, 32.0, 30.0], [60.0, 5.0, 70.0, 9.0]


def entry(
    name: str,
    found: list[tuple[list[float], str, float]],
    known: list[tuple[list[float], str]] | None,
) -> Any:
    result = {
        "boxes": np.array([box for box, _, _ in found]).reshape(-1, 4),
        "names": [label for _, label, _ in found],
        "scores": np.array([score for _, _, score in found]),
    }
    truth = {} if known is None else {"boxes": np.array([b for b, _ in known]).reshape(-1, 4)}
    truth |= {} if known is None else {"names": [label for _, label in known]}
    return ReportEntry(name, result, np.zeros((50, 100, 3), np.uint8), known=truth)


ENTRIES = [
    entry("good.jpg", [(B, "cell", 0.9)], [(A, "cell")]),
    # twice the same cell, a clot taken for a cell, and a box of nothing
    entry(
        "bad.jpg",
        [(A, "cell", 0.8), (B, "cell", 0.7), (FAR, "cell", 0.5)],
        [(A, "cell"), (FAR, "clot")],
    ),
    # the box of the same class is the cell's, although that of the other class overlaps more
    entry("both.jpg", [(A, "clot", 0.6), (B, "cell", 0.4)], [(A, "cell"), (B, "clot")]),
    entry("missed.jpg", [], [(A, "cell")]),
    entry("unknown.jpg", [(A, "cell", 0.9)], None),
]


LOG = [{"epoch": 0, "loss": 2.0, "AP": 0.1, "AP50": 0.2, "AP75": None}, {"epoch": 1, "loss": 1.0}]


BEST = {
    "epoch": 0,
    "AP": 0.1,
    "AP50": 0.2,
    "AP75": None,
    "AR100": 0.3,
    "per_class": {"cell": {"AP": 0.1, "AP50": 0.2}},
}


def test_boxes_are_paired_by_class_and_overlap() -> None:
    assert agreement(ENTRIES, ()) == {
        "cell": {"known": 4, "predicted": 5, "found": 3},
        "clot": {"known": 2, "predicted": 1, "found": 1},
    }
    assert worst_first(ENTRIES, ()) == [1, 3, 0, 2, 4]
    page = Page(html_report(ENTRIES, ()))
    rows = [page.by_tag["td"][i : i + 5] for i in (0, 5)]
    assert rows == [["4", "5", "3", "0.75", "0.60"], ["2", "1", "1", "0.50", "1.00"]]
    # rows are the known classes cell, clot and none: the double box is of no object
    counts = [cell.partition(" ")[2] for cell in page.by_tag["td"][10:19]]
    assert counts == ["(3)", "(0)", "(1)", "(1)", "(1)", "(0)", "(1)", "(0)", "(0)"]
    assert page.by_tag["td"][10] == "75.0% (3)"
    assert page.by_tag["td"][19:31] == ["1", "1", "1", "0", "0", "0", "3", "2", "1", "1", "0", "1"]
    assert page.by_tag["td"][-6:] == ["1", "–", "–", "–", "–", "–"]
    assert page.by_tag["h3"] == ["bad.jpg", "missed.jpg", "good.jpg", "both.jpg", "unknown.jpg"]


def test_an_image_has_the_count_of_each_class_of_boxes() -> None:
    """In the order and the colours of the model's classes, also where one has no box."""
    page = Page(html_report(ENTRIES[1:2], (), classes=("none of them", "clot", "cell")))
    assert page.by_tag["li"][-2:] == ["clot 0 (true 1)", "cell 3 (true 1)"]
    swatches = [attrs["style"] for attrs in page.all("i")]
    assert swatches == ["--colour:#d55e00", "--colour:#009e73"]
    shown = [attrs["id"] for attrs in page.all("img")]
    assert shown == ["image-0-truth", "image-0-over"]
    unknown = Page(html_report(ENTRIES[4:], (), classes=("cell",)))
    assert unknown.by_tag["li"][-1] == "cell 1"
    assert [attrs["id"] for attrs in unknown.all("img")] == ["image-0-over"]


def test_the_count_of_a_class_that_the_truth_lacks_has_no_true_one() -> None:
    compared = entry("a.jpg", [(A, "crop", 0.9), (FAR, "weed", 0.8)], [(A, "crop")])
    compared.known["classes"] = ["crop"]

    page = Page(html_report([compared], (), classes=("crop", "weed")))

    assert page.by_tag["li"][-2:] == ["crop 1 (true 1)", "weed 1"]
    assert "no known boxes to compare with are thick too." in page.text


def test_a_class_that_the_truth_lacks_has_a_row_without_scores_and_a_sentence() -> None:
    compared = entry("a.jpg", [(A, "crop", 0.9), (FAR, "weed", 0.8)], [(A, "crop")])
    compared.known["classes"] = ["crop"]

    page = Page(html_report([compared], (), classes=("crop", "weed")))

    cells = page.by_tag["td"]
    assert cells[:5] == ["1", "1", "1", "1.00", "1.00"]
    assert cells[5:10] == ["–", "1", "–", "–", "–"]
    assert "The known boxes have no class weed, so" in page.text
    confusion = [cell.partition(" ")[2] for cell in cells[10:14]]
    assert confusion == ["(1)", "(0)", "(0)", "(0)"], "of crop and none: weed is in no row"


def test_a_class_of_images_without_known_boxes_alone_is_not_compared() -> None:
    entries = [
        entry("known.jpg", [(A, "cell", 0.9)], [(A, "cell")]),
        entry("unknown.jpg", [(A, "clot", 0.9)], None),
    ]
    assert list(agreement(entries, ())) == ["cell"]


def test_a_page_whose_classes_are_all_known_has_no_sentence_on_others() -> None:
    page = Page(html_report(ENTRIES[1:2], ()))

    assert "missed are dashed." in page.text
    assert "compare with" not in page.text


def test_the_training_of_the_detector_is_a_section() -> None:
    training = {"best": BEST, "untrained": BEST | {"AP": 0.0}, "log": LOG}
    page = Page(html_report(ENTRIES[-1:], (), training=training))
    assert page.by_tag["h2"][:3] == ["Images", "Held-out scores", "Predictions"], (
        "nothing is compared"
    )
    assert page.by_tag["td"][:10] == [
        "0.100",
        "0.200",
        "-",
        "0.300",
        "0.000",
        "0.200",
        "-",
        "0.300",
        "0.100",
        "0.200",
    ]
    assert {"training loss: by epoch", "held-out AP: by epoch"} <= set(page.by_tag["figcaption"])


def test_classes_stay_text() -> None:
    hostile = html_report([entry("a", [(A, MARKED, 0.5)], [(A, MARKED)])], ())
    assert "<img src=x" not in hostile
    assert MARKED in Page(hostile).by_tag["th"]


TRUE, PREDICTED = np.array([10.0, 20.0, 30.0]), np.array([12.0, 17.0, 31.0])


def test_points_are_the_values_and_residuals(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(
        drawing, "chart", lambda axes, name, what, *labels: drawn.append((axes, labels))
    )
    drawing.agreement_charts("mass", TRUE, PREDICTED, "g")
    expected = ([[10, 12], [20, 17], [30, 31]], [[10, 2], [20, -3], [30, 1]])
    for (axes, labels), points, label in zip(
        drawn, expected, ("predicted g", "residual g"), strict=True
    ):
        np.testing.assert_array_equal(axes.collections[0].get_offsets(), points)
        assert labels == ("true g", label)


def test_a_report_without_matplotlib_leaves_out_the_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    entries = [
        ReportEntry(str(i), {"mass": TRUE[i]}, known={"mass": PREDICTED[i]}) for i in range(3)
    ]
    page = html_report(entries, [Task("mass")])
    assert "pip install &#39;dinoneck[train]&#39;" in page and "<svg" not in page and "RMSE" in page

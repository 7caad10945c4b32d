"""The HTML report: sound, closed to the outside, escaped, and its numbers and colours are the predictor's."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck import (
    Backbone,
    CLSGatingHead,
    ConfigError,
    DataError,
    DenseHead,
    PatchMeanHead,
    Predictor,
    ShapeError,
    Task,
)
from dinoneck.data import Pasture
from dinoneck.viz import ReportEntry, heat, html_report
from dinoneck.viz.report import page as page_file
from dinoneck.viz.report.markup import Markup, element, plain
from dinoneck.viz.report.numbers import outputs, ticks
from dinoneck.viz.report.page import agreement, worst_first
from dinoneck.viz.scores import scores

HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>\u202e\x1b[31m\x00\udcff--><!--"
MARKED = "<img src=x onerror=alert(1)>\"'&"  # what a task may be called
VOID = {"meta", "link", "img", "input", "br"}
LOADING = ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background", "style", "ping")


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
        if self.open:
            for tag in set(self.open):
                self.by_tag[tag][-1] += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.elements if "id" in attrs]

    def image(self, id_: str) -> Image.Image:
        [found] = [attrs for attrs in self.all("image") if attrs.get("id") == id_]
        return decoded(found["href"] or "")


def decoded(uri: str) -> Image.Image:
    kind, _, data = uri.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert kind == f"data:image/{(image.format or '').lower()}"
    image.load()
    return image


def entries_of(predictor: Predictor, count: int, **more: Any) -> list[ReportEntry]:
    photos = list(Pasture(size=(32, 64)).table(range(count)).photos)
    results = predictor(photos, maps=True)
    return [
        ReportEntry(f"field/{i}.jpg", result, predictor.picture(photo), **more)
        for i, (photo, result) in enumerate(zip(photos, results, strict=True))
    ]


TASKS = [Task("mass", unit="g"), Task("kinds", kind="classification", dim=2, labels=("soil", "crop"))]


@pytest.fixture
def dense(tiny: Backbone) -> Predictor:
    tasks = [Task("mass", kind="density", unit="g"), Task("kind", kind="segmentation", dim=2, labels=("soil", "crop"))]
    return Predictor(DenseHead(64, tasks, hidden_dim=8), tiny)


def test_a_page_is_sound_and_holds_every_photo(dense: Predictor) -> None:
    entries = entries_of(dense, 3, tokens=np.random.default_rng(0).random((2, 4, 3)))
    page = Page(html_report(entries, dense.tasks, title="Plot 7", facts={"The head": {"digest": "abc"}}))
    assert page.by_tag["title"][0] == page.by_tag["h1"][0] == "Plot 7"
    assert len(set(page.ids())) == len(page.ids())
    assert page.by_tag["h3"] == ["field/0.jpg", "field/1.jpg", "field/2.jpg"]
    assert "digest" in page.by_tag["dt"]
    assert "abc" in page.by_tag["dd"]
    targets = {attrs["href"] for attrs in page.all("a") + page.all("use") if "href" in attrs}
    assert targets <= {f"#{id_}" for id_ in page.ids()}
    assert {f"#photo-{i}" for i in range(3)} <= targets
    for attrs in page.all("svg"):
        assert attrs["role"] == "img"
        assert attrs["aria-label"]
    assert all(attrs.get("alt") for attrs in page.all("img"))
    assert all(attrs.get("scope") in ("col", "row") for attrs in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]


def test_nothing_is_loaded_and_the_policy_forbids_it(dense: Predictor) -> None:
    text = html_report(entries_of(dense, 2, known={"mass": 1.0}), dense.tasks)
    page = Page(text)
    for tag, attrs in page.elements:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in LOADING:
                assert (value or "").startswith(("data:", "#")), (tag, name, value)
    assert not re.search(r"https?:|@import|url\(|file:|//\w", re.sub(r"base64,[^\"]*", "", text))
    policy = next(attrs["content"] or "" for attrs in page.all("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert text.index("Content-Security-Policy") < text.index("<style>")


def test_hostile_names_stay_text(tiny: Backbone) -> None:
    tasks = [Task("mass", unit=MARKED), Task("kinds", kind="classification", dim=2, labels=(MARKED, "b"))]
    answer = {"mass": 2.0, "kinds": np.array([0.25, 0.75]), "maps": {"mass": np.ones((1, 1, 2))}}
    entry = ReportEntry(HOSTILE, answer, np.zeros((16, 32, 3), np.uint8), known={"mass": 3.0})
    harmless = [Task("mass", unit="g"), Task("kinds", kind="classification", dim=2, labels=("a", "b"))]
    plain_entry = ReportEntry("x", answer, np.zeros((16, 32, 3), np.uint8), known={"mass": 3.0})
    text = html_report([entry], tasks, title=HOSTILE, facts={HOSTILE: {HOSTILE: HOSTILE}}, unread={HOSTILE: HOSTILE})
    other = html_report([plain_entry], harmless, title="t", facts={"f": {"f": "f"}}, unread={"u": "u"})
    assert [tag for tag, _ in Page(text).elements] == [tag for tag, _ in Page(other).elements]
    assert not re.search("[\u202e\x1b\x00\udcff]", text)
    text.encode("utf-8")
    shown = Page(text)
    assert all(plain(HOSTILE) in told for told in (shown.by_tag["h1"][0], shown.by_tag["h3"][0], shown.by_tag["dd"][0]))
    assert "\\u202e\\x1b[31m\\x00\\udcff" in shown.by_tag["h1"][0]
    assert len(plain("x" * 5000)) == 1000


def test_elements_escape_everything_but_markup() -> None:
    assert element("p", 'a<b>"', Markup("<i>c</i>"), None, title='">', lang=None, hidden=True, open_=False) == (
        '<p title="&quot;&gt;" hidden>a&lt;b&gt;&quot;<i>c</i></p>'
    )
    assert element("br") == "<br>"


def test_numbers_are_the_predictors(dense: Predictor) -> None:
    entries = entries_of(dense, 4)
    page = Page(html_report(entries, dense.tasks))
    assert page.by_tag["th"][:4] == ["photo", "mass (g)", "kind:soil", "kind:crop"]
    for i, entry in enumerate(entries):
        values = [entry.result["mass"], *entry.result["kind"]]
        assert page.by_tag["td"][3 * i : 3 * i + 3] == [f"{value:.6g}" for value in values]


def test_heat_maps_are_heat_at_patch_centres(dense: Predictor) -> None:
    entries = entries_of(dense, 3)
    page = Page(html_report(entries, dense.tasks))
    for number, name, output in ((0, "mass", 0), (2, "kind", 1)):
        maps = [entry.result["maps"][name][output] for entry in entries]
        low, high = min(m.min() for m in maps), max(m.max() for m in maps)
        for i, cells in enumerate(maps):
            image = page.image(f"photo-{i}-map-{number}")
            assert image.format == "PNG"
            shown = np.asarray(image.convert("RGB").resize((64, 32), Image.Resampling.NEAREST))
            assert (shown[8::16, 8::16] == np.asarray(heat(cells, float(low), float(high)))).all()
    boxes = {attrs["viewbox"] for attrs in page.all("svg") if attrs["class"] == "picture"}
    assert boxes == {"0 0 64 32"}
    placed = page.all("image")
    assert {(attrs["width"], attrs["height"], attrs["preserveaspectratio"]) for attrs in placed} == {
        ("64", "32", "none")
    }


def test_photos_and_tokens_are_shown_as_they_are(dense: Predictor) -> None:
    colours = np.random.default_rng(1).random((2, 4, 3))
    [entry] = entries_of(dense, 1, tokens=colours)
    page = Page(html_report([entry], dense.tasks))
    assert (np.asarray(page.image("photo-0-pixels-tokens")) == (colours * 255).round()).all()
    photo = page.image("photo-0-pixels")
    assert photo.format == "JPEG"
    seen = (torch.as_tensor(entry.photo).permute(1, 2, 0).numpy() * 255).round()
    assert np.abs(np.asarray(photo, float) - seen).mean() < 12  # noise of single pixels, which JPEG smooths


def test_gates_are_drawn_against_a_plain_mean(tiny: Backbone) -> None:
    predictor = Predictor(CLSGatingHead(64, [Task("mass", unit="g")], mode="query", hidden_dim=8), tiny)
    entries = entries_of(predictor, 2)
    page = Page(html_report(entries, predictor.tasks))
    gates = [entry.result["gate"] * 8 for entry in entries]
    low, high = min(gate.min() for gate in gates), max(gate.max() for gate in gates)
    for i, gate in enumerate(gates):
        assert (np.asarray(page.image(f"photo-{i}-gate").convert("RGB")) == np.asarray(heat(gate, low, high))).all()
    assert "times a plain mean" in page.text
    assert f"mass: {entries[0].result['mass']:.4g} g" in page.text


def test_known_values_give_scores_and_the_worst_photo_comes_first() -> None:
    tasks = [Task("mass", unit="g"), Task("cover")]
    said, known = [1.0, 2.0, 4.0, 9.0], [1.0, 2.5, 3.0, 4.0]
    photo = np.zeros((16, 16, 3), np.uint8)
    entries = [
        ReportEntry(f"{i}.jpg", {"mass": a, "cover": 0.5, "maps": {}}, photo, known={"mass": b})
        for i, (a, b) in enumerate(zip(said, known, strict=True))
    ]
    entries.insert(2, ReportEntry("none.jpg", {"mass": 3.0, "cover": 0.1, "maps": {}}, photo))
    assert worst_first(entries, tasks) == [4, 3, 1, 0, 2]
    page = Page(html_report(entries, tasks))
    assert page.by_tag["h3"] == ["3.jpg", "2.jpg", "1.jpg", "0.jpg", "none.jpg"]
    [(key, found)] = agreement(entries, outputs(tasks)).items()
    assert (key, found.photos) == ("mass", 4)
    gap = np.subtract(said, known)
    assert found.r2 == pytest.approx(1 - (gap**2).sum() / (4 * np.var(known)))
    assert (found.mae, found.bias) == pytest.approx((np.abs(gap).mean(), gap.mean()))
    assert found.rmse == pytest.approx(math.sqrt((gap**2).mean()))
    row = ["4", *(f"{value:.4g}" for value in found[1:])]
    cells = page.by_tag["td"]
    assert any(cells[i : i + 6] == row for i in range(len(cells)))
    assert cells[:3] == ["1", "1", "0.5"]  # predicted, known, cover of the first photo
    assert cells[7] == "–"  # not known
    circles = [told for told in page.by_tag["circle"] if told.startswith("3.jpg: predicted 9, known 4")]
    assert len(page.by_tag["circle"]) == 2 * 4
    assert len(circles) == 2
    assert "Those that are off most come first." in page.text


def test_charts_of_very_many_photos_show_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_file, "_MOST_POINTS", 20)
    entries = [ReportEntry(f"{i}.jpg", {"mass": float(i)}, known={"mass": i + 1.0}) for i in range(41)]
    page = Page(html_report(entries, [Task("mass")]))
    assert len(page.all("circle")) == 2 * 14
    assert "one photo in 3 is shown" in page.text
    assert len(page.by_tag["td"]) == 2 * 41 + 6 + 5


def test_points_lie_where_their_values_are() -> None:
    values = [(1.0, 2.0), (3.0, 8.0), (5.0, 5.0)]
    entries = [ReportEntry(f"{i}", {"mass": a}, known={"mass": b}) for i, (a, b) in enumerate(values)]
    page = Page(html_report(entries, [Task("mass")]))
    dots = page.all("circle")
    x = [float(dot["cx"] or 0) for dot in dots[:3]]
    y = [float(dot["cy"] or 0) for dot in dots[:3]]
    known, said = [b for _, b in values], [a for a, _ in values]
    assert np.polyfit(known, x, 1, full=True)[1][0] < 1e-3
    assert np.polyfit(said, y, 1, full=True)[1][0] < 1e-3
    lines = [attrs for attrs in page.all("line") if attrs["class"] == "ideal"]
    slope = (float(lines[0]["y2"] or 0) - float(lines[0]["y1"] or 0)) / (
        float(lines[0]["x2"] or 0) - float(lines[0]["x1"] or 0)
    )
    on_line = float(lines[0]["y1"] or 0) + slope * (x[2] - float(lines[0]["x1"] or 0))
    assert on_line == pytest.approx(y[2], abs=0.1)  # 5 predicted, 5 known
    zero = float(lines[1]["y1"] or 0)
    assert [float(dot["cy"] or 0) > zero for dot in dots[3:5]] == [True, True]  # too low: below the line
    assert float(dots[5]["cy"] or 0) == pytest.approx(zero, abs=0.1)


def test_bars_count_every_photo() -> None:
    entries = [ReportEntry(str(i), {"mass": float(v)}) for i, v in enumerate([0, 0, 0, 1, 2, 10])]
    page = Page(html_report(entries, [Task("mass")]))
    counts = [int(told.rpartition(": ")[2]) for told in page.by_tag["rect"]]
    assert sum(counts) == 6
    assert (counts[0], counts[-1]) == (3 + (len(counts) < 6), 1)
    tallest = max(float(attrs["height"] or 0) for attrs in page.all("rect"))
    heights = [float(attrs["height"] or 0) for attrs in page.all("rect")]
    assert heights == pytest.approx([tallest * count / max(counts) for count in counts], abs=0.02)


def training_report(name: str = "kind", labels: tuple[str, ...] = ("mixed", "weed only")) -> dict[str, Any]:
    """As ``training`` writes it to report.json, of a classification and a segmentation without any value target."""
    score = {"pooled": 0.875, "interval": [0.75, 1.0], "folds": [1.0, None, 0.5]}
    shared = {"labels": [*labels], "confusion_matrix": [[6, 2], [0, 8]]}
    classes = {"accuracy": score, "macro_f1": score, "f1": dict(zip(labels, [0.8571, None], strict=True)), **shared}
    masks = {"mean_iou": score, "pixel_accuracy": score, "iou": dict(zip(labels, [0.625, 0.8], strict=True)), **shared}
    ridge = classes | {"head_minus": {"accuracy": [0.1, 0.2], "macro_f1": None}}
    return {
        "classes": {name: {"a ridge": ridge, "head": classes}},
        "masks": {"cover": {"head": masks}},
        "predicted": 16,
    }


def test_held_out_scores_of_the_training_run_are_a_section() -> None:
    entry = ReportEntry("a", {"mass": 1.0})
    page = Page(html_report([entry], [Task("mass")], training=training_report()))
    assert "Held-out scores" in page.by_tag["h2"]
    cells = page.by_tag["td"]
    start = cells.index("0.875")
    assert cells[start : start + 6] == ["0.875", "0.75 ... 1.00", "0.500"] * 2
    rows = list(zip(page.by_tag["th"], page.by_tag["th"][1:], strict=False))
    assert ("head", "a ridge") in rows, "the head comes first"
    [each] = [i for i in range(len(cells)) if cells[i : i + 6] == ["50.0%", "0.857", "0.857", "50.0%", "-", "-"]]
    assert cells[each + 6 : each + 10] == ["6", "2", "0", "8"]
    assert cells[each + 10 : each + 20] == [
        *["0.875", "0.75 ... 1.00", "0.500"] * 2,
        "50.0%",
        "0.625",
        "50.0%",
        "0.800",
    ]
    values = {"scores": {"head": {"mass": 0.5, "overall": 0.5, "worst fold": None}}, "mae": {"head": {"mass": 1.25}}}
    assert "0.500 (1.25)" in Page(html_report([entry], [Task("mass")], training=values)).by_tag["td"]
    for none in (None, {}, {"scores": {}, "mae": {}, "classes": {}}):
        assert "Held-out scores" not in html_report([entry], [Task("mass")], training=none)


def test_names_in_a_training_report_stay_text() -> None:
    entry, tasks = ReportEntry("a", {"mass": 1.0}), [Task("mass")]
    hostile = html_report([entry], tasks, training=training_report(HOSTILE, (MARKED, "b")))
    harmless = html_report([entry], tasks, training=training_report())
    assert [tag for tag, _ in Page(hostile).elements] == [tag for tag, _ in Page(harmless).elements]
    assert not re.search("[\u202e\x1b\x00\udcff]", hostile)


@pytest.mark.parametrize(
    "wrong", [{"classes": {"kind": {}}}, {"mae": 3}, {"classes": {"kind": {"head": {"labels": []}}}}]
)
def test_a_training_report_of_another_form_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"not those of a training run .*; expected its report\.json"):
        html_report([ReportEntry("a", {"mass": 1.0})], [Task("mass")], training=wrong)


def test_photos_that_could_not_be_read_are_listed() -> None:
    page = Page(html_report([ReportEntry("a", {"mass": 1.0})], [Task("mass")], unread={"b.jpg": "no picture"}))
    assert "1 photo, 1 could not be read." in page.text
    assert page.by_tag["td"][-1] == "no picture"
    assert "Photos" not in page.by_tag["h2"]
    assert "Against known values" not in page.by_tag["h2"]


def test_pictures_shrink_and_then_are_left_out(dense: Predictor) -> None:
    random = np.random.default_rng(0)
    answer = dense(np.zeros((32, 64, 3), np.uint8), maps=True)[0]
    entries = [ReportEntry(f"{i}", answer, random.random((150, 300, 3))) for i in range(4)]
    whole, smaller, fewer = (
        html_report(entries, dense.tasks, largest_side=200, max_bytes=limit) for limit in (10_000_000, 50_000, 15_000)
    )
    sizes = [Page(text).image("photo-0-pixels").size for text in (whole, smaller, fewer)]
    assert sizes[0] == (200, 100)
    assert sizes[1][0] < 200
    assert [Page(text).by_tag["h3"] for text in (whole, smaller)] == [["0", "1", "2", "3"]] * 2
    assert len(whole) > len(smaller) > len(fewer)
    asked: list[int] = []

    def lazily(i: int) -> np.ndarray[Any, Any]:
        asked.append(i)
        return entries[i].photo  # type: ignore[return-value]

    later = [ReportEntry(entry.name, answer, partial(lazily, i)) for i, entry in enumerate(entries)]
    assert html_report(later, dense.tasks, largest_side=200, max_bytes=15_000) == fewer
    assert asked == [0, 1, 2, 3] * 2, "sizes that cannot be small enough are not tried"
    drawn = len(Page(fewer).by_tag["h3"])
    assert 1 <= drawn < 4
    assert f"{drawn} of 4 photos are drawn here" in Page(fewer).text
    assert Page(html_report(entries, dense.tasks, largest_side=100)).image("photo-1-pixels").size == (100, 50)


def test_the_same_arguments_give_the_same_page(dense: Predictor) -> None:
    entries = entries_of(dense, 2)
    assert html_report(entries, dense.tasks) == html_report(entries, dense.tasks)
    assert html_report(entries, dense.tasks) != html_report(entries, dense.tasks, title="other")


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: html_report([], [Task("a")]), DataError, "one photo at least"),
        (lambda: html_report([ReportEntry("x", {"a": 1.0})], [Task("a")], max_bytes=0), ConfigError, "1 or more"),
        (
            lambda: html_report([ReportEntry("x", {"a": 1.0}, known={"a": math.nan})], [Task("a")]),
            DataError,
            "known values of 'a' are not finite",
        ),
        (
            lambda: html_report(
                [
                    ReportEntry(
                        "x", {"a": 1.0, "maps": {"a": np.full((1, 2, 2), np.nan)}}, np.zeros((9, 9, 3), np.uint8)
                    )
                ],
                [Task("a")],
            ),
            DataError,
            "maps of 'a'",
        ),
    ],
)
def test_what_cannot_be_reported_is_refused(call: Callable[[], str], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call()


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"a": math.nan}, DataError, "a prediction of 'a' is nan; leave that photo out"),
        ({"a": math.inf}, DataError, "a prediction of 'a' is inf"),
        ({"a": "much"}, DataError, "no number for 'a'"),
        ({"a": []}, DataError, "no number for 'a'; it holds a"),
        ({"maps": {"a": np.zeros((0, 2, 2))}}, ShapeError, r"maps of 'a' have shape \(0, 2, 2\)"),
        ({"maps": {"a": np.zeros((2, 2))}}, ShapeError, r"maps of 'a' have shape \(2, 2\)"),
        ({"gate": np.zeros((1, 2, 2))}, ShapeError, "the gate of x have shape"),
        ({"gate": np.full((2, 2), np.inf)}, DataError, "the gate of x hold inf"),
    ],
)
def test_results_that_no_predictor_gives_are_refused(change: dict[str, Any], error: type[Exception], told: str) -> None:
    entry = ReportEntry("x", {"a": 1.0} | change, np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(error, match=told):
        html_report([entry], [Task("a")])


@pytest.mark.parametrize("tokens", [np.zeros((2, 2)), np.zeros((2, 2, 5)), np.zeros((0, 2, 3))])
def test_colours_of_another_form_are_refused(tokens: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="the tokens of x have shape"):
        html_report([ReportEntry("x", {"a": 1.0}, np.zeros((9, 9, 3), np.uint8), tokens)], [Task("a")])


def test_tensors_of_any_dtype_are_drawn() -> None:
    maps = torch.arange(4.0).reshape(1, 2, 2)
    photo = np.zeros((9, 9, 3), np.uint8)
    told = [
        html_report([ReportEntry("x", {"a": 1.0, "maps": {"a": one}}, photo, torch.zeros(2, 2, 3))], [Task("a")])
        for one in (maps, maps.bfloat16(), maps.numpy())
    ]
    assert told[0] == told[1] == told[2]


def test_scores_of_values_that_do_not_differ() -> None:
    found = scores([1.0, 3.0], [2.0, 2.0])
    assert math.isnan(found.r2)
    assert (found.mae, found.rmse, found.bias) == (1.0, 1.0, 0.0)
    page = Page(html_report([ReportEntry("x", {"a": 1.0}, known={"a": 1.0})], [Task("a")]))
    assert "–" in page.by_tag["td"]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.7, 12.1), (1e-5, 2e-5), (0.0, 123456.0), (5.0, 5.0)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    if high > low:
        assert len(found) >= 2
        step = found[1] - found[0]
        assert any(math.isclose(step / 10 ** math.floor(math.log10(step * 1.001)), n, rel_tol=1e-6) for n in (1, 2, 5))


def test_patch_means_of_flipped_views_are_drawn_too(tiny: Backbone) -> None:
    predictor = Predictor(PatchMeanHead(64, [Task("mass", unit="g")]), tiny, tta="flip4")
    entries = entries_of(predictor, 1)
    cells = entries[0].result["maps"]["mass"][0]
    image = Page(html_report(entries, predictor.tasks)).image("photo-0-map-0")
    assert (np.asarray(image.convert("RGB")) == np.asarray(heat(cells, float(cells.min()), float(cells.max())))).all()


def test_cells_below_the_minimum_of_a_task_are_drawn_at_it() -> None:
    photo = np.zeros((16, 48, 3), np.uint8)
    below, above = ({"mass": 31.0, "maps": {"mass": np.array([[[low, 10.0, 83.0]]])}} for low in (-58.0, 0.0))
    tasks = [Task("mass", unit="g", minimum=0)]
    pages = [html_report([ReportEntry("a", one, photo)], tasks) for one in (below, above)]
    assert "clipped at 0" in pages[0] and "clipped" not in pages[1] and "-58" not in pages[0]

"""A report as one HTML file: predictions, maps and residuals of many photos, to open anywhere without a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np

from dinoneck.errors import ConfigError, DataError, counted
from dinoneck.tasks import Task
from dinoneck.version import __version__
from dinoneck.viz.report.charts import Point, against, histogram, residuals
from dinoneck.viz.report.markup import Markup, element, joined, named
from dinoneck.viz.report.numbers import Output, number, outputs
from dinoneck.viz.report.photos import Drawn, ReportEntry
from dinoneck.viz.report.style import policy, script, slider, style
from dinoneck.viz.score_tables import all_tables
from dinoneck.viz.scores import Scores, scores

_MOST_POINTS = 2000  # in one chart

Facts = Mapping[str, Mapping[str, str]]


def html_report(
    entries: Sequence[ReportEntry],
    tasks: Sequence[Task],
    *,
    title: str = "Predictions",
    facts: Facts | None = None,
    training: Mapping[str, Any] | None = None,
    unread: Mapping[str, str] | None = None,
    largest_side: int = 640,
    max_bytes: int = 20_000_000,
) -> str:
    """Return a page that holds everything it shows: it loads nothing. All text is escaped.

    The colours of maps span each output's values over all images drawn. Where values are known, images come in the
    order of their error: the mean over outputs of the absolute error divided by the output's RMSE.

    Args:
        entries: one per image, at least one.
        tasks: what is predicted, as in ``Predictor.tasks``: names, units and labels.
        title: of the page.
        facts: heading -> term -> text, such as what the head is and how it was run; each becomes a list at the end.
        training: the ``report.json`` of the training run; the scores of its held-out images become a section.
        unread: name -> reason of the images that could not be read.
        largest_side: of the images in the page, in pixels; maps stay exact, one pixel per cell.
        max_bytes: of all images: first they get smaller, then the last ones are left out, which the page states.

    Raises:
        DataError: if there are no entries, predictions, known values, maps or colours are missing or not finite, or
            ``training`` is not a report of a training run.
        ShapeError: if maps are not (outputs, rows, cols), a gate not (rows, cols) or colours not (rows, cols, 3).
        ConfigError: if a size is not positive.

    Examples:
        >>> entry = ReportEntry("a.jpg", {"mass": 12.5})
        >>> page = html_report([entry], [Task("mass", unit="g")], title="<Plot> 7")
        >>> "<h1>&lt;Plot&gt; 7</h1>" in page, "12.5" in page, "https:" in page
        (True, True, False)
    """
    if not entries:
        raise DataError("there are no entries; a report needs one photo at least")
    if largest_side < 1 or max_bytes < 1:
        raise ConfigError(f"largest_side is {largest_side} and max_bytes {max_bytes}; expected 1 or more")
    columns = outputs(tasks)
    found = agreement(entries, columns)
    order = worst_first(entries, tasks)
    wanted = [place for place in order if entries[place].photo is not None]
    drawn = Drawn(wanted, entries, columns)
    articles = drawn.articles(largest_side, max_bytes)
    links = {place: f"photo-{place}" for place in wanted[: len(articles)]}
    sections = {
        "predictions": ("Predictions", _table(entries, columns, links)),
        "known": ("Against known values", _agreement(entries, columns, found, links)),
        "held-out": ("Held-out scores", _held_out(training or {})),
        "distribution": ("Distribution", _distribution(entries, columns, found)),
        "photos": ("Photos", _photos(articles, len(wanted), bool(found), drawn.has_maps)),
        "unread": ("Photos that could not be read", _unread(unread or {})),
        **{f"facts-{i}": (head, _list(told)) for i, (head, told) in enumerate((facts or {}).items())},
    }
    return _page(title, _summary(entries, len(articles), unread or {}), {k: s for k, s in sections.items() if s[1]})


def agreement(entries: Sequence[ReportEntry], columns: Sequence[Output]) -> dict[str, Scores]:
    """Return how far every column is from known values, where there are any.

    Raises:
        DataError: if one is not finite.
    """
    found = {}
    for output in columns:
        pairs = [(output.value(e.result), e.known[output.key]) for e in entries if output.key in e.known]
        if any(not isinstance(known, SupportsFloat) or not math.isfinite(known) for _, known in pairs):
            raise DataError(f"known values of {output.key!r} are not finite; leave unknown ones out")
        if pairs:
            found[output.key] = scores([said for said, _ in pairs], [known for _, known in pairs])
    return found


def worst_first(entries: Sequence[ReportEntry], tasks: Sequence[Task]) -> list[int]:
    """Return the places of entries, those off most first; those without a known value last, in their order."""
    columns = outputs(tasks)
    found = agreement(entries, columns)

    def off(place: int) -> float:
        entry = entries[place]
        gaps = [
            abs(output.value(entry.result) - entry.known[output.key]) / (found[output.key].rmse or 1.0)
            for output in columns
            if output.key in entry.known
        ]
        return sum(gaps) / len(gaps) if gaps else -1.0

    return sorted(range(len(entries)), key=off, reverse=True)


def _page(title: str, summary: str, sections: Mapping[str, tuple[str, Markup | None]]) -> str:
    """The document around the sections."""
    links = [element("li", element("a", heading, href=f"#{key}")) for key, (heading, _) in sections.items()]
    parts = [
        element("section", element("h2", heading, id=f"{key}-heading"), body, id=key, aria_labelledby=f"{key}-heading")
        for key, (heading, body) in sections.items()
    ]
    size = sum(map(len, parts)) / 1e6
    foot = f"Made by dinoneck {__version__}. One file of {size:.1f} MB: it loads nothing and sends nothing."
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy()),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("meta", name="generator", content=f"dinoneck {__version__}"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        style(),
    ]
    body = [
        element("a", "To the predictions", href="#predictions", class_="skip"),
        element(
            "header",
            element("h1", title),
            element("p", summary),
            element("nav", element("ul", *links), aria_label="Sections"),
        ),
        element("main", *parts),
        element("footer", element("p", foot, class_="soft")),
        script(),
    ]
    page = element("html", element("head", *head), element("body", *body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _summary(entries: Sequence[ReportEntry], drawn: int, unread: Mapping[str, str]) -> str:
    told = [counted(len(entries), "photo")]
    if drawn:
        told.append("all drawn" if drawn == len(entries) else f"{drawn} of them drawn")
    told += [f"{len(unread)} could not be read"] if unread else []
    return f"{', '.join(told)}."


def _table(entries: Sequence[ReportEntry], columns: Sequence[Output], links: Mapping[int, str]) -> Markup:
    known = {output.key for output in columns if any(output.key in entry.known for entry in entries)}
    names = ["photo"]
    for output in columns:
        names += [output.heading, "known"] if output.key in known else [output.heading]
    heads = [element("th", text, scope="col") for text in names]
    rows = []
    for place, entry in enumerate(entries):
        name = named(entry.name)
        if place in links:
            name = element("a", name, href=f"#{links[place]}")
        cells = []
        for output in columns:
            cells.append(element("td", number(output.value(entry.result))))
            if output.key in known:
                cells.append(element("td", number(entry.known.get(output.key, math.nan)), class_="soft"))
        rows.append(element("tr", element("th", name, scope="row"), *cells))
    caption = "What was predicted for every photo, in natural units."
    return _wide_table(caption, heads, rows, "Predictions")


def _wide_table(told: str, heads: Sequence[Markup], rows: Sequence[Markup], label: str) -> Markup:
    """A table that scrolls within itself where the page is narrow."""
    table = element(
        "table",
        element("caption", label),
        element("thead", element("tr", *heads)),
        element("tbody", *rows),
        class_="sortable",
    )
    return joined(
        [
            element("p", told, class_="soft"),
            element("div", table, class_="wide", tabindex=0, role="region", aria_label=label),
        ]
    )


def _agreement(
    entries: Sequence[ReportEntry], columns: Sequence[Output], found: Mapping[str, Scores], links: Mapping[int, str]
) -> Markup | None:
    if not found:
        return None
    names = ("output", "photos", "R²", "MAE", "RMSE", "bias", "sd of known")
    heads = [element("th", text, scope="col") for text in names]
    known = [output for output in columns if output.key in found]
    rows = []
    for output in known:
        told = found[output.key]
        numbers = [str(told.photos), *(number(value, 4) for value in told[1:])]
        rows.append(
            element("tr", element("th", output.heading, scope="row"), *(element("td", text) for text in numbers))
        )
    caption = (
        "MAE, RMSE, bias (mean of predicted minus known) and sd are in each output's unit. Images that a head was "
        "trained on look better here than new ones will."
    )
    pairs = [element("div", *_pair(entries, output, links), class_="charts") for output in known]
    charts = element("div", *pairs, class_="pairs")
    return joined([_wide_table(caption, heads, rows, "Agreement with known values"), charts])


def _held_out(training: Mapping[str, Any]) -> Markup | None:
    """The scores of images that no head was trained on."""
    tables = []
    for header, rows in all_tables(training):
        heads = [element("th", text, scope="col") for text in header]
        cells = [
            element("tr", element("th", row[0], scope="row"), *(element("td", x) for x in row[1:])) for row in rows
        ]
        tables.append(_wide_table(header[0], heads, cells, header[0]))
    caption = (
        "Each image was predicted by a head that was not trained on it. Intervals: 95 %, by a bootstrap over groups."
    )
    return joined([element("p", caption, class_="soft"), *tables]) if tables else None


def _pair(entries: Sequence[ReportEntry], output: Output, links: Mapping[int, str]) -> list[Markup]:
    """Both charts of one output."""
    places = [place for place, entry in enumerate(entries) if output.key in entry.known]
    step = -(-len(places) // _MOST_POINTS)
    ideal, off = [], []
    for place in places[::step]:
        entry, known = entries[place], entries[place].known[output.key]
        said = output.value(entry.result)
        told = f"{entry.name}: predicted {number(said, 4)}, known {number(known, 4)}"
        ideal.append(Point(known, said, told, links.get(place)))
        off.append(Point(said, said - known, told, links.get(place)))
    unit = output.task.unit
    axis = f" ({unit})" if unit else ""
    some = "" if step == 1 else f"; one photo in {step} is shown"
    first = against(ideal, f"known{axis}", f"predicted{axis}", f"{output.key}: predicted over known values")
    second = residuals(off, f"predicted{axis}", f"predicted − known{axis}", f"{output.key}: residuals over predictions")
    return [
        element(
            "figure",
            first,
            element("figcaption", element("b", output.key), f": predicted over known; dashed: equal{some}"),
        ),
        element(
            "figure", second, element("figcaption", element("b", output.key), f": what predictions are off by{some}")
        ),
    ]


def _distribution(entries: Sequence[ReportEntry], columns: Sequence[Output], found: Mapping[str, Scores]) -> Markup:
    heads = [element("th", text, scope="col") for text in ("output", "mean", "sd", "smallest", "median", "largest")]
    rows, charts = [], []
    for output in columns:
        values = np.array([output.value(entry.result) for entry in entries])
        told = (values.mean(), values.std(), values.min(), np.median(values), values.max())
        cells = [element("td", number(float(value), 4)) for value in told]
        rows.append(element("tr", element("th", output.heading, scope="row"), *cells))
        known = [entry.known[output.key] for entry in entries if output.key in entry.known]
        chart = histogram(values.tolist(), known, output.task.unit, f"{output.key}: how many photos have which value")
        told_by = [element("b", output.key), " ", element("span", "predicted", class_="key")]
        told_by += [" ", element("span", "known", class_="key line")] if output.key in found else []
        charts.append(element("figure", chart, element("figcaption", *told_by)))
    caption = f"Predictions of {counted(len(entries), 'photo')}."
    table = _wide_table(caption, heads, rows, "Distribution of predictions")
    return joined([table, element("div", *charts, class_="charts")])


def _photos(articles: Sequence[Markup], wanted: int, worst_first: bool, has_maps: bool) -> Markup | None:
    if not articles:
        return None
    told = ["Those that are off most come first."] if worst_first else []
    if len(articles) < wanted:
        told.append(f"{len(articles)} of {wanted} photos are drawn here, so that the page stays small.")
    if has_maps:
        told.append(
            "In every column: the map, one colour per cell, and below it the map over the photo in grey. The colours "
            "of an output mean the same in all photos."
        )
    return joined([element("p", " ".join(told), class_="soft") if told else None, slider(), *articles])


def _unread(unread: Mapping[str, str]) -> Markup | None:
    if not unread:
        return None
    heads = [element("th", text, scope="col") for text in ("photo", "reason")]
    rows = [
        element("tr", element("th", named(name), scope="row"), element("td", reason, class_="text"))
        for name, reason in unread.items()
    ]
    return _wide_table(f"{counted(len(unread), 'photo')} left out.", heads, rows, "Photos that could not be read")


def _list(told: Mapping[str, str]) -> Markup | None:
    pairs = [joined([element("dt", term), element("dd", text)]) for term, text in told.items()]
    return element("dl", *pairs) if pairs else None

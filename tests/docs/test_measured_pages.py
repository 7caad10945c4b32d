"""Pages show stored results that keep their promises; the pages of the site name each other."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from benchmarks.__main__ import NAMES
from benchmarks.evidence.intervals import GROUPS, MASSES
from benchmarks.results import MARK, RESULTS, SOURCES, filled, read
from tests.house.source import ROOT, SOURCE

from dinoneck.backbones.known import KNOWN
from dinoneck.published.detectors import DETECTORS

OWN_COMMANDS = {"matrix", "first_prediction"}  # results that python -m benchmarks does not measure
PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if MARK.search(page.read_text())]


def marks() -> Iterator[tuple[str, str, list[str]]]:
    for page in PAGES:
        for stem, titles in MARK.findall(page.read_text()):
            yield page.name, stem, titles.split("; ") if titles else []


@pytest.mark.parametrize(("page", "stem", "titles"), [*marks()])
def test_every_mark_names_stored_tables_or_a_result_still_to_be_measured(
    page: str, stem: str, titles: list[str]
) -> None:
    name = re.sub("(_random|_cuda|_amx)$", "", stem)
    assert name in {*NAMES, *OWN_COMMANDS}
    if (path := RESULTS / f"{stem}.json").exists():
        assert {*titles} <= read(path).keys(), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_become_tables_with_machine_cores_and_threads(page: Path) -> None:
    text = filled(page.read_text())
    assert MARK.search(text) is None and not re.search(r"<!-- *table", text)
    for caption in re.findall(r"^\*`(?:python -m benchmarks|make) .*$", text, re.MULTILINE):
        assert all(word in caption for word in ("cores: ", "threads: ", "dinoneck ")), caption


def test_commands_on_pages_name_a_benchmark() -> None:
    """``-m benchmarks NAME`` names a benchmark, ``-m benchmarks.NAME`` also another module."""
    files = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").rglob("*.md")]
    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    commands = []
    for file in files:
        commands += re.findall(r"-m benchmarks([ .])\$?(\w+)", file.read_text())
    assert commands
    for separator, name in commands:
        assert name in {*NAMES, "NAME", "name"} or (separator == "." and name in modules)


def test_stored_tokens_are_within_their_bounds() -> None:
    tables = read(RESULTS / "parity.json")
    for name, row in tables["differences"]["rows"].items():
        gaps = [value for pair, value in row.items() if " - " in pair and value is not None]
        assert gaps and (row["bound"] is None or max(gaps) <= row["bound"]), name
        # libraries that compute something else by intent differ by far more than rounding
        assert row["bound"] is not None or max(gaps) > 1e-3, name
    for name, row in tables["slips"]["rows"].items():
        right, *slips, _ = row.values()
        assert right <= 1e-5 and min(slip for slip in slips if slip is not None) > 0.1, name


def test_stored_intervals_of_new_groups_keep_their_promise() -> None:
    tables = read(RESULTS / "evidence_random.json")
    rows = tables["interval_pasture"]["rows"]
    coverages = [row["coverage"] for name, row in rows.items() if name.endswith(GROUPS)]
    assert len(coverages) == len(MASSES)
    for coverage in coverages:
        assert 0.88 <= coverage <= 0.92


def test_stored_logits_of_published_heads_are_within_their_bounds() -> None:
    tables = {
        title: table["rows"]
        for title, table in read(RESULTS / "parity.json").items()
        if "published" in title
    }
    for title, bound in (("float32", 1e-5), ("float64", 1e-12)):
        rows = tables[f"published heads, {title}"]
        assert rows and all(
            0 < value <= bound == row["bound"] for row in rows.values() for value in row.values()
        ), title
    assert sum(name.endswith("transformers") for name in tables["published heads, float64"]) == 8


def test_stored_tokens_of_openvino_are_those_of_torch() -> None:
    """For every published architecture; in bfloat16 as near to float32 as torch's."""
    stored = RESULTS / "runtimes.json"
    if not stored.exists():
        pytest.skip("not measured yet: python -m benchmarks runtimes")
    tables = read(stored)
    names = [f"`{architecture.name}`" for architecture in KNOWN]
    assert [*tables["architectures of timm"]["rows"]] == names
    assert [*tables["detectors of RF-DETR"]["rows"]] == [f"`{name}`" for name in DETECTORS]
    for table in tables.values():
        for name, row in table["rows"].items():
            if "float32: layer" not in row:  # cannot be compiled
                continue
            assert row["float32: layer"] <= 1e-4, name
            assert row["token"] <= 1e-3, name
            bfloat16 = row["bfloat16: OpenVINO from float32, token"]
            assert bfloat16 <= 2 * row["torch from float32, token"], name


def test_stored_predictions_are_those_of_the_other_runtime() -> None:
    stored = RESULTS / "runtime_scores.json"
    if not stored.exists():
        pytest.skip("not measured yet: python -m benchmarks runtime_scores")
    for title in ("fields", "cells"):
        rows = read(stored)[f"{title}, random weights"]["rows"]
        for one, other in (("torch", "openvino"), ("openvino", "torch")):
            row = rows[f"trained with {one}, float32; used with {other}, float32"]
            assert 0 < row["largest difference"] <= 1e-4


def gains_of_openvino(dtype: str, other_machine: str = "") -> str:
    """How many times as fast OpenVINO is as a script, on one thread: "2.22 to 3.83"."""
    gains = []
    for benchmark in ("images", "extraction"):
        for title, table in read(RESULTS / f"{benchmark}{other_machine}.json").items():
            if title.startswith("runtimes, ") and title.endswith("1 threads"):
                gains.append(table["rows"][f"openvino, {dtype}"]["× by CPU time"])
    return f"{min(gains):.2f} to {max(gains):.2f}"


def test_the_speed_page_has_the_stored_gains_of_the_runtime() -> None:
    text = " ".join((DOCS / "explanation" / "speed.md").read_text().split())
    assert f"**{gains_of_openvino('float32')} times as fast in float32**;" in text
    float32 = gains_of_openvino("float32", "_amx")
    bfloat16 = gains_of_openvino("bfloat16", "_amx")
    assert (
        f"**{float32} times as fast in float32, and {bfloat16} times as fast in bfloat16**" in text
    )


def speed_of_photos(megapixels: int) -> str:
    """How many times as fast as a script 32 photos are predicted on two threads: "1.95"."""
    rows = read(RESULTS / "images.json")[f"{megapixels} megapixels, 2 threads"]["rows"]
    return f"{rows['32 images to predictions: Predictor']['× plain script']:.2f}"


def difference_of_libraries() -> str:
    """The largest difference of tokens that should be equal: "1.1e-05"."""
    gaps = []
    for row in read(RESULTS / "parity.json")["differences"]["rows"].values():
        if row["bound"] is None:
            continue
        for pair, value in row.items():
            if " - " in pair and value is not None:
                gaps.append(value)
    return f"{max(gaps):.1e}"


def refused_files() -> str:
    """Of how many files with damaged bytes every single one was refused: "4,986"."""
    report = json.loads((ROOT / "tests" / "faults" / "report.json").read_text())
    modes = report["mutate"]["modes"].values()
    cases = sum(mode["cases"] for mode in modes)
    assert sum(mode["refused"] for mode in modes) == cases
    return f"{cases:,}"


def coverage_of_new_groups() -> str:
    """The share of true masses inside 90 % intervals, of both targets: "91"."""
    rows = read(RESULTS / "evidence_random.json")["interval_pasture"]["rows"]
    shares = {f"{100 * row['coverage']:.0f}" for name, row in rows.items() if name.endswith(GROUPS)}
    [share] = shares
    return share


def heads_in_one_pass() -> tuple[str, str]:
    """Times as fast as two loops, and MiB that trainings keep, as the pages say it."""
    rows = read(RESULTS / "speed.json")["25 heads × 6 views"]["rows"]
    published = rows["B6 16×16 C1536, float32: loop over heads, as published"]
    without_copies = rows["B6 16×16 C1536, float32: loop over heads, patches copied once"]
    ensemble = rows["ours, B6 16×16 C1536, float32: HeadEnsemble"]
    faster = f"{ensemble['forward, × published']:.2f}"
    slower = f"{ensemble['forward, × layout fixed']:.2f}"
    kept_by_loops = f"{published['saved MiB']:.0f} and {without_copies['saved MiB']:.0f}"
    return (
        f"{faster} times as fast as the usual loop over them, and {slower} times as fast as a loop",
        f"keeps {ensemble['saved MiB']:.0f} MiB of activations instead of {kept_by_loops}",
    )


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_each_of_the_five_reasons_has_its_stored_figure(page: str) -> None:
    text = " ".join((ROOT / page).read_text().split()).replace("**", "")
    times_as_fast, kept_by_training = heads_in_one_pass()
    assert difference_of_libraries() in text
    assert f"Of {refused_files()} damaged files all were refused".lower() in text.lower()
    assert f"{speed_of_photos(12)} times" in text
    assert f"of 2 megapixels {speed_of_photos(2)} times" in text
    assert f"{gains_of_openvino('bfloat16', '_amx')} times" in text
    assert f"90 % intervals held the true mass of {coverage_of_new_groups()} %" in text
    assert times_as_fast in text
    assert kept_by_training in text


def test_nothing_was_wrong_under_load() -> None:
    for row in read(RESULTS / "service.json")["load"]["rows"].values():
        assert row["wrong"] == 0 and row["images"] >= 1000 and row["refused"] >= 50
        assert row["`/health` p50, ms"] <= 100


def test_the_matrix_is_of_the_supported_pythons_and_without_a_failure() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = [line.split()[-1] for line in project["classifiers"] if "Python :: 3." in line]
    titles = {f"Python {python}" for python in pythons}
    with_oldest_torch = f"Python {pythons[0]}"
    tables = read(RESULTS / "matrix.json")
    assert {*tables} - {"extras"} == titles
    for title in titles:
        rows = tables[title]["rows"]
        expected_rows = ["newest", "oldest"]
        if title == with_oldest_torch:
            expected_rows.append("oldest torch")
        assert [*rows] == expected_rows, title
        for end, row in rows.items():
            assert row["passed"] > 0, (title, end)
            assert row["failed"] == 0, (title, end)
    [lower_bound] = re.findall(
        r"^torch>=([\d.]+)$", "\n".join(project["dependencies"]), re.MULTILINE
    )
    oldest_torch = tables[with_oldest_torch]["rows"]["oldest torch"]["torch"]
    assert oldest_torch == f"{lower_bound}.0"


def test_the_quick_start_has_the_stored_times() -> None:
    rows = read(RESULTS / "first_prediction.json")["seconds of each step"]["rows"]
    after_install = rows["first prediction, after the install"]["s"]
    text = (ROOT / "docs" / "quick-start.md").read_text()
    assert f"{after_install:.0f} s after the install" in text
    assert f"took {rows['install']['s']:.0f} s" in text
    assert after_install <= 300


def test_pages_have_the_stored_scores_of_the_demo() -> None:
    rows = read(RESULTS / "demo.json")["trees on held-out sites"]["rows"]
    head = rows["head"]["R²"]
    linear = rows["linear baseline on mean tokens"]["R²"]
    readme = " ".join((ROOT / "README.md").read_text().split())
    changes = " ".join((ROOT / "CHANGELOG.md").read_text().split())

    assert f"its head explains about {100 * head:.0f} % of the variance" in readme
    assert f"the linear baseline on mean tokens {100 * linear:.0f} %" in readme
    assert f"its R² is {head:.2f}, that of a linear baseline {linear:.2f}" in changes


def test_every_benchmark_names_sources_that_exist() -> None:
    for parts in SOURCES.values():
        assert all((ROOT / "src" / "dinoneck" / part).exists() for part in parts)
    assert {*SOURCES} == {*NAMES, *OWN_COMMANDS} - {"gpu"}


DOCS = ROOT / "docs"
ROOMS = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))


SECTIONS = ("integrations", "explanation", "reference")  # those with a page of their own


def in_nav(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [
        page
        for part in (entry.values() if isinstance(entry, dict) else entry)
        for page in in_nav(part)
    ]  # type: ignore[attr-defined]


def test_every_page_is_in_the_nav_once() -> None:
    pages = in_nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(pages) == len(set(pages))
    assert set(pages) == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


@pytest.mark.parametrize("section", SECTIONS)
def test_section_pages_name_every_page_of_their_section(section: str) -> None:
    text = (DOCS / section / "index.md").read_text()
    missing = [page.name for page in (DOCS / section).glob("*.md") if f"({page.name})" not in text]
    assert missing == ["index.md"], f"{section}/index.md does not name them"


def test_the_drawing_has_every_room_and_so_has_the_list_of_imports() -> None:
    drawing = (DOCS / "images" / "data_flow.svg").read_text()
    _, layers = (DOCS / "explanation" / "data-flow.md").read_text().split("## Import layers")
    assert not [room for room in ROOMS if not re.search(rf"\b{room}\b", layers)]
    assert set(re.findall(r">(\w+)/</text>", drawing)) == set(ROOMS)


def answers() -> list[tuple[str, str, str]]:
    rows = re.findall(
        r"^\| \d+ \| .+? \| `(\w+)/` \| (.+?) \|$",
        (DOCS / "explanation/data-flow.md").read_text(),
        re.M,
    )
    return [
        (room, file, named)
        for room, cell in rows
        for file, named in re.findall(r"`(\w+\.py)`(?:: `(\w+)`)?", cell)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("room", "file", "named"), answers())
def test_a_newcomer_finds_it_there_and_nowhere_else(room: str, file: str, named: str) -> None:
    assert (SOURCE / room / file).is_file()
    if named:
        homes = [
            path.relative_to(SOURCE).as_posix()
            for path in SOURCE.rglob("*.py")
            if named in defined(path)
        ]
        assert homes == [f"{room}/{file}"]
    else:
        assert [path.parent.name for path in SOURCE.rglob(file)] == [room]


@cache
def defined(path: Path) -> set[str]:
    """Classes and functions that stand at the top of a file."""
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }


def test_choices_rest_on_numbers_of_the_pages_they_link() -> None:
    text = (DOCS / "choose.md").read_text()
    claims = [part for part in re.split(r"\n(?=\|)|\n\n", text) if re.search(r"\b0\.\d", part)]
    assert claims
    for claim in claims:
        shown = "".join(
            filled((DOCS / page).read_text()) for page in re.findall(r"\]\(([\w/-]+\.md)", claim)
        )
        for number in re.findall(r"(?<![\w.])0\.\d+", claim):
            assert number in shown, f"{number} is on none of the pages that this links: {claim}"

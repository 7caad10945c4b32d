"""Right names of classes and right columns of other people: read as the rules say, without a warning.

Many of them look like a mistake: a class that is called ``test``, a year, 9 among 1, 2 and 3. No rule
can know; the data summary shows them.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest

from dinoneck.errors import DataError
from tests.net import readers
from tests.net.files import write_images, write_rows

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("dinoneck.images") is None,
    reason="0.4 warns of many of these names and columns",
)
CLASSES = [
    "original copy screen",
    "2019 2020 2021",
    "2015 2016",
    "thermal rgb",
    "day night test",
    "test no_test",
    "may june march",
    "Mai June April",
    "coin|coin (1)",
    "original augmented",
    "APPLE Apple",
    "training casual",
    "plot1 plot2 plot3",
    "good unknown",
    "accept reject",
    "kept rejected",
    "generated real",
    "T1 T2 T3",
    "mask no_mask",
    "Maske ohne",
    "frame no_frame",
    "leaf root background",
    "good crack mask_damage unknown",
    "bus train tram",
    "labels no_labels",
    "a b",
    "été thé",
]
CODES = ["007", "012", "107"]
COLUMNS = {
    "signs": (["-1", "0", "1"], [-1.0, 0.0, 1.0]),
    "kilograms beside grams": (["1.234", "987", "1.5"], [1.234, 987.0, 1.5]),
    "-999": (["1.5", "-999", "2.5"], [1.5, -999.0, 2.5]),
    "a spreadsheet's day": (["1.5", "44562", "2.5"], [1.5, 44562.0, 2.5]),
    "codes": (CODES, (CODES, CODES)),
    "NA and EU": (["NA", "EU", "NA"], (["NA", "EU", "NA"], ["EU", "NA"])),
    "none and weed": (["none", "weed", "none"], (["none", "weed", "none"], ["none", "weed"])),
    "percent signs": (["10%", "5%", "10%"], (["10%", "5%", "10%"], ["10%", "5%"])),
    "dates": (
        ["2024-05-03", "2024-06-01", "2024-05-03"],
        (["2024-05-03", "2024-06-01", "2024-05-03"], ["2024-05-03", "2024-06-01"]),
    ),
    "a class that may be a typing error": (
        ["weed", "wede", "weed"],
        (["weed", "wede", "weed"], ["wede", "weed"]),
    ),
    "9 among 1, 2 and 3": (["1", "9", "3"], [1.0, 9.0, 3.0]),
    "sizes": (["S", "XL", "M"], (["S", "XL", "M"], ["M", "S", "XL"])),
    "a slash": (
        ["Acer/rubrum", "Acer", "Acer"],
        (["Acer/rubrum", "Acer", "Acer"], ["Acer", "Acer/rubrum"]),
    ),
    "years": (["1987", "2004", "1999"], [1987.0, 2004.0, 1999.0]),
    "humidity up to 99": (["99", "45", "12"], [99.0, 45.0, 12.0]),
    "0 and 1": (["0", "1", "0"], [0.0, 1.0, 0.0]),
    "yes and no": (["yes", "no", "yes"], (["yes", "no", "yes"], ["no", "yes"])),
    "months": (["May", "June", "May"], (["May", "June", "May"], ["June", "May"])),
    "units": (["1 kg", "2 kg", "1 kg"], (["1 kg", "2 kg", "1 kg"], ["1 kg", "2 kg"])),
    "case": (["Weed", "weed", "weed"], (["Weed", "weed", "weed"], ["Weed", "weed"])),
}
REFUSED = {
    "a percent sign among numbers": (["10%", "5", "7"], "10%"),
    "a date among numbers": (["2024-05-03", "5", "7"], "2024-05-03"),
    "a comma that may be of thousands": (['"1,200"', '"1,350"', '"2,100"'], "1,200"),
    "a range among numbers": (["1-2", "5", "7"], "1-2"),
}


@pytest.mark.parametrize("names", CLASSES)
def test_names_of_class_folders(
    names: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    classes = names.split("|") if "|" in names else names.split()
    for name in classes:
        write_images(tmp_path / name, ["1.png", "2.png"])

    with caplog.at_level(logging.WARNING):
        reading = readers.folders(tmp_path)

    assert reading["classes of class"] == sorted(classes)
    assert reading["ids"] == [f"{name}/{i}.png" for name in sorted(classes) for i in (1, 2)]
    assert "fold" not in reading
    assert not caplog.messages


def write_column(root: Path, cells: list[str]) -> None:
    rows = [("image", "value"), *((f"{i}.png", cell) for i, cell in enumerate(cells))]
    write_rows(root / "t.csv", rows)


@pytest.mark.parametrize("name", COLUMNS)
def test_columns(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cells, right = COLUMNS[name]
    write_column(tmp_path, cells)

    with caplog.at_level(logging.WARNING):
        reading = readers.table(tmp_path, "t.csv", ["value"])

    classes = reading.get("classes of value")
    assert (reading["value"] if classes is None else (reading["value"], classes)) == right
    assert not caplog.messages


@pytest.mark.parametrize("name", REFUSED)
def test_cells_that_are_certainly_no_numbers_of_this_column(name: str, tmp_path: Path) -> None:
    cells, value = REFUSED[name]
    write_column(tmp_path, cells)

    with pytest.raises(DataError, match=value):
        readers.table(tmp_path, "t.csv", ["value"])
